"""How much of a Compute one thread unrolls: decided from its axes and buffers alone, before any code is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tcomp.codegen.nvptx.emitter import DIMENSIONS, dimension_size
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.threads.domain import spread_of
from tcomp.codegen.nvptx.threads.turns import turns_of
from tcomp.dsl.ast import Call, names_in, walk
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Axis, Buffer, Compute, Scope
from tcomp.ir.walk import accesses_of

ACCUMULATORS = 224
"""values of a reduction's target that a thread keeps in registers at once"""
POINTS = 32
"""points of a map, or of one step of a reduction's loop body, that are written out: 64 bytes of 16-bit elements are on
their way to a thread then"""
COSTLY = 8
"""the same where each takes many instructions"""
STEPS = 512
"""multiply-adds of a contraction's loop body"""
_COSTLY = {"exp", "log", "tanh", "sin", "cos", "random"}


@dataclass(frozen=True)
class Plan:
    """`turns[a]` is how many turns of axis a go together; 0: all of them, as positions."""

    parallel: tuple[Axis, ...]
    reduced: tuple[Axis, ...]
    turns: Mapping[str, int]
    points: int
    """parallel points of one tile of the thread, at most"""

    def unrolled(self, axis: str) -> bool:
        return self.turns[axis] == 0

    @property
    def whole(self) -> bool:
        """Is every parallel axis unrolled: the thread has one tile only?"""
        return all(self.turns[a.name] == 0 for a in self.parallel)


def plan_of(c: Compute, buffers: Mapping[str, Buffer]) -> Plan:
    """The unrolling of a Compute."""
    parallel = tuple(a for a in c.axes if a.name not in c.reduced)
    reduced = tuple(a for a in c.axes if a.name in c.reduced)
    fixed = {
        n
        for access in accesses_of(c)
        if buffers[access.tensor].scope is Scope.REGISTERS
        for s in access.subscripts
        for n in names_in(s)
    }
    costly = any(isinstance(n, Call) and n.function in _COSTLY for n in walk(c.value))
    limit = ACCUMULATORS if reduced else COSTLY if costly else POINTS
    turns: dict[str, int] = {a.name: 0 for a in c.axes if a.name in fixed}
    points = math.prod(turns_of(a).values for a in parallel if a.name in fixed)
    for a in reversed(parallel):
        t = turns_of(a)
        if a.name in turns:
            continue
        if points * t.values <= limit and (reduced or c.distinct):
            turns[a.name] = 0
            points *= t.values
            continue
        turns[a.name] = _together(t.count, min(limit, POINTS) // max(1, points * len(t.unit)))
        points *= turns[a.name] * len(t.unit)
    body = points * math.prod(turns_of(a).values for a in reduced if a.name in fixed)
    for a in reversed(reduced):
        if a.name in turns:
            continue
        t = turns_of(a)
        most = (COSTLY if costly else STEPS if points >= 16 else POINTS) // max(1, body * len(t.unit))
        turns[a.name] = _divisor(t.count, most) if points >= 16 else _together(t.count, most)
        body *= turns[a.name] * len(t.unit)
    return Plan(parallel, reduced, turns, points)


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`, at least 1."""
    return max((d for d in range(1, min(count, max(1, most)) + 1) if count % d == 0), default=1)


def _together(count: int, most: int) -> int:
    """How many turns go together, of which the loads are on their way at a time: the largest divisor of `count`, unless
    more than twice as many may; what is left over then are turns of their own."""
    d, most = _divisor(count, most), max(1, min(count, most))
    return most if 2 * d <= most else d


@dataclass(frozen=True)
class Sharing:
    """Which thread dimensions of a block a Compute's axes use."""

    parallel: frozenset[str]
    reduced: frozenset[str]
    unused: frozenset[str]
    """dimensions of more than one thread along which no parallel axis is divided: their threads hold equal results"""


def sharing_of(c: Compute, shape: ThreadShape) -> Sharing:
    """UserError when two axes share a dimension, or an axis counts on other numbers of threads than there are."""
    used: dict[str, str] = {}
    for a in c.axes:
        s = spread_of(a)
        for kind, which, count in (("lane", s.lane, s.lanes), ("warp", s.warp, s.warps)):
            if not which:
                continue
            d = f"{kind}.{which}"
            if d in used:
                raise Unsupported(f"'{used[d]}' and '{a.name}' are both divided along {d}", c.span)
            if count != dimension_size(shape, d):
                raise Unsupported(f"'{a.name}' is divided among {count} along {d}, which has "
                                  f"{dimension_size(shape, d)}", c.span)  # fmt: skip
            used[d] = a.name
    parallel = frozenset(d for d, a in used.items() if a not in c.reduced)
    unused = frozenset(d for d in DIMENSIONS if d not in parallel and dimension_size(shape, d) > 1)
    return Sharing(parallel, frozenset(used) - parallel, unused)


def exchange_lanes(sharing: Sharing, shape: ThreadShape) -> int:
    """Lanes of a warp that hold different partial results once its lanes are joined."""
    return math.prod(dimension_size(shape, d) for d in sharing.parallel if d.startswith("lane"))


def joins_warps(sharing: Sharing) -> bool:
    return any(d.startswith("warp") for d in sharing.reduced)
