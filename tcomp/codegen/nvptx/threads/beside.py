"""Sums that threads compute beside a product of their pipe loop, and whose lanes are joined behind it.

    each turn: wait for the tiles; issue the product (wgmma); add up columns of one of its tiles; wait for the product
               of the turn before; release its tiles
    behind the loop: join the lanes

Multiply-adds of CUDA cores so run while the tensor cores are busy, on a tile that is there anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.layout import leading_packs
from tcomp.codegen.nvptx.phase_facts import is_asynchronous
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.codegen.nvptx.threads.join import Joiner
from tcomp.codegen.nvptx.threads.plan import joins_warps, plan_of, sharing_of
from tcomp.dsl.ast import Access, Binary, DType, Num
from tcomp.ir.pairs import paired
from tcomp.ir.reducers import IDENTITY, identity
from tcomp.ir.tile import Compute, Loop, Scope, Statement
from tcomp.ir.walk import accesses_of, statements_in


def sums_beside(loop: Loop, scope: GpuScope) -> list[Compute]:
    """The sums of a turn that only read the tiles of its one product, into registers of their own. They run between
    its issue and its wait, wherever they stand. Empty where that is not all that the turn does."""
    packs = leading_packs(loop)
    own = loop.body[len(packs) :]
    products = [s for s in own if isinstance(s, Compute) and is_asynchronous(s, scope)]
    rest = [s for s in own if isinstance(s, Compute) and s not in products]
    if len(products) != 1 or len(own) != len(rest) + 1 or products[0].late or not products[0].accumulate:
        return []
    tiles = {p.buffer for p in packs if p.by == "tma"}
    results = [s.target.tensor for s in (*products, *rest)]

    def apart(s: Compute) -> bool:
        kept = scope.buffers[s.target.tensor].scope is Scope.REGISTERS and not joins_warps(sharing_of(s, scope.threads))
        return kept and {a.tensor for a in accesses_of(s)} <= {s.target.tensor, *tiles}

    free = all(s.accumulate and not s.instruction for s in rest) and len(set(results)) == len(results)
    return rest if free and all(apart(s) for s in (*products, *rest)) else []


def joined_behind(phase: Sequence[Statement], scope: GpuScope) -> frozenset[int]:
    """Numbers of the sums of which each lane keeps its own part as long as the loop around runs: they begin before it,
    stay in registers, and nothing else in it touches them but to scale them. Their lanes are joined once, behind the
    loop."""
    found: set[int] = set()
    for body in (phase, *(s.body for s in statements_in(phase) if isinstance(s, Loop))):
        for i, loop in enumerate(body):
            if not isinstance(loop, Loop) or loop.level not in ("seq", "pipe") or paired(loop) is not None:
                continue
            inside = [s for s in statements_in(loop.body) if isinstance(s, Compute)]
            for s in loop.body:
                if isinstance(s, Compute) and _keeps_parts(s, inside, scope) and _begins(s, body[:i], scope):
                    found.add(id(s))
    return frozenset(found)


def _keeps_parts(s: Compute, inside: Sequence[Compute], scope: GpuScope) -> bool:
    buffer = scope.buffers[s.target.tensor]
    joined = sharing_of(s, scope.threads).reduced
    lanes = bool(joined) and all(d.startswith("lane") for d in joined)
    meet = [x for x in inside if x is not s and s.target.tensor in {a.tensor for a in accesses_of(x)}]
    alone = all(s.reducer == "sum" and scales(x, s.target.tensor, scope) for x in meet)
    plain = s.accumulate and s.reducer in IDENTITY and not s.instruction and buffer.dtype.bytes >= 4
    return lanes and alone and plain and buffer.scope is Scope.REGISTERS


def scales(x: Compute, tensor: str, scope: GpuScope) -> bool:
    """Does the Compute multiply the tensor's elements by factors of their own, as threads hold them? (A factor times a
    sum is the sum of the parts times the factor.)"""
    if x.reduced or x.accumulate or x.guard is not None or x.only is not None or x.target.tensor != tensor:
        return False
    match x.value:
        case Binary("*", Access() as a, Access() as b):
            factor = b if a == x.target else a if b == x.target else None
            return (
                factor is not None
                and factor.tensor != tensor
                and (scope.buffers[factor.tensor].scope is Scope.REGISTERS)
            )
    return False


def _begins(s: Compute, before: Sequence[Statement], scope: GpuScope) -> bool:
    """Does what the sum adds to begin as the reducer's identity, in the last of these statements that meets it?"""
    for x in reversed(before):
        if s.target.tensor in {a.tensor for c in statements_in((x,)) if isinstance(c, Compute) for a in accesses_of(c)}:
            starts = isinstance(x, Compute) and not x.accumulate and not x.reduced and x.only is None
            whole = scope.buffers[s.target.tensor].dtype is DType.I32
            return starts and isinstance(x, Compute) and x.value == Num(identity(s.reducer or "sum", whole))
    return False


def join_registers(em: GpuEmitter, scope: GpuScope, node: Compute) -> None:
    """Join the parts that lanes keep of a Compute's target, where `phase_facts.joined_behind` lets them."""
    slots = scope.fragments[node.target.tensor]
    with em.frame():
        b = em.here()
        parts = [b.load(s, typ=s.allocated_type) for s in slots]
        whole = Joiner(
            em, scope, node, sharing_of(node, em.threads), node.reducer or "sum", plan_of(node, scope.buffers)
        ).join(parts)
        b = em.here()
        for slot, value in zip(slots, whole, strict=True):
            b.store(value, slot)
