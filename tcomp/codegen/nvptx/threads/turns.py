"""How a thread walks its values of one axis: all of them unrolled, or turns in a machine loop with a remainder.

    unrolled   every (warp turn, lane turn, v) is a position known here; needed where register tiles are indexed
    looped     full turns without any check, then single turns whose values are checked against the axis's end

All trip counts are the same for every thread of the block, so barriers and shuffles may stand inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import IrValue
from tcomp.codegen.nvptx.threads.domain import AxisPlace, GpuDomain, spread_of
from tcomp.ir.tile import Axis, Spread

Body = Callable[[list[IrValue]], list[IrValue]]


class Value(NamedTuple):
    """One value of an axis: its `offset` before the thread's own, and where that is `within` the warp's tile."""

    offset: int
    within: int


@dataclass(frozen=True)
class Turns:
    """`count` turns, `stride` values apart, each with the values `unit` (offsets, before the thread's own)."""

    unit: tuple[int, ...]
    stride: int
    count: int

    @property
    def values(self) -> int:
        return len(self.unit) * self.count

    def together(self, turns: int) -> list[Value]:
        """The values of that many turns."""
        return [Value(t * self.stride + u, u) for t in range(turns) for u in self.unit]


def turns_of(axis: Axis) -> Turns:
    """The turns of a thread over the axis's block."""
    s = spread_of(axis)
    step = s.lanes * s.grain
    lane_turns, warp_turns = s.lane_turns(axis.block), s.warp_turns(axis.block)
    if not s.warp or (warp_turns == 1 and s.warp_tile % step == 0):
        return Turns(tuple(range(s.grain)), step, lane_turns)
    unit = tuple(t * step + v for t in range(lane_turns) for v in range(s.grain))
    return Turns(unit, s.warps * s.warp_tile, warp_turns)


def reach(s: Spread) -> int:
    """The largest offset that a thread's place adds."""
    return (s.warps - 1) * s.warp_tile * bool(s.warp) + (s.lanes - 1) * s.grain * bool(s.lane)


class Walker:
    """Enters axes into a domain, position by position or turn by turn."""

    def __init__(self, domain: GpuDomain) -> None:
        self.domain = domain
        self.em = domain.gpu

    def unrolled(self, axis: Axis, whole: bool = False) -> None:
        """All of the thread's values as positions of the innermost frame, but for those that surely lie past the
        axis's end (`whole`: those too)."""
        turns = turns_of(axis)
        values = turns.together(turns.count)
        self._enter(axis, 0, values, list(range(len(values))), sure=False, whole=whole)

    def looped(self, axis: Axis, at_once: int, carried: list[IrValue], body: Body) -> list[IrValue]:
        """Run `body` for every turn, `at_once` of them together while all their values surely exist."""
        em, turns = self.em, turns_of(axis)
        span = self.domain.spans[axis.name]
        together = turns.together(at_once)
        step = turns.stride * at_once
        need = reach(spread_of(axis)) + max(t.offset for t in together) + 1
        length, known = span.length, span.known
        em.here()
        full: Int
        whole = need <= step and known.multiple_of(step)
        if isinstance(length, int):
            full = max(0, (length - need) // step + 1) * step
        elif whole:
            full = length
        elif known.hi is not None and known.hi < need:
            full = 0
        else:
            b = em.builder
            least = b.sub(em.i64(length), em.i64(need - step), flags=("nsw",))
            groups = b.sdiv(least, em.i64(step))
            groups = b.select(b.icmp_signed("<", groups, em.i64(0)), em.i64(0), groups)
            full = em.mul(groups, step)

        def run(at: Sequence[Value], sure: bool) -> Callable[[Int, list[IrValue]], Sequence[IrValue]]:
            def one(base: Int, values: list[IrValue]) -> Sequence[IrValue]:
                self._enter(axis, base, at, None, sure)
                return body(list(values))

            return one

        carried = em.loop(0, full, step, carried, run(together, True), whole and (known.lo or 0) > 0)
        if whole:
            return carried
        stop: Int = length
        if spread_of(axis).warp and turns.count * turns.stride < axis.block:
            stop = turns.count * turns.stride  # the other warps' tiles lie beyond
        return em.loop(full, stop, turns.stride, carried, run(turns.together(1), False))

    def _enter(
        self,
        axis: Axis,
        base: Int,
        values: Sequence[Value],
        numbers: Sequence[int] | None,
        sure: bool,
        whole: bool = False,
    ) -> None:
        """The axis's place in the innermost frame. `sure`: all values lie inside the axis."""
        em, s = self.em, spread_of(axis)
        known = self.domain.spans[axis.name].known
        thread = em.thread_offset(s)
        multiple = _thread_multiple(s)
        shift = 0
        if isinstance(base, int):
            shift, base = base, 0
        else:
            multiple = math.gcd(multiple, turns_of(axis).stride)
        kept: list[tuple[int, int | None, bool, IrValue | None]] = []
        for i, (offset, within) in enumerate(values):
            if s.warp and within >= s.warp_tile and kept:
                continue  # the last lane turn's, past the warp's tile
            at = offset + shift
            fixed = isinstance(base, int)
            if fixed and not sure and not whole and known.hi is not None and at >= known.hi and (kept or known.hi <= 0):
                continue
            inside = sure or (fixed and known.lo is not None and reach(s) + at < known.lo)
            kept.append((at, None if numbers is None else numbers[i], not inside, self._owned(s, within)))
        self.domain.enter(
            axis.name,
            AxisPlace(
                em.depth, base, thread, s, tuple(k[0] for k in kept), tuple(k[1] for k in kept),
                tuple(k[2] for k in kept), tuple(k[3] for k in kept), multiple,
            ),
        )  # fmt: skip

    def _owned(self, s: Spread, within: int) -> IrValue | None:
        """Does a value at that place, before the lane's own, lie within the warp's tile? None: surely."""
        if _surely_owned(s, within):
            return None
        em = self.em
        lane: Int = em.coordinate(f"lane.{s.lane}") if s.lane else 0

        def make() -> IrValue:
            b = em.builder
            place = em.i64(em.mul(lane, s.grain))
            return b.icmp_signed("<", place, em.i64(s.warp_tile - within))

        return em.once(0, ("owned", s, within), make)


def walked(axis: Axis) -> int:
    """Values from the axis's start to the last that any thread walks: at least the block."""
    turns = turns_of(axis)
    return max(axis.block, reach(spread_of(axis)) + turns.together(turns.count)[-1].offset + 1)


def divides_evenly(axis: Axis) -> bool:
    """Does every value of the axis's block belong to one place among the threads?"""
    turns = turns_of(axis)
    owned = all(_surely_owned(spread_of(axis), v.within) for v in turns.together(turns.count))
    return walked(axis) == axis.block and owned


def _surely_owned(s: Spread, within: int) -> bool:
    return not s.warp or within + (s.lanes - 1) * s.grain < s.warp_tile


def _thread_multiple(s: Spread) -> int:
    """What divides the thread's own part of an offset (0 when it has none)."""
    return math.gcd(s.grain if s.lane and s.lanes > 1 else 0, s.warp_tile if s.warp and s.warps > 1 else 0)
