"""A loop of a reduction with other work beside it: cut in parts, a piece of that work before each.

for k: the step    -->    for each part: a piece; for k in the part: the step        and what is left over
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tcomp.codegen.cpu.prefetch import quotient
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.tiles import Variant
from tcomp.codegen.llvm.types import IrValue

LoopBody = Callable[[Int, list[IrValue]], Sequence[IrValue]]


class Beside(Protocol):
    """Work that is done beside a reduction, in pieces."""

    def part(self, steps: int) -> int:
        """How many of so many turns of the loop come between two pieces."""
        ...

    def piece(self) -> None: ...


def loop_beside(
    em: Emitter, beside: Beside, v: Variant, step: int, turns: int, acc: list[IrValue], body: LoopBody
) -> list[IrValue]:
    """The variant's loop of at most so many `turns`, and a piece of the work `beside` it before each part; gives the
    accumulators after it."""
    part = beside.part(turns) * step
    b = em.here()
    length = em.add(v.stop, em.mul(v.start, -1))
    stop = em.add(v.start, em.mul(quotient(b, length, part), part))

    def parts(base: Int, carried: Sequence[IrValue]) -> Sequence[IrValue]:
        beside.piece()
        em.here()
        return em.loop(base, em.add(base, part), step, carried, body, nonempty=True)

    acc = em.loop(v.start, stop, part, acc, parts)
    return em.loop(stop, v.stop, step, acc, body)
