"""`tcomp roofline`: every kernel of a step against the least time that this machine's ceilings allow it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits, options
from tcomp.cli.command import Options, command
from tcomp.cli.limits import Range
from tcomp.cli.options import StepOptions
from tcomp.errors import UserError
from tcomp.model.request import StepRequest


@dataclass(frozen=True)
class RooflineStep(StepOptions):
    """The step whose kernels are told."""

    batch: options.Batch = 4
    length: options.Length = 64


@dataclass(frozen=True)
class RooflineOptions(Options):
    """For which machine, and what to do beside the table."""

    device: Annotated[str, typer.Option(help="cpu (on a GPU: tcomp bench).")] = "cpu"
    gpu: Annotated[str, typer.Option(help="Predict for this GPU, which need not be here: h100, a100, b200 ...")] = ""
    threads: options.Threads = 0
    out: Annotated[Path | None, typer.Option(help="--gpu: write roofline.png and roofline.json here.")] = None
    ladder: Annotated[bool, typer.Option("--ladder", help="Hold the GPU model against published kernels.")] = False
    measure: Annotated[bool, typer.Option("--measure", help="Run the step and time each kernel.")] = False
    runs: Annotated[
        int, typer.Option(help="Steps that are timed; the least time of each launch counts."), Range(1, 10_000)
    ] = 5
    json: options.Json = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_writable(self.json)
        if self.ladder and (self.gpu or self.measure or self.out is not None or self.json is not None):
            raise UserError("--ladder prints how the model ranks published kernels, of one GPU", "give no other flag")
        if self.gpu:
            limits.check_threads(self.threads, f"--gpu {self.gpu}")
        if self.gpu and self.measure:
            raise UserError("--measure runs the step on this machine's processors", "leave out --gpu, or --measure")
        if self.out is not None and not self.gpu:
            raise UserError("--out is for predictions", "name a GPU, as in --gpu h100, or write figures by --json FILE")
        if limits.split_device(self.device)[0] != "cpu":
            raise UserError(
                f"--device {self.device}: rooflines are of this machine's processors", "on a GPU use tcomp bench"
            )


@command
def roofline(step: RooflineStep, own: RooflineOptions) -> None:
    """Print every kernel of a training step: its arithmetic, its memory traffic, and the least time that this
    machine's measured ceilings allow, max(FLOPs / peak, bytes / bandwidth, evaluations / rate) + launches; with
    --measure also its time.

    The peak is that of f32 multiply-adds, or of bf16 dot instructions for the kernels that use them; the bandwidth that
    of reading or a triad over arrays larger than the caches (for rows that data chooses, as in embeddings, that of such
    rows in random order), of all threads together; a launch's own time that of an empty kernel. They are measured
    first: the best of several turns, as a kernel's time is its least. exp, tanh, division and the like count no FLOPs;
    the rate of each is that of tcomp's own code on vectors in a cache. A kernel whose operands are in a cache can be
    above 100%. Arithmetic and functions go to the same units, so kernels with much of both (attention, GELU) cannot
    reach that least time. The last column therefore has FLOPs / peak + evaluations / rate in the place of the larger
    one. That is no bound: a kernel may evaluate a function faster than its rate by itself, and be above 100%.

    With --gpu kernels are compiled, assembled and disassembled, and a static model (docs/gpu-model.md) gives
    each a time and the resource that binds it. Those figures are predicted, none is measured.

    Examples:

    - `tcomp roofline gpt2 --gpu h100 --config 124M -B 16 -T 1024 --precision bf16 --out roofline/`

    - `tcomp roofline gpt2 --config 124M -B 4 -T 64 --measure`

    - `tcomp roofline llama --measure --threads 1 --json roofline.json`
    """
    if own.ladder:
        from tcomp.cli.roofline_gpu import ladder_text

        print(ladder_text(), end="")
    elif own.gpu:
        from tcomp.cli.roofline_gpu import predicted_roofline
        from tcomp.machine.gpu import machine_named

        predicted_roofline(step.request(), machine_named(own.gpu), own.out, own.json)
    else:
        _cpu_roofline(step.request(), own)


def _cpu_roofline(request: StepRequest, own: RooflineOptions) -> None:
    """Measure this machine's ceilings, and print the step's kernels against them."""
    from tcomp.machine.cpu import CpuMachine
    from tcomp.runtime.cpu.ceilings import bandwidth, compute_peaks, gather_bandwidth
    from tcomp.runtime.cpu.executor import CpuExecutor
    from tcomp.runtime.cpu.function_ceilings import function_rate
    from tcomp.runtime.cpu.launch_ceiling import launch_cost
    from tcomp.runtime.roofline import Peaks, as_json, kernel_rows, launch_seconds, ready, table
    from tcomp.runtime.train import check_trainable

    built = common.build_step(request, common.device_for(threads=own.threads))
    made = built.step
    check_trainable(made)
    common.note("measuring the ceilings")
    assert isinstance(built.machine, CpuMachine)
    arithmetic = compute_peaks(built.threads, built.machine)
    memory = [bandwidth(kind, built.threads) for kind in ("read", "triad")]
    rows = kernel_rows(made, None, request.accumulation)
    functions = {f: function_rate(f, built.threads) for f in sorted({f for r in rows for f in r.functions})}
    gathers = {row: gather_bandwidth(row, built.threads) for row in sorted({n for r in rows for n in r.gathered})}
    launch = launch_cost(built.threads)
    peaks = Peaks(
        arithmetic[0].high * 1e9,
        max(c.high for c in memory) * 1e9,
        {f: c.high * 1e9 for f, c in functions.items()},
        {c.instruction: c.high * 1e9 for c in arithmetic if c.instruction},
        {row: c.high * 1e9 for row, c in gathers.items()},
        launch.low / 1e6,
    )
    if own.measure:
        executor = built.device.open(made)
        assert isinstance(executor, CpuExecutor)
        try:
            ready(executor, built.threads)
            seconds = launch_seconds(
                executor, own.runs, lambda n: common.note(f"step {n} of {own.runs}"), request.accumulation
            )
            rows = kernel_rows(made, seconds, request.accumulation)
        finally:
            executor.close()
    sizes = ", ".join(f"{name} = {made.dims[name]}" for name in request.sizes if name in made.dims)
    print(f"{made.model} {made.config}, {sizes}, {built.device.description}\n")
    print("\n".join(str(c) for c in (*arithmetic, *memory, *gathers.values(), *functions.values(), launch)) + "\n")
    print(table(rows, peaks), end="")
    if own.json is not None:
        figures = {
            "command": shlex.join(["tcomp", *sys.argv[1:]]), "peak": peaks.flops, "bandwidth": peaks.bandwidth,
            "threads": built.threads, "functions": dict(peaks.functions), "instructions": dict(peaks.instructions),
            "gathers": dict(peaks.gathers), "launch": peaks.launch, "kernels": as_json(rows, peaks),
        }  # fmt: skip
        common.write_text(own.json, json.dumps(figures, indent=1) + "\n")
