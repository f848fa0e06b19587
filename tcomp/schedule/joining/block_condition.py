"""In which blocks, and turns of their loops, a sum is computed that stands beside another (`beside.py`)."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.dsl.ast import Binary, Expr, Num, conjunction
from tcomp.schedule.fold import fold
from tcomp.schedule.tree.nest import Leaf


def block_condition(leaf: Leaf, starts: Mapping[str, Expr], summing: bool) -> Expr | None:
    """Where a sum beside others is computed: in the first blocks along what it lacks, or (while `summing`) in the
    block to which the turn is dealt. `starts` are the values at which the tiles of the indices begin."""
    wanted: list[Expr] = []
    for index in sorted(leaf.beside) if not leaf.again else ():
        dealt = leaf.dealt
        if dealt is None or dealt.blocks.index != index:
            wanted.append(Binary("==", starts[index], Num(0)))
        elif summing:
            turn = fold(Binary("//", starts[dealt.turns.index], Num(dealt.turns.block or 1)))
            number = fold(Binary("//", starts[index], Num(dealt.blocks.block or 1)))
            wanted.append(Binary("==", fold(Binary("%", turn, Num(dealt.count))), number))
    return conjunction(c for c in wanted if c != Binary("==", Num(0), Num(0)))
