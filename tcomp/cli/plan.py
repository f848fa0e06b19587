"""`tcomp plan`: where every byte of a training step lies, and what sets its peak."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from tcomp.cli import common, limits
from tcomp.cli.command import Options, command
from tcomp.cli.limits import Range
from tcomp.cli.options import MANY, DeviceOptions, StepOptions, Zero, sharing_of
from tcomp.errors import UserError


@dataclass(frozen=True)
class PlanOptions(Options):
    """What to plan and to show of it."""

    inference: Annotated[bool, typer.Option("--inference", help="The forward pass alone.")] = False
    largest: Annotated[int, typer.Option(help="How many tensors to list."), Range(0, MANY)] = 12
    ranks: Annotated[
        int, typer.Option(help="Of one of so many processes that share it (docs/distributed.md)."), Range(1, 65536)
    ] = 1
    zero: Zero = 0
    png: Annotated[Path | None, typer.Option(help="Draw time against address into this file.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check_picture(self.png)
        limits.check_writable(self.png)


@command
def plan(step: StepOptions, where: DeviceOptions, own: PlanOptions) -> None:
    """Print the memory plan of a step: parameters, gradients, optimizer state, activations, workspace.

    On CPUs results that one pass over memory makes (normalised rows, activation functions) are computed again in the
    backward pass instead of kept. `--memory unlimited` keeps everything; a budget computes again what it takes, and no
    more.

    Examples:

    - `tcomp plan gpt2 --config 124M -B 4 -T 1024`

    - `tcomp plan models/gpt2.tc --config 124M -B 4 -T 1024 --memory 3GB --png plan.png` shows what is computed again
      to fit, and what that costs

    - `tcomp plan gpt2 --config 124M -B 4 -T 1024 --ranks 8 --zero 1` is what each of eight processes places
    """
    from rich.console import Console

    from tcomp.model.report import plan_report, plan_text

    request = replace(step.request(), sharing=sharing_of(own.ranks, own.zero))
    if own.zero and own.ranks == 1:
        raise UserError("--zero 1 divides the optimizer's state among processes, and there is one", "give --ranks, too")
    if own.inference and own.ranks > 1:
        raise UserError("ranks share training steps, not the forward pass alone", "leave out --inference or --ranks")
    if own.inference:
        request = replace(request, programs=("forward",), keep_logits=True)
    built = common.build_step(request, where.open(), free=False)
    console = Console()
    if console.is_terminal:
        console.print(plan_report(built.step, built.threads, own.largest))
    else:
        print(plan_text(built.step, built.threads, own.largest), end="")
    if own.png is not None:
        from tcomp.model.plan_png import draw_plan

        try:
            draw_plan(built.step, own.png)
        except OSError as e:
            raise UserError(
                f"{own.png}: cannot draw the plan there: {e.strerror or e}",
                "name another place, or make room and permission there",
            ) from e
        print(f"drawn: {own.png}")
