"""The static model of GPUs beside what an H100 measured: a table of the kernels of one training step.

`docs/measurements/h100.toml` has one time for each kernel, between events after every launch; what an event takes is
told from the same steps' graphs and is no kernel's own, so it is taken off. A kernel that computes something else than
the one that was timed, or is launched in other shapes, has changed since and is left out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcomp.autotune.gpu_predict import KernelPrediction
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.ir.tile import Kernel

LONG = 20.0
"""us from which a kernel's error counts; shorter ones are mostly the launch."""


@dataclass(frozen=True)
class Timed:
    """One kernel of a measured step: microseconds, events after launches included; blocks, threads of each launch."""

    name: str
    times: int
    us: float
    flops: int
    launches: tuple[tuple[int, int], ...]


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
class Measurements:
    """`steps`: ms of a step as a graph by precision; `event`: us that an event takes; `kernels` by precision;
    `attention`: TFLOP/s by the name of a shape."""

    steps: Mapping[str, float]
    event: float
    kernels: Mapping[str, Sequence[Timed]]
    attention: Mapping[str, float]


def read_measurements(path: Path) -> Measurements:
    """OSError and tomllib's errors where the file cannot be read."""
    found = tomllib.loads(path.read_text())
    kernels: dict[str, list[Timed]] = {}
    for k in found["kernel"]:
        launches = tuple((blocks, threads) for blocks, threads in k["launches"])
        kernels.setdefault(k["step"], []).append(Timed(k["name"], k["times"], k["us"], k["flops"], launches))
    return Measurements(found["step"], found["event"]["us"], kernels, found["attention"])


def beside(
    measured: Measurements, precision: str, predictions: Iterable[tuple[KernelPrediction, int]],
    kernels: Mapping[str, Kernel], codes: Mapping[str, GpuKernel],
) -> list[Beside]:  # fmt: skip
    """The kernels that are still launched as when they were timed, longest in the step first."""
    predicted = {k.name: k for k, _ in predictions}
    rows = []
    for timed in measured.kernels[precision]:
        if timed.name not in predicted or kernels[timed.name].flops != timed.flops:
            continue
        shapes = tuple((launch.blocks, launch.threads) for launch in codes[timed.name].launches)
        if shapes == timed.launches:
            us = timed.us - measured.event * len(shapes)
            rows.append(Beside(timed, us, predicted[timed.name].seconds * 1e6))
    return sorted(rows, key=lambda r: -r.measured * r.timed.times)


def text_of(rows: Sequence[Beside], predictions: Mapping[str, KernelPrediction]) -> str:
    """A table in Markdown."""
    lines = ["| kernel | launches | us | without events | predicted | predicted / measured | bound by (predicted) |"]
    lines.append("|---|---:|---:|---:|---:|---:|---|")
    for r in rows:
        lines.append(
            f"| `{r.timed.name}` | {r.timed.times} | {r.timed.us:.1f} | {r.measured:.1f} | {r.predicted:.1f} "
            f"| {1 + r.error:.2f} | {predictions[r.timed.name].binding} |"
        )
    long = sorted(abs(r.error) for r in rows if r.measured > LONG)
    total, said = (sum(getattr(r, what) * r.timed.times for r in rows) for what in ("measured", "predicted"))
    lines.append("")
    lines.append(
        f"{len(rows)} kernels: {total / 1e3:.2f} ms measured, {said / 1e3:.2f} predicted; of the {len(long)} over "
        f"{LONG:.0f} us half are within {long[len(long) // 2]:.1%}, all within {long[-1]:.1%}."
    )
    return "\n".join(lines) + "\n"
