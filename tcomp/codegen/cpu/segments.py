"""How conditions cut the loops over register tiles: tiles where one holds everywhere, in part, nowhere.

    for k in range(0, n, w):                         for k in range(0, a, w):  Y = x[q, k]
      Y = select(k <= q, x[q, k], 0)          -->    for k in range(a, b, w):  Y = select(k <= q, x[q, k], 0)
                                                     for k in range(b, n, w):  Y = 0

a and b are computed for each register tile of the loops around, the outer axis of the condition among them. Where
nothing counts behind the condition (a reduction's guard, a Compute's region) the last loop is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcomp.codegen.cpu.conditions import at_most_zero, chosen_by
from tcomp.codegen.cpu.domain import Domain
from tcomp.codegen.cpu.emitter import Emitter, Int
from tcomp.codegen.cpu.integers import Affine
from tcomp.codegen.cpu.tiles import Variant
from tcomp.dsl.ast import Expr, conjuncts
from tcomp.ir.tile import Axis, Compute

MOST_TESTED = 2
"""conditions of a Compute for which code with and without the test is written"""


@dataclass(frozen=True)
class Condition:
    """`form` <= 0, in the axes' counters; `axis` is the innermost of the Compute's loops that it varies with.

    With `skips` nothing is to be done where it fails. With `tested` it is evaluated at points, unless it holds for the
    whole register tile.
    """

    expression: Expr
    form: Affine
    axis: str
    skips: bool
    tested: bool


@dataclass(frozen=True)
class Segment:
    """Part of an axis's loop, and the conditions that hold or fail in all its tiles."""

    variant: Variant
    known: Mapping[Expr, bool]


def conditions_of(node: Compute, domain: Domain, order: list[Axis]) -> list[Condition]:
    """The Compute's conditions that cut one of its loops, which run in this order."""
    found: dict[Expr, tuple[bool, bool]] = {}
    for e in conjuncts(node.region):
        found[e] = (True, False)
    reduced = {a.name for a in order if a.name in node.reduced}
    for e in conjuncts(node.guard):
        form = at_most_zero(e)
        counts = not reduced or (form is not None and any(n in reduced for n, _ in form.terms))
        found[e] = (counts or found.get(e, (False, False))[0], True)
    for e in chosen_by(node.value):
        found[e] = (found.get(e, (False, False))[0], True)
    out: list[Condition] = []
    for e, (skips, tested) in found.items():
        form = at_most_zero(e, domain.forms)
        if form is None:
            continue
        inside = [a.name for a in order if form.coefficient(f"{a.name}'")]
        if not inside or abs(form.coefficient(f"{inside[-1]}'")) != 1:
            continue
        known = domain.facts.of_affine(form)
        if known.hi is not None and known.hi <= 0 and not tested:
            continue
        if tested and sum(c.tested for c in out) >= MOST_TESTED:
            if not skips:
                continue
            tested = False
        out.append(Condition(e, form, inside[-1], skips, tested))
    return out


def segments(em: Emitter, domain: Domain, axis: Axis, variant: Variant, found: list[Condition]) -> list[Segment]:
    """The variant's loop, cut by the conditions on this axis; bounds are emitted where the builder stands."""
    out = [Segment(variant, {})]
    for c in found:
        if c.axis == axis.name:
            out = [piece for s in out for piece in _cut(em, domain, axis, s, c)]
    return out


def _cut(em: Emitter, domain: Domain, axis: Axis, segment: Segment, c: Condition) -> list[Segment]:
    """One segment by one condition."""
    v = segment.variant
    width = v.unroll * axis.lanes
    low, high = _rest(em, domain, axis, c)
    if c.form.coefficient(f"{axis.name}'") > 0:
        # index + rest <= 0: all of a tile at t while t + width - 1 + high <= 0, none of it from t + low > 0 on.
        all_end, none_start = em.add(em.add(_minus(em, high), 2), -width), em.add(_minus(em, low), 1)
        behind = _smaller(em, v.stop, none_start)
        pieces = [
            (True, v.start, _smaller(em, v.stop, all_end) if c.tested else v.start),
            (None, _aligned(em, v.start, all_end, width) if c.tested else v.start, behind),
            (False, _aligned(em, v.start, none_start, width), v.stop),
        ]
    else:
        # rest <= index: none of a tile at t while t + width - 1 < low, all of it from t >= high on.
        none_end = em.add(low, 1 - width)
        before = _smaller(em, v.stop, none_end)
        first = _aligned(em, v.start, none_end, width)
        pieces = [
            (False, v.start, before),
            (None, first, _smaller(em, v.stop, high) if c.tested else v.stop),
            (True, _aligned(em, v.start, high, width), v.stop if c.tested else v.start),
        ]
    grid = v.start if v.grid is None else v.grid
    out = []
    for holds, start, stop in pieces:
        if (holds is False and c.skips) or _empty(start, stop):
            continue
        known = segment.known if holds is None else {**segment.known, c.expression: holds}
        nonempty = v.nonempty if (start, stop) == (v.start, v.stop) else False
        out.append(Segment(replace(v, start=start, stop=stop, nonempty=nonempty, grid=grid), known))
    return out


def _rest(em: Emitter, domain: Domain, axis: Axis, c: Condition) -> tuple[Int, Int]:
    """The least and the greatest of the condition's form, the axis's own counter left out, over the register tile of
    the loops around."""
    em.here()
    low: Int = c.form.constant
    high: Int = c.form.constant
    for name, k in c.form.terms:
        if name == f"{axis.name}'":
            continue
        if not name.endswith("'"):
            value = em.mul(domain.symbol(name), k)
            low, high = em.add(low, value), em.add(high, value)
            continue
        state = domain.states[name[:-1]]
        base, reach = em.mul(state.base, k), k * (state.unroll * state.lanes - 1)
        low, high = em.add(em.add(low, base), min(reach, 0)), em.add(em.add(high, base), max(reach, 0))
    return low, high


def _aligned(em: Emitter, start: Int, bound: Int, width: int) -> Int:
    """The first tile's place at or behind a bound, of those that begin at `start`."""
    if isinstance(start, int) and isinstance(bound, int):
        return start + max(0, -(-(bound - start) // width)) * width
    b = em.here()
    ahead = em.i64(em.add(em.add(bound, _minus(em, start)), width - 1))
    ahead = b.select(b.icmp_signed("<", ahead, em.i64(0)), em.i64(0), ahead)
    return em.add(start, em.mul(b.udiv(ahead, em.i64(width)), width))


def _minus(em: Emitter, x: Int) -> Int:
    return em.mul(x, -1)


def _smaller(em: Emitter, x: Int, y: Int) -> Int:
    x, y = em.add(x, 0), em.add(y, 0)
    if isinstance(x, int) and isinstance(y, int):
        return min(x, y)
    b = em.here()
    first, second = em.i64(x), em.i64(y)
    return b.select(b.icmp_signed("<", first, second), first, second)


def _empty(start: Int, stop: Int) -> bool:
    return start is stop or (isinstance(start, int) and isinstance(stop, int) and start >= stop)
