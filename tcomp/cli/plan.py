"""`tcomp plan`: where every byte of a training step lies, and what sets its peak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits
from tcomp.errors import UserError


def plan(
    file: Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own models.")] = "gpt2",
    config: Annotated[str | None, typer.Option(help="The model's configuration.")] = None,
    batch: Annotated[int, typer.Option("--batch", "-B", help="Sequences per micro-batch.")] = 8,
    length: Annotated[int, typer.Option("--length", "-T", help="Tokens per sequence.")] = 128,
    accumulation: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    dim: Annotated[list[str] | None, typer.Option(help="A configuration value: --dim L=2.")] = None,
    precision: Annotated[str, typer.Option(help=common.PRECISION_HELP)] = "",
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass alone.")] = False,
    device: Annotated[str, typer.Option(help=common.DEVICE_HELP)] = "cpu",
    gpu: Annotated[str, typer.Option(help=common.GPU_HELP)] = "",
    threads: Annotated[int, typer.Option(help="Cores to plan for; 0: all.")] = 0,
    memory: Annotated[str | None, typer.Option(help=common.MEMORY_HELP)] = None,
    largest: Annotated[int, typer.Option(help="How many tensors to list.")] = 12,
    png: Annotated[Path | None, typer.Option(help="Draw time against address into this file.")] = None,
) -> None:
    """Print the memory plan of a step: parameters, gradients, optimizer state, activations, workspace.

    On CPUs results that one pass over memory makes (normalised rows, activation functions) are computed again in the
    backward pass instead of kept. `--memory unlimited` keeps everything; a budget computes again what it takes, and no
    more.

    Examples:

    - `tcomp plan gpt2 --config 124M -B 4 -T 1024`

    - `tcomp plan models/gpt2.tc --config 124M -B 4 -T 1024 --memory 3GB --png plan.png` shows what is computed again
      to fit, and what that costs
    """
    from rich.console import Console

    from tcomp.model.report import plan_report, plan_text

    dims = limits.parse_dims(dim or [])
    limits.check_numbers(batch=batch, length=length, accumulation=accumulation, threads=threads, largest=largest)
    limits.check_device(device, gpu)
    limits.check_precision(precision)
    limits.check_writable(png)
    built = common.build_step(
        file,
        config,
        batch,
        length,
        dims=dims,
        precision=precision,
        accumulation=accumulation,
        device=common.device_for(device, gpu=gpu, threads=threads),
        memory=memory,
        free=False,
        programs=("forward",) if inference else ("train",),
        keep_logits=inference,
    )
    console = Console()
    if console.is_terminal:
        console.print(plan_report(built.step, built.threads, largest))
    else:
        print(plan_text(built.step, built.threads, largest), end="")
    if png is not None:
        from tcomp.model.plan_png import draw_plan

        try:
            draw_plan(built.step, png)
        except (OSError, ValueError) as e:
            raise UserError(f"{png}: cannot draw the plan there: {e}") from e
        print(f"drawn: {png}")
