"""Guards that hold for a whole tile: `k <= q` below the diagonal of causal attention needs no test at any point.

A condition that is affine in the axes holds everywhere when it holds where it is tightest, one uniform test. The
generator then writes the tile's code twice, without the conditions and with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tcomp.codegen.cpu.emitter import Int
from tcomp.codegen.cpu.integers import Affine, affine_form
from tcomp.codegen.cpu.tiles import Span
from tcomp.codegen.cpu.types import IrValue
from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.dsl.ast import Binary, Call, Expr, children, rebuild, walk
from tcomp.ir.tile import Compute

_TURNED = {">": "<", ">=": "<="}


def conditions(c: Compute) -> list[Expr]:
    """The comparisons that guard a Compute, or choose within its value, and are affine in its axes."""
    found = list(_conjuncts(c.guard)) if c.guard is not None else []
    for e in walk(c.value):
        if isinstance(e, Call) and e.function == "select":
            found += _conjuncts(e.args[0])
    axes = {a.name for a in c.axes}
    out = []
    for e in dict.fromkeys(found):
        form = _at_most_zero(e)
        if form is not None and any(n in axes for n, _ in form.terms):
            out.append(e)
    return out


def _conjuncts(e: Expr) -> Iterator[Expr]:
    if isinstance(e, Binary) and e.op == "and":
        yield from _conjuncts(e.left)
        yield from _conjuncts(e.right)
    else:
        yield e


def _at_most_zero(e: Expr) -> Affine | None:
    """A comparison as `affine <= 0`."""
    if not isinstance(e, Binary) or e.op not in ("<", "<=", ">", ">="):
        return None
    left, right = affine_form(e.left), affine_form(e.right)
    if left is None or right is None:
        return None
    form = right - left if e.op in _TURNED else left - right
    return form + Affine((), 1) if e.op in ("<", ">") else form


def holds(em: GpuEmitter, scope: GpuScope, e: Expr, spans: Mapping[str, Span]) -> IrValue:
    """Does the comparison hold at every point within these spans?"""
    form = _at_most_zero(e)
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


def without(e: Expr, held: list[Expr]) -> Expr:
    """The expression where these conditions hold: `select(c, a, b)` --> `a`."""
    kids = tuple(without(k, held) for k in children(e))
    e = rebuild(e, kids) if kids else e
    match e:
        case Call("select", (c, a, _)) if all(x in held for x in _conjuncts(c)):
            return a
    return e


def remaining(guard: Expr | None, held: list[Expr]) -> Expr | None:
    """What is left of a guard where these conditions hold."""
    out: Expr | None = None
    for e in _conjuncts(guard) if guard is not None else ():
        if e not in held:
            out = e if out is None else Binary("and", out, e)
    return out
