"""How conditions cut the loops over register tiles: tiles where one holds everywhere, in part, nowhere.

    for k in range(0, n, w):                         for k in range(0, a, w):  Y = x[q, k]
      Y = select(k <= q, x[q, k], 0)          -->    for k in range(a, b, w):  Y = select(k <= q, x[q, k], 0)
                                                     for k in range(b, n, w):  Y = 0

    for p in range(0, n, w):                         for p in range(0, a, w):      Y = x[p]
      Y = select(p == t[m], x[p] - 1, x[p])  -->     for p in range(a, a + w, w):  Y = select(p == t[m], x[p] - 1, x[p])
                                                     for p in range(a + w, n, w):  Y = x[p]

a and b are computed for each register tile of the loops around, the outer axis of the condition among them. Where
nothing counts behind the condition (a reduction's guard, a Compute's region) the last loop is not there. A register
tile of several vectors that would run past such a condition becomes one of those vectors that are needed:

    k in 0 .. 64 unroll 2 x 16 lanes, needed up to 39   -->   0 .. 32 by 2 vectors, 32 .. 48 by one
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.codegen.llvm.conditions import at_most_zero, chosen_by
from tcomp.codegen.llvm.domain import Domain
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.integers import Affine
from tcomp.codegen.llvm.tiles import Variant
from tcomp.dsl.ast import Binary, Expr, Name, accesses_in, conjuncts, names_in
from tcomp.ir.tile import Axis, Compute

MOST_TESTED = 2
"""conditions of a Compute for which code with and without the test is written"""
MOST_SINGLE = 1
"""equalities for which it is: each makes three loops of one"""
LATENCY = 8
"""sums that have to run side by side: two units, each with a result four cycles later"""


@dataclass(frozen=True)
class Condition:
    """`form` <= 0, in the axes' counters; `axis` is the innermost of the Compute's loops that it varies with, by steps
    of one, or, of conditions that are not tested, of a power of two (groups of a summed index).

    With `skips` nothing is to be done where it fails. With `tested` it is evaluated at points, unless it holds for the
    whole register tile.
    """

    expression: Expr
    form: Affine
    axis: str
    skips: bool
    tested: bool

    @property
    def bends(self) -> bool:
        """Whether it varies with several loops of the Compute, so that one has more turns here, fewer there."""
        return sum(name.endswith("'") for name, _ in self.form.terms) > 1


@dataclass(frozen=True)
class Single:
    """An equality of `axis` and a `value` that none of the Compute's axes changes: it fails in all tiles but one."""

    expression: Expr
    axis: str
    value: Expr


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
        if not inside:
            continue
        step = abs(form.coefficient(f"{inside[-1]}'"))
        if step != 1 and (tested or step & (step - 1)):
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


def singles_of(node: Compute) -> list[Single]:
    """The equalities that choose within the Compute's value and hold in one tile of an axis at most."""
    axes = {a.name for a in node.axes}
    out: list[Single] = []
    for e in dict.fromkeys(chosen_by(node.value)):
        if isinstance(e, Binary) and e.op == "==":
            for index, value in ((e.left, e.right), (e.right, e.left)):
                own = any(a.tensor == node.target.tensor for a in accesses_in(value))
                if isinstance(index, Name) and index.id in axes and not names_in(value) & axes and not own:
                    out.append(Single(e, index.id, value))
                    break
    return out[:MOST_SINGLE]


def can_narrow(node: Compute, parallel: Sequence[Axis], found: Sequence[Condition]) -> bool:
    """Whether a sum's register tiles of several vectors may be one vector wide before a condition behind which nothing
    is needed: where the sums that are left still hide the latency."""
    wide = [a for a in parallel if a.lanes > 1 and a.unroll > 1]
    rows = math.prod(a.unroll for a in parallel if a.lanes == 1)
    if not node.reduced or not wide or rows < LATENCY or not node.distinct:
        return False
    others = [f"{a.name}'" for a in parallel if a.lanes == 1]
    cuts = (c.form for c in found if c.skips and not c.tested)
    return any(f.coefficient(f"{wide[0].name}'") > 0 and any(map(f.coefficient, others)) for f in cuts)


def segments(
    em: Emitter,
    domain: Domain,
    axis: Axis,
    variant: Variant,
    found: list[Condition],
    singles: Sequence[tuple[Single, Int]] = (),
    narrows: bool = False,
) -> list[Segment]:
    """The variant's loop, cut by the conditions on this axis; bounds are emitted where the builder stands. Each of
    `singles` comes with its value. With `narrows` the last tile before such a cut may be one vector wide."""
    out = [Segment(variant, {})]
    for c in found:
        if c.axis == axis.name:
            out = [piece for s in out for piece in _cut(em, domain, axis, s, c)]
            if narrows and c.skips and not c.tested and c.form.coefficient(f"{axis.name}'") > 0:
                out = [piece for s in out for piece in _narrowed(em, axis, s)]
    for single, value in singles:
        if single.axis == axis.name:
            out = [piece for s in out for piece in _cut_out(em, domain, axis, s, single, value)]
    return out


def _cut_out(em: Emitter, domain: Domain, axis: Axis, segment: Segment, c: Single, value: Int) -> list[Segment]:
    """One segment by the tile in which an equality may hold."""
    v = segment.variant
    width = v.unroll * axis.lanes
    b = em.here()
    ahead = em.i64(em.add(em.add(value, _minus(em, domain.starts[axis.name])), _minus(em, v.start)))
    # The number of the tile; one before the first where the value lies before the segment.
    number = b.select(b.icmp_signed("<", ahead, em.i64(0)), em.i64(-1), b.udiv(ahead, em.i64(width)))
    at = em.add(v.start, em.mul(number, width))
    first = _greater(em, v.start, _smaller(em, v.stop, at))
    behind = _greater(em, v.start, _smaller(em, v.stop, em.add(at, width)))
    grid = v.start if v.grid is None else v.grid
    pieces = [(False, v.start, first), (None, first, behind), (False, behind, v.stop)]
    return [
        Segment(
            replace(v, start=start, stop=stop, nonempty=False, grid=grid),
            segment.known if holds is None else {**segment.known, c.expression: holds},
        )
        for holds, start, stop in pieces
    ]


def _cut(em: Emitter, domain: Domain, axis: Axis, segment: Segment, c: Condition) -> list[Segment]:
    """One segment by one condition."""
    v = segment.variant
    width = v.unroll * axis.lanes
    low, high = _rest(em, domain, axis, c)
    step = c.form.coefficient(f"{axis.name}'")
    if step > 0:
        # index + rest <= 0: all of a tile at t while t + width - 1 + high <= 0, none of it from t + low > 0 on.
        low, high = (_minus(em, _quotient(em, _minus(em, x), step)) for x in (low, high))
        all_end, none_start = em.add(em.add(_minus(em, high), 2), -width), em.add(_minus(em, low), 1)
        behind = _smaller(em, v.stop, none_start)
        pieces = [
            (True, v.start, _smaller(em, v.stop, all_end) if c.tested else v.start),
            (None, _aligned(em, v.start, all_end, width) if c.tested else v.start, behind),
            (False, _aligned(em, v.start, none_start, width), v.stop),
        ]
    else:
        # rest <= index: none of a tile at t while t + width - 1 < low, all of it from t >= high on.
        low, high = (_minus(em, _quotient(em, _minus(em, x), -step)) for x in (low, high))
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


def _narrowed(em: Emitter, axis: Axis, segment: Segment) -> list[Segment]:
    """Tiles of several vectors as far as their last one is needed, and the vectors left one by one."""
    v = segment.variant
    width = v.unroll * axis.lanes
    if v.unroll == 1 or v.partial or isinstance(v.stop, int):
        return [segment]
    b = em.here()
    ahead = em.i64(em.add(em.add(v.stop, _minus(em, v.start)), axis.lanes - 1))
    ahead = b.select(b.icmp_signed("<", ahead, em.i64(0)), em.i64(0), ahead)
    wide_end = em.add(v.start, em.mul(b.udiv(ahead, em.i64(width)), width))
    wide = replace(v, stop=wide_end, nonempty=False)
    rest = replace(v, start=wide_end, unroll=1, nonempty=False)
    return [replace(segment, variant=x) for x in (wide, rest)]


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


def _quotient(em: Emitter, x: Int, step: int) -> Int:
    """x / step rounded down; `step` is a power of two."""
    x = em.add(x, 0)
    if isinstance(x, int):
        return x // step
    if step == 1:
        return x
    return em.here().ashr(x, em.i64(step.bit_length() - 1))


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


def _greater(em: Emitter, x: Int, y: Int) -> Int:
    b = em.here()
    first, second = em.i64(x), em.i64(y)
    return b.select(b.icmp_signed(">", first, second), first, second)


def _empty(start: Int, stop: Int) -> bool:
    return start is stop or (isinstance(start, int) and isinstance(stop, int) and start >= stop)
