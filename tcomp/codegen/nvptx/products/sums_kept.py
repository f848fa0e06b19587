"""Sums of products beside other statements that can stay in tensor memory while their loop goes on.

    o = 0;  each turn: ...;  o = o * r;  o += w V;  behind the loop: what reads o

What scales such a sum, if anything does, loads it, multiplies and stores it again, in warps with a factor other than 1
(`tensor_group.py`); all else that meets it stands before or behind the loop. It comes to registers when something
behind the loop reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.nvptx.threads.beside import scales
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Access, Binary, Num
from tcomp.ir.tile import Compute, Loop, Statement
from tcomp.ir.walk import accesses_of, statements_in


def factor_of_sum(phase: Sequence[Statement], node: Compute, scope: GpuScope) -> str | None:
    """The tile that scales what the product `node` of a loop's body adds to, once a turn and before it; "" where
    nothing does. None where anything else meets the sum in the loop, or it does not begin from zero."""
    every = list(statements_in(phase))
    loop = next((s for s in every if isinstance(s, Loop) and any(x is node for x in s.body)), None)
    if loop is None or not node.accumulate:
        return None
    tensor, at = node.target.tensor, next(n for n, s in enumerate(every) if s is loop)
    inside = list(statements_in(loop.body))
    meet = [
        (n, s)
        for n, s in enumerate(every)
        if isinstance(s, Compute) and s is not node and tensor in {a.tensor for a in accesses_of(s)}
    ]
    turn = [s for _, s in meet if any(s is x for x in inside)]
    before = [s for n, s in meet if n < at]
    behind = [s for n, s in meet if n > at and not any(s is t for t in turn)]
    if not before or any(s.value != Num(0.0) or s.reduced for s in before):
        return None
    if any(s.target.tensor == tensor for s in behind) or len(turn) > 1:
        return None
    if not turn:
        return ""
    body = [s for s in loop.body if s is node or s is turn[0]]
    if not scales(turn[0], tensor, scope) or len(body) != 2 or body[0] is node:
        return None
    value = turn[0].value
    assert isinstance(value, Binary)
    assert isinstance(value.left, Access) and isinstance(value.right, Access)
    return value.right.tensor if value.left.tensor == tensor else value.left.tensor
