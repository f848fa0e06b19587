"""`tcomp roofline`: every kernel of a step against the least time that this machine's ceilings allow it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits
from tcomp.errors import UserError


def roofline(
    file: Annotated[str, typer.Argument(metavar="MODEL", help="A .tc file, or one of tcomp's own models.")] = "gpt2",
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per step.")] = 4,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 64,
    dim: Annotated[list[str] | None, typer.Option(help="A configuration value: --dim L=2.")] = None,
    precision: Annotated[str, typer.Option(help=common.PRECISION_HELP)] = "",
    device: Annotated[str, typer.Option(help="cpu (on a GPU: tcomp bench).")] = "cpu",
    gpu: Annotated[str, typer.Option(help="Predict for this GPU, which need not be here: h100, a100, b200 ...")] = "",
    accumulation: Annotated[int, typer.Option(help="--gpu: micro-batches per step.")] = 1,
    out: Annotated[Path | None, typer.Option(help="--gpu: write roofline.png and roofline.json here.")] = None,
    ladder: Annotated[bool, typer.Option("--ladder", help="Hold the GPU model against published kernels.")] = False,
    threads: Annotated[int, typer.Option(help="Cores to use; 0: all.")] = 0,
    lock: Annotated[str, typer.Option(help=common.LOCK_HELP)] = "",
    measure: Annotated[bool, typer.Option("--measure", help="Run the step and time each kernel.")] = False,
    runs: Annotated[int, typer.Option(help="Steps that are timed; the least time of each launch counts.")] = 5,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures into this file.")] = None,
) -> None:
    """Print every kernel of a training step: its arithmetic, its memory traffic, and the least time that this
    machine's measured ceilings allow, max(FLOPs / peak, bytes / bandwidth, evaluations / rate) + launches; with
    --measure also its time.

    The peak is that of f32 multiply-adds, or of bf16 dot instructions for the kernels that use them; the bandwidth that
    of reading or a triad over arrays larger than the caches (for rows that data chooses, as in embeddings, that of such
    rows in random order), of all threads together; a launch's own time that of an empty kernel. They are measured
    first: the best of several turns, as a kernel's time is its least. exp, tanh, division and the like count no FLOPs;
    the rate of each is that of tcomp's own code on vectors in a cache. A kernel whose operands are in a cache can be
    above 100%.

    With --gpu kernels are compiled, assembled and disassembled, and a static model (docs/tuning.md says what it knows)
    gives each a time and the resource that binds it. Those figures are predicted, none is measured.

    Examples:

    - `tcomp roofline gpt2 --gpu h100 --config 124M -B 16 -T 1024 --precision bf16 --out roofline/`

    - `tcomp roofline gpt2 --config 124M -B 4 -T 64 --measure`

    - `tcomp roofline llama --measure --threads 1 --json roofline.json`
    """
    from tcomp.machine.cpu import CpuMachine
    from tcomp.runtime.cpu.ceilings import bandwidth, compute_peaks, gather_bandwidth
    from tcomp.runtime.cpu.executor import CpuExecutor
    from tcomp.runtime.cpu.function_ceilings import function_rate
    from tcomp.runtime.cpu.launch_ceiling import launch_cost
    from tcomp.runtime.roofline import Peaks, as_json as figures, kernel_rows, launch_seconds, ready, table
    from tcomp.runtime.train import check_inputs

    numbers = limits.parse_dims(dim or [])
    limits.check_numbers(batch=batch, length=length, threads=threads, runs=runs, accumulation=accumulation)
    limits.check_precision(precision)
    limits.check_writable(as_json)
    if ladder and (gpu or measure or out is not None or as_json is not None):
        raise UserError("--ladder prints how the model ranks published kernels, of one GPU", "give no other flag")
    if gpu and measure:
        raise UserError("--measure runs the step on this machine's processors", "leave out --gpu, or --measure")
    if out is not None and not gpu:
        raise UserError("--out is for predictions", "name a GPU, as in --gpu h100, or write figures by --json FILE")
    if ladder:
        from tcomp.cli.roofline_gpu import ladder_text

        print(ladder_text(), end="")
        return
    if gpu:
        from tcomp.cli.roofline_gpu import predicted_roofline
        from tcomp.machine.gpu import machine_named

        machine = machine_named(gpu)
        shape = (file, config, batch, length, accumulation, numbers, lock, machine, precision)
        predicted_roofline(*shape, out, as_json)
        return
    if limits.split_device(device)[0] != "cpu":
        raise UserError(f"--device {device}: rooflines are of this machine's processors", "on a GPU use tcomp bench")
    built = common.build_step(
        file, config, batch, length, dims=numbers, precision=precision, lock=lock,
        device=common.device_for("cpu", threads=threads),
    )  # fmt: skip
    check_inputs(built.step)
    note("measuring the ceilings")
    assert isinstance(built.machine, CpuMachine)
    arithmetic = compute_peaks(built.threads, built.machine)
    memory = [bandwidth(kind, built.threads) for kind in ("read", "triad")]
    rows = kernel_rows(built.step)
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
    if measure:
        executor = built.device.open(built.step)
        assert isinstance(executor, CpuExecutor)
        try:
            ready(executor, built.threads)
            rows = kernel_rows(built.step, launch_seconds(executor, runs, lambda n: note(f"step {n} of {runs}")))
        finally:
            executor.close()
    step = built.step
    print(f"{step.model} {step.config}, B = {batch}, T = {length}, {built.device.description}\n")
    print("\n".join(str(c) for c in (*arithmetic, *memory, *gathers.values(), *functions.values(), launch)) + "\n")
    print(table(rows, peaks), end="")
    if as_json is not None:
        command = shlex.join(["tcomp", *sys.argv[1:]])
        about: dict[str, object] = {
            "command": command,
            "peak": peaks.flops,
            "bandwidth": peaks.bandwidth,
            "threads": built.threads,
        }
        about |= {"functions": dict(peaks.functions), "instructions": dict(peaks.instructions)}
        about |= {"gathers": dict(peaks.gathers), "launch": peaks.launch}
        common.write_text(as_json, json.dumps({**about, "kernels": figures(rows, peaks)}, indent=1) + "\n")


def note(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)
