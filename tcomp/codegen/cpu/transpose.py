"""Packing where source and tile run along different axes: square blocks transposed in registers.

    for each lanes x lanes block:  load `lanes` rows along the source's contiguous axis,
                                   exchange them in log2(lanes) rounds of shuffles,
                                   store `lanes` vectors along the tile's contiguous axis

Pairs of rows are interleaved by element, then by two elements (which leaves 4 x 4 blocks transposed within
each quarter of a register), then quarters are exchanged: one machine shuffle each on AVX2 and AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.llvm.domain import AxisState, Domain, Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.expressions import Graph
from tcomp.codegen.llvm.tiles import Variant, cut, remaining_lanes, span_of, splat
from tcomp.codegen.llvm.types import I1, I64, IrValue, i32_lanes
from tcomp.dsl.ast import Access
from tcomp.ir.tile import Axis, Buffer, Pack


def transpose_block(b: ir.IRBuilder, rows: Sequence[IrValue]) -> list[IrValue]:
    """The columns of a square block given by its rows: 4, 8 or 16 vectors of as many lanes."""
    n = len(rows)
    pairs = _rounds(b, rows, 1)
    quads = _rounds_of_two(b, pairs)
    return quads if n == 4 else _exchange_quarters(b, quads)


def transpose_columns(b: ir.IRBuilder, load: Callable[[int], IrValue], rows: int) -> list[IrValue]:
    """The four columns of 4, 8 or 16 rows of four, which `load` gives one by one: a register takes in the four rows of
    its quarters as they come, so that few are in use."""
    joined: list[IrValue] = []
    for i in range(4):
        parts = [load(row) for row in range(i, rows, 4)]
        while len(parts) > 1:
            lanes = 2 * parts[0].type.count
            parts = [_shuffle(b, x, y, range(lanes)) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        joined += parts
    return _rounds_of_two(b, _rounds(b, joined, 1))


def transpose_rows(b: ir.IRBuilder, rows: Sequence[IrValue]) -> list[IrValue]:
    """The columns of four rows of 4, 8 or 16: as many registers of four lanes."""
    joined = _rounds_of_two(b, _rounds(b, rows, 1))
    return [lanes_of(b, joined[c % 4], range(c // 4 * 4, c // 4 * 4 + 4)) for c in range(rows[0].type.count)]


def lanes_of(b: ir.IRBuilder, x: IrValue, lanes: Sequence[int]) -> IrValue:
    """Some of a register's lanes, as a register of as many."""
    return _shuffle(b, x, ir.Constant(x.type, ir.Undefined), lanes)


def _shuffle(b: ir.IRBuilder, x: IrValue, y: IrValue, lanes: Sequence[int]) -> IrValue:
    return b.shuffle_vector(x, y, i32_lanes(*lanes))


def _interleaved(n: int, step: int, high: bool) -> list[int]:
    """Lanes of an interleave of groups of `step` elements from the low or high half of each quarter."""
    out: list[int] = []
    for quarter in range(0, n, 4):
        first = quarter + (2 if high else 0)
        if step == 1:
            out += [first, first + n, first + 1, first + 1 + n]
        else:
            out += [first, first + 1, first + n, first + 1 + n]
    return out


def _rounds(b: ir.IRBuilder, rows: Sequence[IrValue], step: int) -> list[IrValue]:
    n = rows[0].type.count
    out: list[IrValue] = []
    for i in range(0, len(rows), 2):
        out.append(_shuffle(b, rows[i], rows[i + 1], _interleaved(n, step, False)))
        out.append(_shuffle(b, rows[i], rows[i + 1], _interleaved(n, step, True)))
    return out


def _rounds_of_two(b: ir.IRBuilder, pairs: Sequence[IrValue]) -> list[IrValue]:
    """Row 4 i + c of the result holds, in quarter q, column 4 q + c of rows 4 i .. 4 i + 3."""
    n = pairs[0].type.count
    out: list[IrValue] = []
    for i in range(0, len(pairs), 4):
        for low in (pairs[i], pairs[i + 1]):
            other = pairs[i + 2] if low is pairs[i] else pairs[i + 3]
            out.append(_shuffle(b, low, other, _interleaved(n, 2, False)))
            out.append(_shuffle(b, low, other, _interleaved(n, 2, True)))
    return out


def _exchange_quarters(b: ir.IRBuilder, quads: Sequence[IrValue]) -> list[IrValue]:
    n = len(quads)
    columns: list[IrValue] = [None] * n
    for c in range(4):
        group = [quads[4 * i + c] for i in range(n // 4)]
        if n == 8:
            for q in range(2):
                columns[4 * q + c] = _shuffle(b, group[0], group[1], _quarters(n, (q,), (q,)))
            continue
        for parity in range(2):
            picked = (parity, parity + 2)
            first = _shuffle(b, group[0], group[1], _quarters(n, picked, picked))
            second = _shuffle(b, group[2], group[3], _quarters(n, picked, picked))
            columns[4 * parity + c] = _shuffle(b, first, second, _quarters(n, (0, 2), (0, 2)))
            columns[4 * (parity + 2) + c] = _shuffle(b, first, second, _quarters(n, (1, 3), (1, 3)))
    return columns


def _quarters(n: int, of_first: Sequence[int], of_second: Sequence[int]) -> list[int]:
    """Whole quarters (4 elements each) of two registers side by side."""
    lanes = [4 * q + i for q in of_first for i in range(4)]
    return lanes + [n + 4 * q + i for q in of_second for i in range(4)]


def exchanged(b: ir.IRBuilder, x: IrValue, y: IrValue, step: int) -> tuple[IrValue, IrValue]:
    """Two registers that hold `step` rows in turns, as two whose turns hold x's rows and then y's: lanes that belong to
    one row stay in it.

    step 1: x0 x1 x2 x3, y0 y1 y2 y3  -->  x0 y0 x1 y1, x2 y2 x3 y3  (in each quarter; from step 4 on whole quarters)
    """
    n = x.type.count
    if n == 2:
        low, high = [0, 2], [1, 3]
    elif step < 4:
        low, high = (_interleaved(n, step, half) for half in (False, True))
    else:
        even, odd = ([q for q in range(n // 4) if q % 2 == parity] for parity in (0, 1))
        low, high = _quarters(n, even, even), _quarters(n, odd, odd)
    return _shuffle(b, x, y, low), _shuffle(b, x, y, high)


class TransposedPack:
    """Writes one Pack by blocks: `along` is the source's contiguous axis, `across` the tile's. A block has
    `lanes` rows and as many `columns`, or four of either."""

    def __init__(
        self, em: Emitter, scope: Scope, pack: Pack, target: Access, along: str, across: str, lanes: int, columns: int
    ) -> None:
        self.em, self.scope, self.pack, self.lanes, self.columns = em, scope, pack, lanes, columns
        self.target, self.along, self.across = target, along, across
        self.sides = {along: columns, across: lanes}
        self.whole = True
        self.buffer: Buffer = scope.buffers[pack.buffer]

    def generate(self, whole_registers: bool) -> None:
        """Emit it. `whole_registers`: the tile has room for full registers behind `across`'s stop (zeros go
        there); otherwise the last one is stored under a mask."""
        self.whole = whole_registers
        with self.em.frame():
            axes = self._prepare()
            others = [a for a in axes if a.name not in self.sides]
            blocks = [a for name in (self.across, self.along) for a in axes if a.name == name]
            self._loops([*others, *blocks], {})

    def _prepare(self) -> list[Axis]:
        """Where source and tile lie, seen from here; the axes by blocks."""
        self.em.here()
        axes = [replace(a, unroll=1, lanes=self.sides.get(a.name, 1)) for a in self.pack.axes]
        self.spans = {a.name: span_of(self.em, a, self.scope) for a in axes}
        self.reading = self._domain(axes, self.along)
        self.writing = self._domain(axes, self.across)
        self.source = self._place(self.reading, self.pack.source)
        self.tile = self._place(self.writing, self.target)
        return axes

    def _domain(self, axes: Sequence[Axis], vector: str) -> Evaluator:
        (lanes,) = (a.lanes for a in axes if a.name == vector)
        domain = Domain(self.em, self.scope, self.em.depth, vector, lanes)
        for a in axes:
            domain.declare(a, self.spans[a.name].start)
        addressing = Addressing(domain)
        return Evaluator(domain, Graph(frozenset(domain.axes), addressing), addressing)

    def _place(self, ev: Evaluator, access: Access) -> Place:
        return ev.memory.addressing.place(access, ev.graph)

    def _loops(self, axes: Sequence[Axis], partial_axes: dict[str, Int]) -> None:
        """One loop per axis: whole blocks, then the block that runs past the stop."""
        if not axes:
            self._block(partial_axes)
            return
        axis, *rest = axes
        self.em.here()
        for v in cut(self.em, axis, self.spans[axis.name]):
            body = partial(self._enter, axis, v, rest, partial_axes)
            self.em.loop(v.start, v.stop, axis.lanes, [], body, v.nonempty)

    def _enter(
        self,
        axis: Axis,
        v: Variant,
        rest: Sequence[Axis],
        partial_axes: dict[str, Int],
        base: Int,
        _: Sequence[IrValue],
    ) -> Sequence[IrValue]:
        self._stand(axis.name, axis.lanes, base, base if isinstance(base, int) else axis.lanes)
        self._loops(rest, {**partial_axes, axis.name: base} if v.partial else partial_axes)
        return []

    def _stand(self, axis: str, side: int, base: Int, multiple: int) -> None:
        """Put a block at `base` along an axis, where it has so many elements."""
        for ev, vector in ((self.reading, self.along), (self.writing, self.across)):
            lanes = side if axis == vector else 1
            unroll = side // lanes
            ev.domain.states[axis] = AxisState(self.em.depth, base, unroll, lanes, multiple, (None,) * unroll)

    def generate_block(self, numbers: Mapping[str, Int]) -> None:
        """Emit one block of a whole tile, of these numbers along the axes."""
        self._prepare()
        em = self.em
        with em.frame():
            em.here()
            for name, lanes in self.sides.items():
                self._stand(name, lanes, em.mul(numbers[name], lanes), lanes)
            self._block({})

    def _block(self, partial_axes: dict[str, Int]) -> None:
        em, n = self.em, self.lanes
        point = {a.name: 0 for a in self.pack.axes}
        columns_mask = self._mask(self.along, partial_axes)
        rows_mask = self._mask(self.across, partial_axes)

        def row(r: int) -> IrValue:
            mask = columns_mask
            if rows_mask is not None:
                em.here()
                inside = splat(em, self._bit(rows_mask, r), self.columns)
                mask = inside if mask is None else em.builder.and_(inside, mask)
            value = self.reading.memory.load_vector(self.source, {**point, self.across: r}, mask, em.depth)
            em.here()
            return value

        if self.columns >= n:
            rows = [row(r) for r in range(n)]
            columns = (transpose_block if self.columns == n else transpose_rows)(em.here(), rows)
        else:
            columns = transpose_columns(em.here(), row, n)
        for c in range(self.columns):
            at = {**point, self.along: c}
            store = self._store(at, columns[c], None if self.whole else rows_mask)
            if columns_mask is None:
                store()
                continue
            em.here()
            bit = self._bit(columns_mask, c)
            if not isinstance(bit, ir.Constant):
                em.when(bit, store)
            elif bit.constant:
                store()

    def _store(self, point: dict[str, int], value: IrValue, mask: IrValue | None) -> Callable[[], None]:
        return partial(self.writing.memory.store_vector, self.tile, point, value, mask)

    def _mask(self, axis: str, partial_axes: dict[str, Int]) -> IrValue | None:
        if axis not in partial_axes:
            return None
        lanes = self.lanes if axis == self.across else self.columns
        return remaining_lanes(self.em, lanes, self.spans[axis].length, partial_axes[axis])

    def _bit(self, mask: IrValue, i: int) -> IrValue:
        if isinstance(mask, ir.Constant):
            return ir.Constant(I1, int(mask.constant[i].constant))
        return self.em.builder.extract_element(mask, ir.Constant(I64, i))
