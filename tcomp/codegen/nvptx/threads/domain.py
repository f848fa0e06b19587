"""The part of a Compute that one thread works on: where each axis stands, which values exist, which may lie outside.

An axis's values for one thread are `start + thread offset + base + offset`: the thread offset is fixed by the
thread's lane and warp, `base` counts turns that are a machine loop, and `offset` is a number known here. A `Point`
gives for each axis the position in its list of offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tcomp.codegen.llvm.domain import Domain, Scope as CpuScope
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Affine, Facts, Known
from tcomp.codegen.llvm.tiles import Span
from tcomp.codegen.llvm.types import I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Axis, Spread

Point = Mapping[str, int]


@dataclass
class GpuScope(CpuScope):
    """What surrounds a statement: buffers and their base addresses, loop variables, known facts, the block.

    `levels` is the frame of each loop variable and root (0 where absent). `fragments` holds the elements of buffers
    in registers. `constant` names operands that nobody writes while the kernel runs.
    """

    threads: ThreadShape = ThreadShape()
    target: str = ""
    levels: dict[str, int] = field(default_factory=dict)
    fragments: dict[str, list[IrValue]] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()
    bounded: frozenset[str] = frozenset()
    """register buffers whose elements are used within one range only: what lies past its end is never read"""
    zeroed: frozenset[str] = frozenset()
    """tiles that matrix instructions read whole: what lies past an axis's end must be 0 in them"""
    filled: frozenset[str] = frozenset()
    """shared tiles that are filled whole, with zeros or (by copies) a neighbour's values past an axis's end"""
    delivered: frozenset[str] = frozenset()
    """tiles that the copy engine carries to a tensor, of which only what lies inside of it is written"""
    copies: dict[str, tuple[IrValue, Int, int]] = field(default_factory=dict)
    """tiles of a ring: the first copy's address, which copy the name means, bytes from one to the next"""
    exchange: dict[int, IrValue] = field(default_factory=dict)
    """shared memory in which a Compute (by its number) joins results of several warps"""


@dataclass
class AxisPlace:
    """One axis in the current loop nest. `numbers` are the elements of a register tile that the positions are
    (None inside a turn loop). `checked` and `owned` say which positions may lie past the axis's end, and past the
    end of the warp's tile. `multiple` divides the thread offset and the base (0: both are 0)."""

    level: int
    base: Int
    thread: Int
    spread: Spread
    offsets: tuple[int, ...]
    numbers: tuple[int | None, ...]
    checked: tuple[bool, ...]
    owned: tuple[IrValue | None, ...]
    multiple: int

    def known(self, position: int, block: int) -> Known:
        """What is known of the offset from the axis's start at a position."""
        offset = self.offsets[position]
        if self.multiple == 0:
            return Known.exact(offset)
        return Known(0, max(0, block - 1), self.multiple, offset % self.multiple)


@dataclass
class GpuDomain(Domain):
    """The axes of one Compute or Pack, by name."""

    places: dict[str, AxisPlace] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)

    @property
    def gpu(self) -> GpuEmitter:
        assert isinstance(self.emitter, GpuEmitter)
        return self.emitter

    @property
    def block(self) -> GpuScope:
        assert isinstance(self.scope, GpuScope)
        return self.scope

    def level_of(self, deps: frozenset[str]) -> int:
        """The frame in which something that varies with these axes is computed."""
        return max((self.places[a].level for a in deps), default=self.level)

    def enter(self, axis: str, place: AxisPlace) -> None:
        self.places[axis] = place

    # ------------------------------------------------------------------------------------ along one axis

    def offset(self, axis: str, position: int, group: int = 1) -> IrValue | int:
        """The offset from the axis's start, kept inside the axis; `group` values from there on lie inside."""
        place = self.places[axis]
        em = self.gpu
        em.at(place.level)
        if not place.checked[position]:
            return em.add(em.add(place.thread, place.base), place.offsets[position])
        kept = self.kept(axis, position, group)
        em.at(place.level)
        return em.add(kept, place.offsets[position])

    def kept(self, axis: str, position: int, group: int = 1) -> IrValue:
        """The same without the position's own number, of a position that may lie past the axis's end: the smaller of
        an offset that all positions of the thread share and a limit that all threads share. LLVM is not shown that it
        is a minimum: it would compute every position's address at the head of the loop, long before it is used, and
        keep them all."""
        place, em = self.places[axis], self.gpu

        def make() -> IrValue:
            start = em.add(place.thread, place.base)
            limit = em.add(self.spans[axis].length, -group - place.offsets[position])
            if isinstance(start, int) and isinstance(limit, int):
                return em.i64(min(start, limit))
            return em.asm("min.s32 $0, $1, $2;", I32, "=r,r,r", [em.i64(start), em.i64(limit)])

        em.at(place.level)
        return em.once(place.level, self.inside_key(axis, position, group), make)

    def inside_key(self, axis: str, position: int, group: int) -> tuple[object, ...]:
        """Names a clamped offset by what it is made of."""
        place = self.places[axis]
        parts = (place.base, place.thread, self.spans[axis].length)
        return ("inside", *(p if isinstance(p, int) else id(p) for p in parts), place.offsets[position], group)

    def mask(self, point: Point, axes: frozenset[str] | None = None) -> IrValue | None:
        """Does the point (along `axes`) lie inside the domain and belong to this thread? None: surely.

        The conditions of all axes are joined in the innermost of their frames.
        """
        parts = [(self.places[a].level, m) for a in sorted(point) if axes is None or a in axes
                 if (m := self._axis_mask(a, point[a])) is not None]  # fmt: skip
        if not parts:
            return None
        b = self.gpu.at(max(level for level, _ in parts))
        total = parts[0][1]
        for _, m in parts[1:]:
            total = b.and_(total, m)
        return total

    def _axis_mask(self, axis: str, position: int) -> IrValue | None:
        place = self.places[axis]
        em = self.gpu
        owned = place.owned[position]
        if not place.checked[position]:
            return owned

        def make() -> IrValue:
            inside = em.builder.icmp_signed("<", em.i64(self._beyond(axis)), em.i64(-place.offsets[position]))
            return inside if owned is None else em.builder.and_(inside, owned)

        return em.once(place.level, ("mask", id(owned), *self.inside_key(axis, position, 1)), make)

    def _beyond(self, axis: str) -> Int:
        """How far beyond the axis's end the thread's values start: one number that all positions share, so that each
        compares it with a constant."""
        place, em = self.places[axis], self.gpu
        parts = (place.base, place.thread, self.spans[axis].length)

        def add() -> Int:
            return em.add(em.add(place.thread, place.base), em.mul(self.spans[axis].length, -1))

        key = ("beyond", *(p if isinstance(p, int) else id(p) for p in parts))
        found: Int = em.once(place.level, key, add)
        em.at(place.level)
        return found

    # ------------------------------------------------------------------------------------------ groups

    def run(self, axis: str, position: int, n: int, roomy: bool = False) -> int | None:
        """The position where an aligned run of n neighbouring values that contains `position` begins; None if there
        is no such run, or it could end beyond the axis's end halfway (where `roomy`, what lies there is there too)."""
        place = self.places[axis]
        if place.multiple % n:
            return None
        offset = place.offsets[position]
        first = position - offset % n
        run = range(first, first + n)
        if first < 0 or run[-1] >= len(place.offsets):
            return None
        if any(place.offsets[p] != offset - offset % n + j for j, p in enumerate(run)):
            return None
        if len({place.checked[p] for p in run}) > 1 or len({id(place.owned[p]) for p in run}) > 1:
            return None
        return first if roomy or not place.checked[first] or self.spans[axis].known.multiple_of(n) else None

    def aligned(self, form: Affine, point: Point, along: str, n: int, roomy: bool = False) -> bool:
        """Is an affine offset surely a multiple of n at this point, the first of n along an axis? `roomy`: positions
        are not clamped."""
        if n == 1:
            return True
        symbols = dict(self.facts.symbols)
        for name, place in self.places.items():
            if name in point:
                known = place.known(point[name], self.axes[name].block)
                if place.checked[point[name]] and not roomy:
                    # Clamped to the last whole group, which is a multiple where the length is; others to any value.
                    stays = name == along and known.multiple_of(n) and self.spans[name].known.multiple_of(n)
                    known = Known(0, None, n, 0) if stays else Known()
                symbols[f"{name}'"] = known
        return Facts(symbols).of_affine(form).multiple_of(n)


def spread_of(axis: Axis) -> Spread:
    return axis.spread or SERIAL


def same_sharing(a: Spread, b: Spread) -> bool:
    """Do both give every thread the same values with the same element numbers?"""
    if not (a.lane or a.warp or b.lane or b.warp):
        return True
    return a == b or (replace(a, warp_tile=0) == replace(b, warp_tile=0) and not (a.warp or b.warp))
