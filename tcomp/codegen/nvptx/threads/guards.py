"""Guards that hold for a whole tile: `k <= q` below the diagonal of causal attention needs no test at any point.

A condition that is affine in the axes holds everywhere when it holds where it is tightest, one uniform test. The
generator then writes the tile's code twice, without the conditions and with them. It fails everywhere when it fails
where it is loosest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.codegen.llvm.conditions import at_most_zero
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Known
from tcomp.codegen.llvm.tiles import Span
from tcomp.codegen.llvm.types import IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.dsl.ast import Expr
from tcomp.ir.tile import Axis


def holds(em: GpuEmitter, scope: GpuScope, e: Expr, spans: Mapping[str, Span]) -> IrValue:
    """Does the comparison hold at every point within these spans?"""
    worst = _extreme(em, scope, e, spans, 1)
    return em.here().icmp_signed("<=", em.i64(worst), em.i64(0))


def fails(em: GpuEmitter, scope: GpuScope, e: Expr, spans: Mapping[str, Span]) -> IrValue:
    """Does it hold at none?"""
    best = _extreme(em, scope, e, spans, -1)
    return em.here().icmp_signed(">", em.i64(best), em.i64(0))


def of_warp(em: GpuEmitter, axes: Sequence[Axis], spans: Mapping[str, Span]) -> dict[str, Span]:
    """The spans of what a warp has of the axes; all of an axis that is not divided among warps, or in turns."""
    found = dict(spans)
    for a in axes:
        s = a.spread
        if s is not None and s.warp and s.warps * s.warp_tile == a.block:
            place = em.coordinate(f"warp.{s.warp}")
            em.here()
            start = em.i64(em.add(spans[a.name].start, em.mul(place, s.warp_tile)))
            found[a.name] = Span(start, s.warp_tile, Known.exact(s.warp_tile))
    return found


def _extreme(em: GpuEmitter, scope: GpuScope, e: Expr, spans: Mapping[str, Span], sign: int) -> Int:
    """The largest value (`sign` 1) or the smallest (-1) of the form that the comparison says is at most zero."""
    form = at_most_zero(e)
    assert form is not None
    em.here()
    found: Int = form.constant
    for name, c in form.terms:
        if name in spans:
            at: Int = spans[name].start
            if c * sign > 0:
                at = em.add(em.add(at, spans[name].length), -1)
        else:
            at = scope.variables[name]
        found = em.add(found, em.mul(at, c))
    return found
