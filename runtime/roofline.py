"""A step's kernels against the machine's ceilings: the least time each could take, and the time it takes.

    least = max(FLOPs / peak, bytes / rate of memory, sum over functions: evaluations / rate) + launches' own time

Work and traffic are what the kernel's equations ask for (`Kernel.flops`, `.traffic`, `.functions`), over all its
launches in the step. The peak is that of f32 multiply-adds, or that of the instruction which the kernel uses (`use
vdpbf16ps`) where this was measured. Functions such as exp count no FLOPs; their rates are those of this compiler's own
code, measured alone in cache. They share units with the FLOPs, so a kernel with much of both cannot reach its least
time. Memory has two rates: that of streams, and for rows that data chooses (embeddings) that of rows of their length
in random order. A launch's own time is what one that does nothing takes, for each of the kernel's phases. Operands that
are still in a cache can beat the memory side. (Williams, Waterman, Patterson, 2009.)

Beside the least time stands the time in turn: as if the FLOPs and the functions, which go to the same vector units,
were done one behind the other. It is no bound: code in a kernel may evaluate a function faster than by itself (and
overlap some of it), so a kernel can be above 100% of it.

    in turn = max(FLOPs / peak + sum over functions: evaluations / rate, bytes / rate of memory) + launches' own time
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.ir.walk import instruction_of
from tcomp.model.step import Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.executor import Executor
from tcomp.runtime.initialise import initialise
from tcomp.runtime.scalars import set_scalars


def programs_of(step: Step, accumulation: int) -> dict[str, int]:
    """The programs of a step of so many micro-batches, and how often it runs each."""
    times = {"micro_first": 1, "micro_next": accumulation - 1, "update": 1}
    return {name: n for name, n in times.items() if name in step.programs and n}


@dataclass(frozen=True)
class Peaks:
    """The ceilings that a kernel is held against, all threads together: FLOP/s, bytes/s, evaluations/s of each
    function (one without a rate takes no time), FLOP/s of kernels that use an instruction of their own, bytes/s of rows
    in random order by the bytes of a row (one without a rate counts as a stream), and seconds of an empty launch."""

    flops: float
    bandwidth: float
    functions: Mapping[str, float] = field(default_factory=dict)
    instructions: Mapping[str, float] = field(default_factory=dict)
    gathers: Mapping[int, float] = field(default_factory=dict)
    launch: float = 0.0


@dataclass(frozen=True)
class Row:
    """One kernel: `first` labels its first launch; `seconds` of all launches of one step, None when not measured;
    `phases` are those launches, each phase of a kernel being one of its own; `gathered` bytes in rows that data
    chooses, by the bytes of a row."""

    kernel: str
    first: str
    launches: int
    flops: int
    bytes: int
    seconds: float | None = None
    functions: Mapping[str, int] = field(default_factory=dict)
    instruction: str = ""
    phases: int = 0
    gathered: Mapping[int, int] = field(default_factory=dict)

    def parts(self, peaks: Peaks) -> dict[str, float]:
        """Seconds by what takes them: compute, memory, functions, launch."""
        evaluated = sum(n / peaks.functions[f] for f, n in self.functions.items() if f in peaks.functions)
        peak = peaks.instructions.get(self.instruction, peaks.flops)
        chosen = {row: n for row, n in self.gathered.items() if row in peaks.gathers}
        memory = (self.bytes - sum(chosen.values())) / peaks.bandwidth
        memory += sum(n / peaks.gathers[row] for row, n in chosen.items())
        parts = {"compute": self.flops / peak, "memory": memory, "functions": evaluated}
        return {**parts, "launch": self.phases * peaks.launch}

    def least(self, peaks: Peaks) -> float:
        """Seconds that the ceilings allow."""
        parts = self.parts(peaks)
        return max(s for name, s in parts.items() if name != "launch") + parts["launch"]

    def in_turn(self, peaks: Peaks) -> float:
        """Seconds where FLOPs and functions take turns in the units that they share."""
        parts = self.parts(peaks)
        return max(parts["compute"] + parts["functions"], parts["memory"]) + parts["launch"]

    def bound(self, peaks: Peaks) -> str:
        """Which ceiling that is."""
        parts = self.parts(peaks)
        return max(parts, key=lambda name: parts[name])

    def share(self, peaks: Peaks) -> float | None:
        """The least time as a part of the time taken."""
        return self.least(peaks) / self.seconds if self.seconds else None


def kernel_rows(step: Step, seconds: dict[str, list[float]] | None = None, accumulation: int = 1) -> list[Row]:
    """The kernels of a step of so many micro-batches, in the order of their first launches or, with `seconds` (program
    -> each launch), of time."""
    rows: dict[str, Row] = {}
    for program, times in programs_of(step, accumulation).items():
        taken = seconds[program] if seconds else [0.0] * len(step.programs[program])
        for launch, spent in zip(step.programs[program], taken, strict=True):
            kernel = step.kernels[launch.kernel]
            r = rows.get(launch.kernel, Row(launch.kernel, launch.label, 0, 0, 0, 0.0))
            total = (r.seconds or 0.0) + times * spent
            work, moved = r.flops + times * kernel.flops, r.bytes + times * kernel.traffic
            called = dict(Counter(r.functions) + Counter({f: times * n for f, n in kernel.functions}))
            chosen = {row: r.gathered.get(row, 0) + times * n for row, n in kernel.gathered}
            rows[launch.kernel] = Row(
                r.kernel, r.first, r.launches + times, work, moved, total, called, instruction_of(kernel),
                r.phases + times * len(kernel.phases), chosen,
            )  # fmt: skip
    if seconds is None:
        return [replace(r, seconds=None) for r in rows.values()]
    return sorted(rows.values(), key=lambda r: -(r.seconds or 0.0))


def launch_seconds(
    executor: CpuExecutor, runs: int, progress: Callable[[int], None] = lambda _: None, accumulation: int = 1
) -> dict[str, list[float]]:
    """Seconds of each launch of each program: the least of `runs` runs, since what others do only adds to it.

    The step must be ready to run (parameters, inputs, scalars). Runs change its parameters.
    """
    step = executor.step
    best: dict[str, Any] = {}
    for run in range(runs + 1):  # the first one brings the memory in and does not count
        for program in programs_of(step, accumulation):
            times = profile(executor, program)
            if run:
                best[program] = np.minimum(best.get(program, times), times)
        progress(run)
    return {program: [float(t) for t in times] for program, times in best.items()}


def profile(executor: CpuExecutor, program: str) -> NDArray[np.float64]:
    """Run a program: seconds of each of its launches."""
    start = time.perf_counter()
    ticks = np.array([t for _, t in executor.profile(program)])
    ticks *= (time.perf_counter() - start) / max(1.0, float(ticks.sum()))
    return np.array(_by_launch(executor, program, ticks))


def ready(executor: Executor, threads: int) -> None:
    """Fresh parameters and random inputs: the step can run."""
    initialise(executor, 0, threads)
    set_scalars(executor, {})
    rng = np.random.default_rng(0)
    for name, bound in executor.step.inputs.items():
        slot = executor.step.slots[name]
        real = slot.dtype.is_float
        executor.write(name, rng.standard_normal(slot.shape) if real else rng.integers(0, bound or 2, slot.shape))


def _by_launch(executor: CpuExecutor, program: str, phases: Any) -> list[float]:
    """A launch takes as long as its phases together."""
    out, at = [], 0
    for launch in executor.step.programs[program]:
        n = len(executor.kernels[launch.kernel].symbols)
        out.append(float(phases[at : at + n].sum()))
        at += n
    return out


def as_json(rows: list[Row], peaks: Peaks) -> list[dict[str, Any]]:
    """The rows with what is derived from them."""
    return [
        {
            **asdict(r), "least": r.least(peaks), "bound": r.bound(peaks), "share": r.share(peaks),
            "in_turn": r.in_turn(peaks),
        }
        for r in rows
    ]  # fmt: skip


def table(rows: list[Row], peaks: Peaks) -> str:
    """As Markdown, the whole step last."""
    head = (
        "| kernel | launches | GFLOP | MB | functions, ms | least, ms | bound | ms | GFLOP/s | GB/s | of its roofline "
        "| of both in turn |"
    )
    lines = [head, "|---|" + "---:|" * 5 + "---|" + "---:|" * 5]
    whole = Row("whole step", "", sum(r.launches for r in rows), 0, 0, sum(r.seconds or 0.0 for r in rows) or None)
    for r in rows:
        lines.append(_line(r, r.parts(peaks)["functions"], r.least(peaks), r.bound(peaks), r.in_turn(peaks)))
    evaluated = sum(r.parts(peaks)["functions"] for r in rows)
    in_turn = sum(r.in_turn(peaks) for r in rows)
    lines.append(_line(whole, evaluated, sum(r.least(peaks) for r in rows), "", in_turn))
    return "\n".join(lines) + "\n"


def _line(r: Row, evaluated: float, least: float, bound: str, in_turn: float) -> str:
    work = [f"{r.flops / 1e9:.2f}", f"{r.bytes / 1e6:.1f}"] if r.flops or r.bytes else ["", ""]
    cells = [r.kernel, str(r.launches), *work, f"{evaluated * 1e3:.2f}", f"{least * 1e3:.2f}", bound]
    if r.seconds:
        rates = [f"{r.flops / r.seconds / 1e9:.1f}", f"{r.bytes / r.seconds / 1e9:.1f}"] if bound else ["", ""]
        cells += [f"{r.seconds * 1e3:.2f}", *rates, f"{least / r.seconds:.0%}", f"{in_turn / r.seconds:.0%}"]
    else:
        cells += [""] * 5
    return "| " + " | ".join(cells) + " |"
