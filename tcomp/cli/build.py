"""`tcomp build`: check, derive, schedule, compile and plan a model; every stage's text goes to a folder.

For a GPU target nothing but the PTX assembler is needed; `build_gpu.py` has that half.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common
from tcomp.cli.command import Options, command
from tcomp.cli.options import StepOptions, TargetOptions
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module, Op
    from tcomp.model.graph import Graph, Node
    from tcomp.model.step import Step

_MARK = "summary.txt"


@dataclass(frozen=True)
class BuildOptions(Options):
    """What to do with the build."""

    strict: Annotated[bool, typer.Option("--strict", help="Fail on any finding about a GPU's kernels.")] = False
    out: Annotated[Path | None, typer.Option(help="The folder [default: build/MODEL-CONFIG].")] = None


@command
def build(step: StepOptions, where: TargetOptions, own: BuildOptions) -> None:
    """Build a training step and show what came of it.

    The folder holds ast.txt, graph.txt, grad.tc, schedules.tc, tile.txt, plan.txt, launches.txt, and llvm/ and
    asm/ (for a GPU: ptx/, cubin/, kernels.txt, table.json). Compiled code goes to the cache, so that `tcomp train`
    of the same step compiles nothing.

    A GPU build needs no GPU. Register spills, local memory, calls and serialised matrix instructions are reported
    at the line of the schedule that they come from. So is a better schedule for the target that the shapes keep from
    being taken, with what would make it apply. --strict makes any of these an error (exit code 2).

    Examples:

    - `tcomp build models/gpt2.tc`

    - `tcomp build gpt2 --config 124M -B 4 -T 64 --out build/big`

    - `tcomp build gpt2 --target sm_90a --strict`
    """
    from tcomp.cli import build_gpu, show, untaken
    from tcomp.grad.schedules import check_derived_schedules
    from tcomp.runtime.cache import cache_folder

    request = step.request()
    machine = where.machine()
    if own.strict and machine is None:
        raise UserError("--strict is for GPU targets", "give --target sm_90a, or leave out --strict")
    cache = cache_folder("kernels")
    times: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        times[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    module = common.load_module(request.model, request.precision)
    asked = common.resolved(request, module)
    suffix = f"-{machine.target}" if machine else ""
    folder = own.out or Path("build") / f"{asked.model}-{asked.config}{suffix}"
    check_folder(folder)
    check_derived_schedules(module)
    lap("parse and check")
    built = common.build_step(request, where.device(machine), module=module)
    lap("derive, schedule, plan")
    kernels = list(built.step.kernels.values())
    gpu_build = build_gpu.build_kernels(kernels, machine, cache, _colour()) if machine else None
    files: dict[str, str | bytes] = gpu_build.files if gpu_build else dict(_compile(built))
    lap("compile and assemble" if machine else "compile")
    graph, parts = show.nodes_of(module, asked, built.machine)
    ops = show.distinct(parts)
    passed = untaken.schedules(module, ops, machine) if machine else untaken.Untaken()
    files |= _stages(module, built, graph, parts)
    lap("write out")
    rows = _facts(built, len(ops), times)
    if default := _unscheduled(module, ops, built):
        rows["unscheduled"] = f"{', '.join(default)} (the default; `tcomp show FILE OP --schedule` prints it)"
    findings = passed.count + (gpu_build.count if gpu_build else 0)
    if gpu_build:
        rows["findings"] = str(findings) if findings else "none: no spills, local memory, calls or schedules not taken"
    summary = "".join(f"{name:12}{value}\n" for name, value in rows.items())
    write_folder(folder, {**files, _MARK: summary})
    if gpu_build:
        print(gpu_build.table)
        print("".join(f"{line}\n" for line in (*gpu_build.findings, *passed.lines)), end="")
    print(summary + f"{'folder':12}{folder}")
    if own.strict and findings:
        raise UserError(
            f"the build has {findings} finding{'s' * (findings > 1)}, and it is strict",
            "change the schedules or the sizes named above, or build without --strict",
        )


def _stages(module: Module, built: common.Built, graph: Graph, parts: dict[str, tuple[Node, ...]]) -> dict[str, str]:
    """The text of every stage but the last, by file name."""
    from tcomp.cli import show, stages
    from tcomp.ir.print import print_kernel
    from tcomp.model.report import plan_text

    step, ops = built.step, show.distinct(parts)
    return {
        "ast.txt": "".join(stages.ast_text(item) for item in show.items(module)),
        "graph.txt": stages.graph_text(graph, parts),
        "grad.tc": stages.grad_text(module),
        "schedules.tc": "\n".join(stages.schedule_text(o, module, d, built.machine) for o, d in ops),
        "tile.txt": "\n".join(print_kernel(k) for k in step.kernels.values()),
        "plan.txt": plan_text(step, built.threads),
        "launches.txt": stages.launches_text(step),
    }


def _facts(built: common.Built, ops: int, times: Mapping[str, float]) -> dict[str, str]:
    """What to say of a build of so many op instances that took `times`, in seconds."""
    from tcomp.amounts import bytes_text
    from tcomp.machine.cpu import CpuMachine

    step, machine = built.step, built.machine
    on_cpu = f"{machine.name}, {built.threads} threads"
    return {
        "model": f"{step.model} {step.config}, " + ", ".join(f"{k} = {v}" for k, v in step.dims.items()),
        "machine": on_cpu if isinstance(machine, CpuMachine) else built.device.description,
        "ops": f"{ops} distinct op instances, {len(step.kernels)} kernels",
        "tuned": f"{built.tuned} op instances by {built.lock}" if built.lock else "no lockfile",
        "launches": ", ".join(f"{name} {len(program)}" for name, program in step.programs.items()),
        "arithmetic": f"{_flops(step) / 1e9:.2f} GFLOP per micro-batch",
        "arena": f"{bytes_text(step.arena_bytes)}, "
        f"{step.arena_bytes / max(1, step.lower_bound_bytes):.4f} of the lower bound",
        "time": ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()),
    }


def _unscheduled(module: Module, instances: Iterable[tuple[Op, Mapping[str, int]]], built: common.Built) -> list[str]:
    """The ops for which no schedule is written that they could take here. On a GPU a product is slow so."""
    from tcomp.schedule.choose import choice_of
    from tcomp.schedule.family import family_for

    targets = family_for(built.machine, built.threads).targets
    found = (op.name for op, dims in instances if choice_of(op, module, dims, targets).schedule is None)
    return list(dict.fromkeys(found))


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _compile(built: common.Built) -> dict[str, str]:
    """Compile every kernel into the cache; its LLVM IR and assembly by file name."""
    from tcomp.codegen.cpu.compile import kernel_assembly, kernel_ir
    from tcomp.machine.cpu import CpuMachine

    assert isinstance(built.machine, CpuMachine)
    built.device.open(built.step).close()
    files = {}
    for name, kernel in built.step.kernels.items():
        files[f"llvm/{name}.ll"] = kernel_ir(kernel, built.machine)
        files[f"asm/{name}.s"] = kernel_assembly(kernel, built.machine)
    return files


def _flops(step: Step) -> int:
    return sum(step.kernels[launch.kernel].flops for launch in step.programs["micro_first"])


def check_folder(target: Path) -> None:
    """UserError for a folder that cannot be made, or with something in it that `tcomp build` did not make: it is never
    replaced. Known before the work, not after it."""
    from tcomp.runtime.cache import unwritable

    try:
        reason = unwritable(target)
        if target.exists() and not (target / _MARK).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target}: exists and is not a build folder", "give another --out")
    except OSError as e:
        raise _unwritable(target, e.strerror or str(e)) from e
    if reason:
        raise _unwritable(target, reason)


def _partial(target: Path) -> Path:
    """The folder that files are put in until all are there."""
    whole = target.absolute()  # (`.` has no name)
    return whole.with_name(f".{whole.name}.{os.getpid()}.partial")


def _unwritable(target: Path, why: str) -> UserError:
    return UserError(f"{target}: cannot write the build folder: {why}", "name another by --out")


def write_folder(target: Path, texts: Mapping[str, str | bytes]) -> None:
    """Put the files in a new folder in place of `target`, whole or not at all."""
    check_folder(target)
    partial = _partial(target)
    try:
        for name, text in texts.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        if target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)
    except OSError as e:
        raise _unwritable(target, e.strerror or str(e)) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
