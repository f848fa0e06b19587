"""Turns of a pipe loop in pairs: the product that opens a turn is issued for two turns before the rest of either.

    each turn: part = X W; acc += part u         two turns: part = X W; part.second = X' W';
                                                            acc += part u beside the second; acc += part.second u'

Each of the two has a result of its own, so the matrix unit has the second product while what follows the first is done
with it. Sums keep their order: results are those of one turn after the other.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Access, Expr, accesses_in, bottom_up
from tcomp.ir.rewrite import map_expressions
from tcomp.ir.tile import Compute, Loop, Pack, Statement

SECOND = ".second"
"""what the name of a result ends in that is the second turn's of a pair"""


def paired(loop: Loop) -> Compute | None:
    """The product that a pipe loop issues for two turns at a time: one marked `late` that opens a turn, does not add to
    what was there, and is read by what follows it. None for a loop that is no such."""
    own = [s for s in loop.body if not isinstance(s, Pack)]
    if loop.level != "pipe" or not own or not all(isinstance(s, Compute) for s in own):
        return None
    first, *rest = (s for s in own if isinstance(s, Compute))
    if not first.late or first.accumulate or any(s.late or s.instruction for s in rest):
        return None
    return first if any(first.target.tensor in tensors(s) for s in rest) else None


def tensors(c: Compute) -> set[str]:
    """All that it reads and writes."""
    return {c.target.tensor, *(a.tensor for e in (c.value, c.guard) if e is not None for a in accesses_in(e))}


def of_second(body: tuple[Statement, ...], product: Compute) -> tuple[Statement, ...]:
    """The statements of the second turn of a pair, whose product has a result of its own."""
    name = product.target.tensor

    def second(e: Expr) -> Expr:
        return replace(e, tensor=name + SECOND) if isinstance(e, Access) and e.tensor == name else e

    return tuple(map_expressions(s, lambda e: bottom_up(e, second)) if isinstance(s, Compute) else s for s in body)
