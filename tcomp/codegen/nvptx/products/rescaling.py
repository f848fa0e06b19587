"""Sums that are rescaled turn by turn where a maximum has grown: left alone by warps none of whose rows grew.

    o[q, e] = o[q, e] * r[q]        -->        if any r of the warp is not 1: o[q, e] = o[q, e] * r[q]

The same bits: a factor is exactly 1 where nothing grew (`schedule/fold.py`, `by_exp2`). It grows ever more seldom, so
long loops save most of the multiplications; in short ones the question costs as much as it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from llvmlite import ir

from tcomp.codegen.llvm.types import F32, I1, I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Access, Binary
from tcomp.ir.tile import Compute, Loop, Scope

TURNS = 64
"""of a loop, from which on it is worth asking"""
SHARED = 8
"""elements that have a factor in common, from which on it is"""


def factor_of(s: Compute, scope: GpuScope) -> str:
    """The register tile whose elements a Compute multiplies its target by, many of the target's by one; "" if it does
    something else."""
    if s.reduced or s.accumulate or s.guard is not None or scope.buffers[s.target.tensor].scope is not Scope.REGISTERS:
        return ""
    match s.value:
        case Binary("*", Access() as a, Access() as b) if a == s.target and b.tensor in scope.fragments:
            own, shared = scope.fragments[s.target.tensor], scope.fragments[b.tensor]
            return b.tensor if len(own) >= SHARED * len(shared) and shared[0].allocated_type == F32 else ""
    return ""


def long(loop: Loop, scope: GpuScope) -> bool:
    """May the loop have many turns?"""
    start, stop = (scope.facts.of(e) for e in (loop.start, loop.stop))
    return start.lo is not None and stop.hi is not None and stop.hi - start.lo >= TURNS * loop.step


def where_any_grew(em: GpuEmitter, scope: GpuScope, factor: str, body: Callable[[], None]) -> None:
    """Emit `body`, to be run by warps that have a factor other than 1."""
    b = em.here()
    one = ir.Constant(F32, 1.0)
    other: list[IrValue] = [b.fcmp_unordered("!=", b.load(s, typ=F32), one) for s in scope.fragments[factor]]
    mine = reduce(b.or_, other, ir.Constant(I1, 0))
    votes = em.nvvm("vote.ballot.sync", I32, [em.i64(-1), mine])
    em.when(em.here().icmp_signed("!=", votes, em.i64(0)), body)
