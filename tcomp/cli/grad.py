"""`tcomp grad`: the backward of an op, derived from its equations, as `.tc` text."""

from __future__ import annotations

from typing import Annotated

import typer

from tcomp.cli import common
from tcomp.errors import UserError


def grad(
    file: Annotated[str, typer.Argument(help="A .tc file, or one of tcomp's own: ops/linear, gpt2.")],
    op: Annotated[str, typer.Argument(help="The op to differentiate.")],
    written: Annotated[bool, typer.Option("--written", help="The op's own backward, where it has one.")] = False,
) -> None:
    """Print the derived backward of an op. The text parses again: edit it, and give it a schedule.

    Examples:

    - `tcomp grad ops/linear linear_gelu`

    - `tcomp grad gpt2 attention --written`
    """
    from tcomp.dsl.printer import print_op
    from tcomp.grad.derive import derive

    module = common.load_module(file)
    found = common.find_op(module, op)
    own = module.ops.get(f"{op}.backward")
    if written:
        if own is None:
            raise UserError(f"op {op!r} has no backward of its own", f"`tcomp grad {file} {op}` derives one")
        print(print_op(own).rstrip())
        return
    if found.backward_of is not None:
        raise UserError(f"{op!r} is itself a backward", f"name the forward op: {found.backward_of}")
    print(print_op(derive(found, module)).rstrip())
