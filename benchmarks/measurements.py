"""The static model of GPUs beside what an H100 measured: a table of the kernels of one training step, and one of the
tensor-core families by themselves.

`docs/measurements/h100.toml` has one time for each kernel of a step, between events after every launch; what an event
takes is told from the same steps' graphs and is no kernel's own, so it is taken off. A kernel that computes something
else than the one that was timed, or is launched in other shapes, has changed since and is left out. Kernels of families
were timed alone, between two events, L2 full of other data: an event is in each time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.autotune.gpu_predict import KernelPrediction
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.ir.tile import Kernel

LONG = 20.0
"""us from which a kernel's error counts; shorter ones are mostly the launch."""


@dataclass(frozen=True)
class Timed:
    """One kernel of a measured step: microseconds, events after launches included; blocks, threads of each launch.
    `changed`: its code is known to be another now, though blocks and threads are not."""

    name: str
    times: int
    us: float
    flops: int
    launches: tuple[tuple[int, int], ...]
    changed: bool = False


@dataclass(frozen=True)
class Beside:
    """A measured kernel and its prediction, both in microseconds of a graph, without events."""

    timed: Timed
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True)
class Alone:
    """A kernel of a family's case (an op at one shape), or all of them ("whole"): microseconds, rate in TFLOP/s as
    published figures count it (0: does not count), that of PyTorch's library, published figures."""

    section: str
    what: str
    kernel: str
    us: float
    rate: float = 0.0
    library: float = 0.0
    published: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Run:
    """The commit that was measured, and in ms a step as a graph (`steps`) or in us what an event takes (`events`)."""

    commit: str
    time: float


@dataclass(frozen=True)
class Measurements:
    """`steps` and `kernels` (with `events`, of the same runs) by precision; `families` alone."""

    steps: Mapping[str, Run]
    events: Mapping[str, Run]
    kernels: Mapping[str, Sequence[Timed]]
    families: Sequence[Alone]

    def alone(self, what: str, kernel: str = "whole") -> Alone:
        """That of a case; of one that has only one kernel, that one. KeyError where there is none."""
        found = [f for f in self.families if f.what == what]
        rows = [f for f in found if f.kernel == kernel or (kernel == "whole" and len(found) == 1)]
        if len(rows) != 1:
            raise KeyError(f"{kernel} of {what}")
        return rows[0]


def read_measurements(path: Path) -> Measurements:
    """OSError and tomllib's errors where the file cannot be read."""
    found = tomllib.loads(path.read_text())
    kernels: dict[str, list[Timed]] = {}
    for k in found["kernel"]:
        launches = tuple((blocks, threads) for blocks, threads in k["launches"])
        timed = Timed(k["name"], k["times"], k["us"], k["flops"], launches, k.get("changed", False))
        kernels.setdefault(k["step"], []).append(timed)
    steps = {precision: Run(r["commit"], r["ms"]) for precision, r in found["step"].items()}
    events = {precision: Run(r["commit"], r["us"]) for precision, r in found["event"].items()}
    return Measurements(steps, events, kernels, [Alone(**f) for f in found["family"]])


def beside(
    measured: Measurements, precision: str, predicted: Mapping[str, float], kernels: Mapping[str, Kernel],
    codes: Mapping[str, GpuKernel],
) -> list[Beside]:  # fmt: skip
    """The kernels that are still launched as when they were timed, longest in the step first. `predicted`: seconds."""
    rows = []
    for timed in measured.kernels[precision]:
        if timed.changed or timed.name not in predicted or kernels[timed.name].flops != timed.flops:
            continue
        shapes = tuple((launch.blocks, launch.threads) for launch in codes[timed.name].launches)
        if shapes == timed.launches:
            us = timed.us - measured.events[precision].time * len(shapes)
            rows.append(Beside(timed, us, predicted[timed.name] * 1e6))
    return sorted(rows, key=lambda r: -r.measured * r.timed.times)


def text_of(
    measured: Measurements, precision: str, rows: Sequence[Beside], predictions: Mapping[str, KernelPrediction]
) -> str:
    """A table in Markdown of all kernels that were timed, those that have changed since without a prediction."""
    lines = ["| kernel | launches | us | without events | predicted | predicted / measured | bound by (predicted) |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    known, event = {r.timed.name: r for r in rows}, measured.events[precision].time
    for k in sorted(measured.kernels[precision], key=lambda k: -k.us * k.times):
        line = f"| `{k.name}` | {k.times} | {k.us:.1f} | {k.us - event * len(k.launches):.1f} |"
        if k.name in known:
            r = known[k.name]
            lines.append(f"{line} {r.predicted:.1f} | {1 + r.error:.2f} | {predictions[k.name].binding} |")
        else:
            lines.append(f"{line} | | changed since |")
    long = sorted(abs(r.error) for r in rows if r.measured > LONG)
    total, said = (sum(getattr(r, what) * r.timed.times for r in rows) for what in ("measured", "predicted"))
    lines.append("")
    lines.append(
        f"Of the {len(rows)} kernels that are as they were: {total / 1e3:.2f} ms measured, {said / 1e3:.2f} predicted; "
        f"of the {len(long)} over {LONG:.0f} us half are within {long[len(long) // 2]:.1%}, all within {long[-1]:.1%}."
    )
    return "\n".join(lines) + "\n"


def families_text(rows: Sequence[Alone], predicted: Mapping[tuple[str, str], float]) -> str:
    """A table in Markdown of a section's cases, one line a kernel; `predicted` has seconds by case and kernel."""
    lines = [
        "| op | kernel | us | predicted | predicted / measured | TFLOP/s | PyTorch's library | over it | published |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---|")
    for r in rows:
        us = 1e6 * predicted.get((r.what, r.kernel), 0.0)
        model = (f"{us:.1f}", f"{us / r.us:.2f}") if us else ("", "")
        model = ("", "changed since") if r.changed else model
        rate = (f"{r.rate:.0f}" if r.rate else "", f"{r.library:.0f}" if r.library else "")
        over = f"{r.rate / r.library:.2f}" if r.library else ""
        lines.append(f"| {' | '.join((r.what, f'`{r.kernel}`', f'{r.us:.1f}', *model, *rate, over, r.published))} |")
    return "\n".join(lines) + "\n"
