"""The GPU half of `tcomp roofline`: a step's kernels as the static model predicts them, and what binds each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.cli import common
from tcomp.cli.display import bars
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.autotune.gpu_predict import StepPrediction
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.request import StepRequest


def predicted_roofline(request: StepRequest, machine: GpuMachine, out: Path | None, figures: Path | None) -> None:
    """Print every kernel of a step on a GPU that need not be here; with `out`, also roofline.png and roofline.json, and
    into the file `figures` what roofline.json has."""
    if out is not None:
        _make_folder(out)
    step, text = _predicted(request, machine)
    print(text, end="")
    plain = json.dumps(as_json(step, machine), indent=1) + "\n"
    if figures is not None:
        common.write_text(figures, plain)
    if out is not None:
        from tcomp.autotune.roofline_plot import plot

        plot(step, machine, out / "roofline.png")
        common.write_text(out / "roofline.json", plain)
        print(f"{out / 'roofline.png'} and roofline.json written")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{out}: cannot make this folder: {e.strerror or e}", "give another --out") from e


def _predicted(request: StepRequest, machine: GpuMachine) -> tuple[StepPrediction, str]:
    from tcomp.autotune.gpu_predict import StepPrediction, launches_of, predict_step
    from tcomp.cli.build_gpu import TargetDevice
    from tcomp.runtime.cache import cache_folder

    built, times = common.build_step(request, TargetDevice(machine)), request.accumulation
    found = []
    with bars() as progress:
        task = progress.add_task("kernels", total=len(launches_of(built.step, times)))
        for item in predict_step(built.step, machine, cache_folder("kernels"), times):
            found.append(item)
            progress.advance(task)
    found.sort(key=lambda item: -item[0].seconds * item[1])
    step = StepPrediction(tuple(found))
    dims_text = ", ".join(f"{k} = {v}" for k, v in built.step.dims.items())
    head = f"{built.name} {built.step.config} ({dims_text}) on {machine.label}: predicted, nothing is measured"
    return step, head + "\n" + step_text(step, machine)


def step_text(step: StepPrediction, machine: GpuMachine) -> str:
    """The table: one row per kernel, longest first; what is to be said of some of them, below it and once."""
    wide = max([34, *(len(k.name) + 1 for k, _ in step.kernels)])
    head = f"{'kernel':{wide}}{'times':>6}{'us each':>11}{'share':>7}  {'bound by':14}"
    lines = [f"{head}{'TFLOP/s':>9}{'TB/s':>7}  of ceiling"]
    total = step.seconds
    numbers: dict[str, int] = {}
    for k, n in step.kernels:
        flops, moved = sum(p.flops for p in k.launches), sum(p.hbm_bytes for p in k.launches)
        # Latency is no ceiling: code that waits less would not have it.
        peak = sum(max(s for name, s in p.parts.items() if name != "latency") for p in k.launches) / k.seconds
        notes = sorted({numbers.setdefault(x, len(numbers) + 1) for p in k.launches for x in p.notes})
        lines.append(
            f"{k.name:{wide}}{n:6}{k.seconds * 1e6:11.1f}{k.seconds * n / total:7.1%}  {k.binding:14}"
            f"{flops / k.seconds / 1e12:9.1f}{moved / k.seconds / 1e12:7.2f}  {min(peak, 1.0):6.0%}"
            + (f"  [{', '.join(map(str, notes))}]" if notes else "")
        )
    launches = sum(n * len(k.launches) for k, n in step.kernels)
    lines.append(f"predicted step: {total * 1e3:.2f} ms, {launches} launches on {machine.name}")
    lines += [f"[{n}] {text}" for text, n in numbers.items()]
    return "\n".join(lines) + "\n"


def as_json(step: StepPrediction, machine: GpuMachine) -> dict[str, object]:
    """The same as plain data."""
    return {
        "basis": "predicted",
        "machine": machine.name,
        "seconds": step.seconds,
        "kernels": [
            {
                "name": k.name, "launches": n, "seconds": k.seconds, "binding": k.binding,
                "parts": [p.parts for p in k.launches], "notes": [x for p in k.launches for x in p.notes],
            }
            for k, n in step.kernels
        ],
    }  # fmt: skip


def ladder_text() -> str:
    """The published kernels, their published TFLOPS and ours predicted from their descriptions."""
    from tcomp.autotune.gpu_ladder import classes, ladder
    from tcomp.autotune.spearman import spearman

    lines = [f"{'bf16 4096 x 4096 x 4096 on H100':62}{'published':>10}{'predicted':>10}  bound by"]
    for title, rows in (("ladder", ladder()), ("classes of kernels", classes())):
        lines.append(f"{title}:")
        lines += [f"  {g.name:60}{g.published:10.0f}{p.tflops:10.0f}  {p.binding}" for g, p in rows]
        rank = spearman([g.published for g, _ in rows], [p.tflops for _, p in rows])
        lines.append(f"  rank correlation (Spearman) {rank:.3f}")
    return "\n".join(lines) + "\n"
