"""`use INSTRUCTION for EQUATION`: each must have found its reduction, and each such reduction must match."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tcomp.dsl.errors import TcError
from tcomp.instructions.matching import MatchError
from tcomp.ir.tile import Buffer, Compute, Kernel, Loop, Pack
from tcomp.ir.walk import computes, statements_in
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.tree.nest import JOINED, PARTIAL, TURN


def check_instructions(
    kernel: Kernel, plan: KernelPlan, match: Callable[[Compute, Mapping[str, Buffer]], object]
) -> None:
    """TcError at the `use` line that cannot be kept, where `match` raises a MatchError."""
    buffers = kernel.buffers
    found: set[str] = set()
    for phase in kernel.phases:
        for c in computes(phase):
            name = c.target.tensor.removesuffix(TURN)
            if not c.instruction:
                continue
            own = next(n for n in plan.uses if n == name or _collects(name, n))
            found.add(own)
            try:
                match(c, buffers)
            except MatchError as e:
                raise TcError(e.message, plan.uses[own].span, e.hint) from None
    for name, use in plan.uses.items():
        if name not in found:
            raise TcError(
                f"'{name}' is not a sum in this kernel, so {use.instruction} cannot compute it",
                use.span,
                "name the equation that sums products of two tensors",
            )


def alone_in_their_loops(kernel: Kernel) -> frozenset[int]:
    """Numbers of the statements that are all that a loop does with what it stages."""
    loops = (s for phase in kernel.phases for s in statements_in(phase) if isinstance(s, Loop))
    bodies = ([s for s in loop.body if not isinstance(s, Pack)] for loop in loops)
    return frozenset(id(body[0]) for body in bodies if len(body) == 1)


def _collects(tile: str, output: str) -> bool:
    """Is it the tile in which an output's sum is collected, or leaves, or a block's part of what is added up in
    memory?"""
    sums, joined, _ = tile.partition(JOINED)
    return (
        tile == output + PARTIAL
        or tile.startswith((f"{output}.sum", f"{output}.out"))
        or (bool(joined) and output in (sums, sums.rpartition(".")[0]))
    )
