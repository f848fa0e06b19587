"""`tcomp build`: check, derive, schedule, compile and plan a model; every stage's text goes to a folder."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tcomp.cli import common, limits
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.model.step import Step

_MARK = "summary.txt"


def build(
    file: Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own models.")] = "gpt2",
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per micro-batch.")] = 8,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 128,
    accumulation: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="A configuration value: --dim L=2.")] = None,
    threads: Annotated[int, typer.Option(help="Cores to compile for; 0: all.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Refuse a plan larger than this: 16GB.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder [default: build/MODEL-CONFIG].")] = None,
) -> None:
    """Build a training step and show what came of it.

    The folder holds ast.txt, graph.txt, grad.tc, schedules.tc, tile.txt, llvm/, asm/, plan.txt and
    launches.txt. Compiled code goes to the cache, so that `tcomp train` of the same step compiles nothing.

    Examples:

    - `tcomp build models/gpt2.tc`

    - `tcomp build gpt2 --config 124M -B 4 -T 64 --out build/big`
    """
    from tcomp.cli import show, stages
    from tcomp.ir.print import print_kernel
    from tcomp.model.report import bytes_text, plan_text
    from tcomp.runtime.cache import cache_folder

    numbers = limits.parse_dims(dim or [])
    limits.check_numbers(batch=batch, length=length, accumulation=accumulation, threads=threads)
    cache = cache_folder("kernels")
    times: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        times[name] = time.perf_counter() - clock
        clock = time.perf_counter()

    module = common.load_module(file)
    lap("parse and check")
    built = common.build_step(
        file, config, batch, length, dims=numbers, accumulation=accumulation, threads=threads,
        memory=memory, module=module,
    )  # fmt: skip
    step = built.step
    lap("derive, schedule, plan")
    assembly, llvm = _compile(built, cache)
    lap("compile")
    graph, parts = show.nodes_of(module, built.name, step.config, batch, length, numbers)
    ops = show.distinct(parts)
    texts = {
        "ast.txt": "".join(stages.ast_text(item) for item in show._items(module)),
        "graph.txt": stages.graph_text(graph, parts),
        "grad.tc": stages.grad_text(module),
        "schedules.tc": "\n".join(stages.schedule_text(o, module, d, built.machine) for o, d in ops),
        "tile.txt": "\n".join(print_kernel(k) for k in step.kernels.values()),
        "plan.txt": plan_text(step, built.threads),
        "launches.txt": stages.launches_text(step),
        **{f"llvm/{name}.ll": text for name, text in llvm.items()},
        **{f"asm/{name}.s": text for name, text in assembly.items()},
    }
    lap("write out")
    launches = {name: len(program) for name, program in step.programs.items()}
    rows = {
        "model": f"{step.model} {step.config}, " + ", ".join(f"{k} = {v}" for k, v in step.dims.items()),
        "machine": f"{built.machine.name}, {built.threads} threads",
        "ops": f"{len(ops)} distinct op instances, {len(step.kernels)} kernels",
        "launches": ", ".join(f"{name} {count}" for name, count in launches.items()),
        "arithmetic": f"{_flops(step) / 1e9:.2f} GFLOP per micro-batch",
        "arena": f"{bytes_text(step.arena_bytes)}, "
        f"{step.arena_bytes / max(1, step.lower_bound_bytes):.4f} of the lower bound",
        "time": ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()),
    }
    summary = "".join(f"{name:12}{value}\n" for name, value in rows.items())
    target = out or Path("build") / f"{step.model}-{step.config}"
    write_folder(target, {**texts, _MARK: summary})
    print(summary + f"{'folder':12}{target}")


def _compile(built: common.Built, cache: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Compile every kernel into the cache; assembly and LLVM IR by kernel name."""
    from tcomp.codegen.cpu.compile import kernel_ir, optimized, target_machine
    from tcomp.runtime.cpu.executor import CpuExecutor

    CpuExecutor(built.step, built.machine, built.threads, cache).close()
    target = target_machine(built.machine)
    assembly, llvm = {}, {}
    for name, kernel in built.step.kernels.items():
        llvm[name] = kernel_ir(kernel, built.machine)
        assembly[name] = str(target.emit_assembly(optimized(llvm[name], target)))
    return assembly, llvm


def _flops(step: Step) -> int:
    return sum(step.kernels[launch.kernel].flops for launch in step.programs["micro_first"])


def write_folder(target: Path, texts: dict[str, str]) -> None:
    """Put the files in a new folder in place of `target`, whole or not at all.

    A folder that `tcomp build` did not make is never replaced.
    """
    if target.exists() and not (target / _MARK).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not a build folder", "give another --out")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        for name, text in texts.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)
    except OSError as e:
        raise UserError(f"{target}: cannot write the build folder: {e.strerror or e}") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
