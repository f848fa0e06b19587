"""Variants of a training step's kernels against each other, by turns in one process and one arena.

    python benchmarks/kernel_turns.py gpt2 --config 124M -B 4 -T 64 --variant VARIANT [--variant VARIANT ...]

A variant is a name and what is other in it, in one argument: `wide attention.backward:BQ=32` (a parameter of that op's
schedule, `matmul.backward:dX.KC=384` of one kernel), `text /tmp/attention.tc` (a file in place of the library's of that
name, so schedules and equations), `before /old/.venv/bin/python` (all of another checkout, compiled by it), or `same`
(nothing: what the differences are worth). The first program is that of this checkout as it is.

Every program computes on the same parameters in the same memory, and the process's clock, pages and neighbours are
those of all: two processes that ran the same code have differed by 5%. Turns go through the programs in an order that
moves on by one each time. A line is an op of all layers; its ratio is that of a variant's time to the first program's
in the same turn: median (lower and upper quartile), then the ratio of least times. Without --all only what is compiled
otherwise is shown. Gradients are held against the first program's before any turn counts.

Pages lie at random, and with them the cache sets in which operands meet: the same code has differed by 8% between two
arenas. `--arenas N` takes the turns in each of N; a ratio is then the mean of the arenas' medians (least and greatest
of them). A difference below 5% is worth no less.
"""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcomp.autotune.instances import schedule_of
from tcomp.cli import common
from tcomp.codegen.cpu.cache import Compilers, compile_kernels
from tcomp.codegen.cpu.compiled import CompiledKernel
from tcomp.dsl.ast import Module, Op, Schedule, Tune
from tcomp.dsl.files import library
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.step import Launch, Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.roofline import profile, ready
from tcomp.schedule.lower import LoweredOp, lower

LAYER = re.compile(r"\b[a-z_]*\d+\.")
"""What a label says of the layer"""
SYMBOL = re.compile(rb"tc_[0-9a-f]{32}_")
Times = dict[str, list[dict[str, float]]]
"""Seconds by line in each turn, by variant"""
TOLERANCE = {"f32": 1e-4, "bf16": 0.05}
"""Largest difference of a gradient from the first program's, as a part of the tensor's largest value"""


@dataclass(frozen=True)
class Variant:
    """What is other than in this checkout: `values` of parameters by op, `texts` in place of the library's files, or
    the `python` of another checkout."""

    name: str
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    texts: tuple[Path, ...] = ()
    python: str = ""


@dataclass(frozen=True)
class Made:
    """A variant's step, and its kernels by their names in it."""

    step: Step
    compiled: dict[str, CompiledKernel]


def variant_of(text: str) -> Variant:
    """The variant that an argument names. UserError for a part that is neither a value nor a file."""
    name, *parts = text.split()
    values: dict[str, dict[str, float]] = {}
    texts, python = [], ""
    for part in parts:
        if found := re.fullmatch(r"([\w.]+):([\w.+]+)=(-?[\d.]+)", part):
            op, parameter, value = found.groups()
            values.setdefault(op, {})[parameter] = float(value) if "." in value else int(value)
        elif not Path(part).is_file():
            raise UserError(f"--variant {text!r}: {part} is no file", "write OP:PARAMETER=NUMBER, or name a file")
        elif part.endswith(".tc"):
            texts.append(Path(part))
        else:
            python = part
    if python and (values or texts):
        raise UserError(f"--variant {text!r}: another checkout is taken as it is", "name its Python alone")
    return Variant(name, values, tuple(texts), python)


def made_here(request: StepRequest, threads: int, variant: Variant) -> Made:
    """A variant's step, built and compiled by this checkout."""
    machine = detect()
    if not variant.texts:
        return _made(common.load_module(request.model, request.precision), request, machine, threads, variant)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(library(), Path(folder, "models")))
        for text in variant.texts:
            if not (known := [f for f in root.rglob("*.tc") if f.name == text.name]):
                raise UserError(f"{text}: the library has no {text.name}", "name the file as the one that it replaces")
            shutil.copy(text, known[0])
        module = common.load_module(str(root / f"{request.model}.tc"), request.precision)
        return _made(module, request, machine, threads, variant)


def _made(module: Module, request: StepRequest, machine: CpuMachine, threads: int, variant: Variant) -> Made:
    known: dict[str, set[str]] = {}

    def lowering(op: Op, module: Module, dims: dict[str, int]) -> LoweredOp:
        chosen = variant.values.get(op.name, {})
        if chosen:
            known.setdefault(op.name, set()).update(parameters(schedule_of(op, module, dims, machine, threads)))
        return lower(op, module, dims, machine, threads, chosen)

    step = build_step(module, common.resolved(request, module), machine, threads, lower=lowering)
    for op, chosen in variant.values.items():
        if op not in known:
            raise UserError(f"variant {variant.name}: the step has no op {op}", "tcomp roofline names its kernels")
        if lacking := sorted(chosen.keys() - known[op]):
            hint = f"it has {', '.join(sorted(known[op])) or 'none'}"
            raise UserError(f"variant {variant.name}: no schedule of {op} has a parameter {lacking[0]}", hint)
    return Made(step, dict(zip(step.kernels, compile_kernels(list(step.kernels.values()), machine), strict=True)))


def parameters(schedule: Schedule) -> set[str]:
    """Names of the schedule's parameters, `KC` and, of a kernel, `dX.KC`."""
    kernels = [
        ("", schedule.shared),
        *(("+".join(k.outputs), (*schedule.shared, *k.directives)) for k in schedule.kernels),
    ]
    tuned = [(kernel, d.name) for kernel, lines in kernels for d in lines if isinstance(d, Tune)]
    return {name for _, name in tuned} | {f"{kernel}.{name}" for kernel, name in tuned if kernel}


def made_there(python: str, arguments: Sequence[str]) -> Made:
    """The step of another checkout, built and compiled by it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "made")
        subprocess.run([python, __file__, *arguments, "--keep", str(out)], check=True)
        return Made(*pickle.loads(out.read_bytes()))


class _Ready(Compilers):
    """Compilers that have compiled."""

    def __init__(self, machine: CpuMachine, compiled: list[CompiledKernel]) -> None:
        super().__init__(machine)
        self._ready = compiled

    def finish(self, kernels: Sequence[Kernel]) -> list[CompiledKernel]:
        return self._ready


class Turns:
    """The programs of several variants on one executor, by the names that they have in the first step: `run` one of a
    variant and get each line's seconds."""

    def __init__(self, made: Mapping[str, Made], threads: int) -> None:
        self.made = made
        first, *others = made.values()
        for other in others:
            for slot in first.step.slots.values():
                if slot.first == 0 and slot.kind not in ("activation", "workspace"):
                    there = other.step.slots.get(slot.name)
                    if there is None or (there.offset, there.bytes) != (slot.offset, slot.bytes):
                        raise UserError(f"'{slot.name}' is elsewhere in a variant", "compare steps of one model text")
        kernels: dict[str, Kernel] = {}
        programs: dict[str, tuple[Launch, ...]] = {}
        compiled: list[CompiledKernel] = []
        for name, m in made.items():
            kernels |= {f"{name} {k}": kernel for k, kernel in m.step.kernels.items()}
            compiled += [m.compiled[k] for k in m.step.kernels]
            for program, launches in m.step.programs.items():
                programs[f"{name} {program}"] = tuple(replace(x, kernel=f"{name} {x.kernel}") for x in launches)
        steps = [m.step for m in made.values()]
        whole = replace(
            first.step, kernels=kernels, programs=programs, arena_bytes=max(s.arena_bytes for s in steps),
            threads=max(s.threads for s in steps),
        )  # fmt: skip
        machine = detect()
        self.executor = CpuExecutor(whole, machine, threads, compilers=_Ready(machine, compiled))
        ready(self.executor, threads)

    def run(self, name: str, program: str) -> dict[str, float]:
        """Seconds of the launches that share a line, layers taken together."""
        seconds: dict[str, float] = {}
        launches = self.made[name].step.programs[program]
        for x, spent in zip(launches, profile(self.executor, f"{name} {program}"), strict=True):
            line = line_of(x.label)
            seconds[line] = seconds.get(line, 0.0) + float(spent)
        return seconds

    def gradients(self) -> dict[str, NDArray[np.float32]]:
        slots = self.executor.step.slots.values()
        return {s.name: self.executor.read(s.name).astype(np.float32) for s in slots if s.kind == "gradient"}


def code_of(m: Made, program: str) -> dict[str, list[bytes]]:
    """What each line's launches are compiled to, without the names that hold a digest of the compiler's sources."""
    known = {k: SYMBOL.sub(b"", c.object) for k, c in m.compiled.items()}
    code: dict[str, list[bytes]] = {}
    for x in m.step.programs[program]:
        code.setdefault(line_of(x.label), []).append(known[x.kernel])
    return code


def line_of(label: str) -> str:
    """A launch's label without its layer: `l3.attention` --> `attention`."""
    return LAYER.sub("", label)


def largest_difference(first: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> float:
    """Of all tensors, as a part of the tensor's largest value; infinite where one is not finite."""
    worst = 0.0
    for name, values in first.items():
        scale = float(np.abs(values).max(initial=1e-30))
        off = float(np.abs(values - other[name]).max(initial=0.0)) / scale
        worst = max(worst, off if np.isfinite(off) else float("inf"))
    return worst


def checked(turns: Turns, names: Sequence[str], precision: str, allowed: float | None = None) -> None:
    """Every program once: UserError where gradients differ by more than rounding. None is there before it runs, lest
    what it leaves out be taken from the one before."""
    kept: dict[str, NDArray[np.float32]] = {}
    for name in names:
        for slot in turns.executor.step.slots.values():
            if slot.kind == "gradient":
                turns.executor.write(slot.name, np.zeros(slot.shape, np.float32))
        turns.run(name, "micro_first")
        found = turns.gradients()
        kept = kept or found
        off = largest_difference(kept, found)
        if off > (TOLERANCE.get(precision, 0.1) if allowed is None else allowed):
            raise UserError(f"gradients of variant {name} differ by {off:.1e}", "one of the two computes what is wrong")


def compared(
    turns: Turns, names: Sequence[str], program: str, rounds: int, told: Callable[[int], None] = lambda _: None
) -> Times:
    """Seconds by line in each turn, by variant. The order of the programs moves on by one each turn."""
    times: Times = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            times[name].append(turns.run(name, program))
        told(turn + 1)
    return times


def in_arenas(made: Mapping[str, Made], threads: int, count: int, taken: Callable[[Turns, int], Times]) -> list[Times]:
    """What is `taken` of the programs in each of so many arenas, by their numbers. An arena is mapped while the one
    before is still there, whose pages it would get again."""
    found: list[Times] = []
    turns = Turns(made, threads)
    try:
        for number in range(count):
            if number:
                before, turns = turns, Turns(made, threads)
                before.executor.close()
                del before
            found.append(taken(turns, number))
    finally:
        turns.executor.close()
    return found


def table(arenas: Sequence[Times], lines: Sequence[str]) -> str:
    """As Markdown, with all lines together last."""
    first, *others = arenas[0]
    spread = "quartiles" if len(arenas) == 1 else "arenas"
    head = ["op", f"{first}, ms", "least", *(f"{name}, ratio ({spread}), of least" for name in others)]
    out = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for line in [*lines, ""]:
        taken = [
            {n: [t.get(line, float("nan")) if line else sum(t.values()) for t in of] for n, of in times.items()}
            for times in arenas
        ]
        base = [seconds for times in taken for seconds in times[first]]
        cells = [line or "the program", f"{1e3 * statistics.median(base):.3f}", f"{1e3 * min(base):.3f}"]
        cells += [ratios([(times[first], times[name]) for times in taken]) for name in others]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def ratios(arenas: Sequence[tuple[list[float], list[float]]]) -> str:
    """What a line's cell says of the second list's seconds to the first one's."""
    within = [[b / a for a, b in zip(base, other, strict=True)] for base, other in arenas]
    medians = [statistics.median(r) for r in within]
    low, high = np.percentile(within[0], (25, 75)) if len(arenas) == 1 else (min(medians), max(medians))
    least = statistics.mean(min(other) / min(base) for base, other in arenas)
    return f"{statistics.mean(medians):.3f} ({low:.3f} .. {high:.3f}), {least:.3f}"


def request_of(args: argparse.Namespace) -> StepRequest:
    """The step that the arguments ask for, without a lockfile."""
    dims = {name: int(value) for name, value in (part.split("=") for part in args.dim)}
    sizes = {"B": args.batch, "T": args.length}
    return StepRequest(args.model, args.config, sizes, dims, args.precision, recompute="cheap", lock="none")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="gpt2")
    parser.add_argument("--config", default="124M")
    parser.add_argument("-B", dest="batch", type=int, default=4)
    parser.add_argument("-T", dest="length", type=int, default=64)
    parser.add_argument("--dim", action="append", default=[], help="a value of the configuration, such as L=4")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--program",
        default="micro_first",
        choices=("micro_first", "update"),
        help="forward and backward, or the update",
    )
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--arenas", type=int, default=1, help="memories in each of which turns are taken")
    parser.add_argument("--tolerance", type=float, help="of gradients [default: by precision]")
    parser.add_argument("--variant", action="append", default=[], type=variant_of)
    parser.add_argument("--all", action="store_true", help="lines of equal code too")
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)  # what `made_there` asks of another checkout
    args = parser.parse_args(arguments)
    if min(args.turns, args.arenas) < 1:
        parser.error("--turns, --arenas: one or more")
    if len({"here", *(v.name for v in args.variant)}) <= len(args.variant):
        parser.error("--variant: each has a name of its own, other than here")
    threads, request = common.device_for(threads=args.threads).threads, request_of(args)
    made = {"here": made_here(request, threads, Variant("here"))}
    if args.keep is not None:
        args.keep.write_bytes(pickle.dumps((made["here"].step, made["here"].compiled)))
        return
    for v in args.variant:
        made[v.name] = made_there(v.python, arguments) if v.python else made_here(request, threads, v)
    names = list(made)

    def taken(turns: Turns, arena: int) -> Times:
        checked(turns, names, args.precision, args.tolerance)
        told = f"of {args.turns}" + f" in arena {arena + 1} of {args.arenas}" * (args.arenas > 1)
        return compared(turns, names, args.program, args.turns, lambda n: common.note(f"turn {n} {told}"))

    times = in_arenas(made, threads, args.arenas, taken)
    code = {name: code_of(made[name], args.program) for name in names}
    other = [line for line in code["here"] if any(c.get(line) != code["here"][line] for c in code.values())]
    print(table(times, list(code["here"]) if args.all else other), end="")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
