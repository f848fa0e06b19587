"""Guards that hold for a whole tile: `k <= q` below the diagonal of causal attention needs no test at any point.

A condition that is affine in the axes holds everywhere when it holds where it is tightest, one uniform test. The
generator then writes the tile's code twice, without the conditions and with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.codegen.cpu.conditions import at_most_zero
from tcomp.codegen.cpu.emitter import Int
from tcomp.codegen.cpu.tiles import Span
from tcomp.codegen.cpu.types import IrValue
from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.dsl.ast import Expr


def holds(em: GpuEmitter, scope: GpuScope, e: Expr, spans: Mapping[str, Span]) -> IrValue:
    """Does the comparison hold at every point within these spans?"""
    form = at_most_zero(e)
    assert form is not None
    em.here()
    worst: Int = form.constant
    for name, c in form.terms:
        if name in spans:
            at: Int = spans[name].start
            if c > 0:
                at = em.add(em.add(at, spans[name].length), -1)
        else:
            at = scope.variables[name]
        worst = em.add(worst, em.mul(at, c))
    return em.here().icmp_signed("<=", em.i64(worst), em.i64(0))
