"""Prefetching beside a Compute, without a branch.

In a reduction each step touches one byte of the region. It is cut into runs of consecutive cache lines, one for each
register tile of the Compute in order; along its reduction a tile walks over its run. So the lines come in evenly over
the whole Compute. Most touches fall on a line that is there already and cost an issue slot, no memory traffic; bursts
of distinct lines, measured, cost as much as they gained.

A region with more rows than there are register tiles is fetched in part, a row a tile: what a loop of 256-bit vectors
loses by further addresses is more than they gain. One of 512-bit vectors has slots to spare: each tile walks over
several rows.

In a map each register tile touches its own lines, a turn of the loop ahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.llvm.domain import AxisState, Domain, Point, Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.expressions import Graph
from tcomp.codegen.llvm.tiles import span_of
from tcomp.codegen.llvm.types import I8, I32, I64, POINTER, VOID, IrValue
from tcomp.ir.tile import Axis, Prefetch

LINE = 64
"""Bytes of a cache line."""
WIDE = 16
"""f32 lanes of vectors whose loops have slots for addresses to spare"""
FIRST_LEVEL = 3
"""LLVM's locality for a line that shall come into the first-level cache: the later touches then find it there."""


class Prefetcher:
    """The prefetches of one `Prefetch` inside a reduction with these parallel axes and this innermost reduced one."""

    def __init__(self, em: Emitter, scope: Scope, node: Prefetch, parallel: Sequence[Axis], reduced: Axis) -> None:
        self.em, self.parallel, self.reduced = em, parallel, reduced
        domain, place, base = region(em, scope, node)
        size = place.buffer.dtype.bytes
        # (how many, bytes from one to the next) along each dimension of the region, lines along the contiguous one.
        dims = [(domain.axes[a].block, stride * size) for a, stride in sorted(place.counters, key=lambda c: -c[1])]
        self.possible = bool(dims) and dims[-1][1] == size and is_affine(place)
        if self.possible:
            lines = -(-dims[-1][0] * size // LINE) + 1  # a row may begin within a line
            rows = math.prod(n for n, _ in dims[:-1])
            self.tiles = math.prod(math.ceil(a.block / (a.unroll * a.lanes)) for a in parallel)
            parts = max(1, min(lines, self.tiles // rows))
            run = -(-lines // parts) * LINE
            self.dims = [*dims[:-1], (parts, run)]
            self.stride = max(1, -(-run // reduced.block))
            self.base = base
            self.rows, self.lines, self.block = rows, lines, reduced.block
            self.several = -(-rows // self.tiles) if scope.lanes_f32 >= WIDE and parts == 1 else 1

    def enter_tile(self, states: Mapping[str, AxisState]) -> None:
        """Choose the run of the register tile at these places."""
        b = self.em.here()
        number = self._number(states)
        if self.several > 1:
            self.first = quotient(b, self.em.mul(number, self.rows), self.tiles)
            return
        self.run: IrValue = b.gep(self.base, [self.em.i64(self._offset(number))], source_etype=I8)

    def _offset(self, number: Int) -> Int:
        """Bytes from the region's first to a run's."""
        b = self.em.here()
        rest = number
        offset: Int = 0
        for n, step in reversed(self.dims[1:]):
            offset = self.em.add(offset, self.em.mul(remainder(b, rest, n), step))
            rest = quotient(b, rest, n)
        return self.em.add(offset, self.em.mul(rest, self.dims[0][1]))

    def enter(self, start: Int) -> None:
        """The tile's innermost loop begins: nothing to do."""

    def leave(self, start: Int, stop: Int) -> None:
        """It has ended."""

    def touch(self, state: AxisState, step: int) -> None:
        """One prefetch for this step of the reduction, unless an earlier one of this turn is on the same line."""
        if self.several > 1:
            self._touch_rows(state, step)
            return
        if step and self.stride * state.unroll * state.lanes <= LINE:
            return
        em = self.em
        b = em.here()
        offset = em.add(em.mul(state.base, self.stride), step * state.lanes * self.stride)
        touch(em, b.gep(self.run, [em.i64(offset)], source_etype=I8), written=False)

    def _touch_rows(self, state: AxisState, step: int) -> None:
        """One prefetch on the way over the tile's rows; as often as there are lines, as far as steps go."""
        em = self.em
        wanted = self.several * self.lines
        if step % max(1, self.block // wanted // state.lanes):
            return
        b = em.here()
        at = em.add(state.base, step * state.lanes)
        line = quotient(b, em.mul(at, wanted), self.block)
        row = quotient(b, line, self.lines)
        within = em.add(line, em.mul(row, -self.lines))
        offset = em.add(self._offset(em.add(self.first, row)), em.mul(within, LINE))
        touch(em, b.gep(self.base, [em.i64(offset)], source_etype=I8), written=False)

    def _number(self, states: Mapping[str, AxisState]) -> Int:
        """Of all the Compute's register tiles in order, which one this is."""
        number: Int = 0
        tiles = 1
        for a in reversed(self.parallel):
            size = a.unroll * a.lanes
            index = quotient(self.em.builder, states[a.name].base, size)
            number = self.em.add(number, self.em.mul(index, tiles))
            tiles *= math.ceil(a.block / size)
        return number


class MapPrefetcher:
    """The prefetches of one `Prefetch` inside a map: what each register tile will need a turn later."""

    def __init__(self, em: Emitter, scope: Scope, node: Prefetch) -> None:
        self.em, self.written = em, node.written
        _, place, self.base = region(em, scope, node)
        size = place.buffer.dtype.bytes
        self.strides = {name: stride * size for name, stride in place.counters}
        self.possible = is_affine(place)

    def touch(self, states: Mapping[str, AxisState], points: Sequence[Point]) -> None:
        """One prefetch for each line of these registers; those of a register begin with its first lane."""
        em = self.em
        b = em.here()
        first: Int = 0
        for name, stride in self.strides.items():
            first = em.add(first, em.mul(states[name].base, stride))
        pointer = b.gep(self.base, [em.i64(first)], source_etype=I8)
        offsets = {sum(n * p[name] * states[name].lanes for name, n in self.strides.items()) for p in points}
        last: int | None = None
        for offset in sorted(offsets):
            if last is None or offset - last >= LINE:
                touch(em, b.gep(pointer, [em.i64(offset)], source_etype=I8), self.written)
                last = offset


def region(em: Emitter, scope: Scope, node: Prefetch) -> tuple[Domain, Place, IrValue]:
    """The prefetched access in a domain of its own, and the address of its first element."""
    domain = Domain(em, scope, em.depth, None, 1)
    em.here()
    for a in node.axes:
        domain.declare(a, span_of(em, a, scope).start)
        domain.states[a.name] = AxisState(em.depth, 0, 1, 1, 0, (None,))
    addressing = Addressing(domain)
    graph = Graph(frozenset(domain.axes), addressing)
    Evaluator(domain, graph, addressing)
    place = addressing.place(node.source, graph)
    return domain, place, addressing.pointer(place, dict.fromkeys(domain.axes, 0))


def is_affine(place: Place) -> bool:
    """Whether its addresses are the first one plus multiples of the axes' counters."""
    return place.panel is None and not any(node.deps for node, _ in place.gathered)


def touch_registers(
    domain: Domain, addressing: Addressing, place: Place, points: Sequence[Point], written: bool
) -> None:
    """Prefetch the lines of an access under these registers, where their lanes lie side by side."""
    for p in _touched(domain, addressing, place, points):
        touch(domain.emitter, addressing.pointer(place, p), written)


def _touched(domain: Domain, addressing: Addressing, place: Place, points: Sequence[Point]) -> list[Point]:
    """The points of which each line's first is one."""
    vector = domain.vector
    if vector is None or vector not in place.deps:
        return list(points)
    apart = max(1, LINE // (place.buffer.dtype.bytes * domain.lanes))
    return [p for p in points if addressing.lane_stride(place, p) == 1 and p[vector] % apart == 0]


class TilePrefetcher:
    """What a register tile reads and writes in memory behind a long sum, asked for line by line along the first half of
    it. All at once, when the sum begins, these requests would hold up its own.
    """

    def __init__(self, domain: Domain, addressing: Addressing, points: Sequence[Point], reduced: Axis) -> None:
        self.em, self.domain, self.addressing, self.points = domain.emitter, domain, addressing, points
        self.block = reduced.block
        self.runs: list[tuple[IrValue, IrValue | None, int, tuple[int, int, int], bool]] = []

    def add(self, place: Place, written: bool, wanted: IrValue | None) -> None:
        """Ask for what an access reads or writes at the register tile's points, if it is `wanted` (None: it is); called
        before the sum's loop."""
        near = _touched(self.domain, self.addressing, place, self.points)
        if not near:
            return
        lanes = {n: s.lanes for n, s in self.domain.states.items()}
        size = place.buffer.dtype.bytes
        offsets = [size * sum(c * p[a] * lanes[a] for a, c in place.counters) for p in near]
        grid = _grid(offsets) if is_affine(place) else None
        if grid is not None:
            self.runs.append((self.addressing.pointer(place, near[0]), wanted, len(near), grid, written))
        elif wanted is None:
            touch_registers(self.domain, self.addressing, place, self.points, written)

    def touch(self, state: AxisState, step: int) -> None:
        """The prefetches of one step of the sum."""
        em = self.em
        for base, wanted, count, (columns, row, column), written in self.runs:
            apart = 1 << max(0, (self.block // (2 * count)).bit_length() - 1)
            if step % apart:
                continue
            b = em.here()
            line = quotient(b, em.add(state.base, step), apart)
            if isinstance(line, int):
                line = min(line, count - 1)
            else:
                line = b.select(b.icmp_signed("<", line, em.i64(count)), line, em.i64(count - 1))
            across = quotient(b, line, columns)
            along = em.add(line, em.mul(across, -columns))
            offset = em.add(em.mul(across, row), em.mul(along, column))
            pointer = b.gep(base, [em.i64(offset)], source_etype=I8)
            if wanted is not None:
                pointer = b.select(wanted, pointer, base)
            touch(em, pointer, written)


def _grid(offsets: Sequence[int]) -> tuple[int, int, int] | None:
    """(n, row, column) where the i-th offset lies i // n rows and i % n columns behind the first."""
    count, first = len(offsets), offsets[0]
    for n in (d for d in range(1, count + 1) if count % d == 0):
        row = offsets[n] - first if n < count else 0
        column = offsets[1] - first if n > 1 else 0
        if all(o == first + i // n * row + i % n * column for i, o in enumerate(offsets)):
            return n, row, column
    return None


def touch(em: Emitter, pointer: IrValue, written: bool) -> None:
    """Prefetch the line at a pointer."""
    em.here()
    hints = [ir.Constant(I32, int(written)), ir.Constant(I32, FIRST_LEVEL), ir.Constant(I32, 1)]
    em.intrinsic("llvm.prefetch", VOID, [pointer, *hints], [POINTER])


def quotient(b: ir.IRBuilder, x: Int, n: int) -> Int:
    return x // n if isinstance(x, int) else b.udiv(x, ir.Constant(I64, n))


def remainder(b: ir.IRBuilder, x: Int, n: int) -> Int:
    return x % n if isinstance(x, int) else b.urem(x, ir.Constant(I64, n))
