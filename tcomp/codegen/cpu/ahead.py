"""Packing ahead: beside a reduction, piece by piece, the tile that the next turn reads.

    for each register tile:                     c counts pieces; one is a row of the tile
      for each part of the reduction:           parts are as many as a register tile has pieces to do
        prefetch the row of a register tile later
        copy row c, if there is one             into the tile's other copy
        the part's steps

Multiplication leaves loads and stores free, and a piece is small enough that nothing waits for it. Memory is asked for
a register tile ahead, a row at a time: all of a tile's rows, asked for at once, would share a few cache sets. The first
register tile only asks. What is left after the last one is copied then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.bounds import integer_value
from tcomp.codegen.cpu.compute import ComputeGenerator
from tcomp.codegen.cpu.domain import Scope
from tcomp.codegen.cpu.emitter import Emitter, Int
from tcomp.codegen.cpu.integers import Known
from tcomp.codegen.cpu.pack import contiguous_axis, copied_axes, fill_zeros, padded_shape
from tcomp.codegen.cpu.prefetch import LINE, SECOND_LEVEL, region, touch
from tcomp.codegen.cpu.tiles import span_of
from tcomp.codegen.cpu.types import I1, I8, I64, IrValue
from tcomp.dsl.ast import Access, Binary, Name, Num
from tcomp.ir.tile import Ahead, Compute, Pack, Prefetch

PIECE = "piece of a tile"
"""The row that is copied, as a variable of the expressions that bound it."""
LEAST_PART = 16
"""Steps of a reduction between two pieces."""


def copy_ahead(tile: str) -> str:
    """The name of a tile's other copy, which the next turn reads."""
    return f"{tile} ahead"


class AheadPacker:
    """Writes the pieces of a Compute's `ahead`; made where the Compute begins, finished behind it. The word `turns`
    goes on to the copy that the next turn shall read: to the same one where that reads the same region."""

    def __init__(self, em: Emitter, scope: Scope, node: Compute, ahead: Ahead, turns: IrValue) -> None:
        self.em, self.scope = em, scope
        self.pack: Pack = ahead.pack
        self.names = [name for name, _, _ in ahead.following]
        b = em.here()
        same: IrValue = ir.Constant(I1, 1)
        for name, variable, value in ahead.following:
            scope.variables[name] = em.i64(integer_value(em, value, scope))
            scope.facts.symbols[name] = scope.facts.symbols[variable]
            same = b.and_(same, b.icmp_signed("==", scope.variables[name], scope.variables[variable]))
        self.buffer = scope.buffers[copy_ahead(self.pack.buffer)]
        inner = contiguous_axis(self.buffer)
        (self.row,) = (i for i in range(len(self.pack.axes)) if i != inner)
        rows = self.pack.axes[self.row]
        self.length = em.i64(span_of(em, rows, scope).length)
        parallel = (a for a in node.axes if a.name not in node.reduced)
        tiles = math.prod(math.ceil(a.block / (a.unroll * a.lanes)) for a in parallel)
        self.lead = math.ceil(rows.block / max(1, tiles - 1))
        self._find_lines()
        with b.goto_entry_block():
            self.count = b.alloca(I64)
        b = em.here()
        b.store(b.select(same, self.length, em.i64(-self.lead)), self.count)
        b.store(b.add(b.load(turns, typ=I64), b.select(same, em.i64(2), em.i64(1))), turns)

    def part(self, steps: int) -> int:
        """How many of so many steps of the reduction come between two pieces: a divisor of them where that serves."""
        fitting = [n for n in range(self.lead, steps // LEAST_PART + 1) if steps % n == 0]
        pieces = fitting[0] if fitting else max(1, min(self.lead, steps // LEAST_PART))
        return steps // pieces

    def piece(self) -> None:
        """Copy the next row, and ask for a later one."""
        em = self.em
        b = em.here()
        count = b.load(self.count, typ=I64)
        b.store(b.add(count, em.i64(1)), self.count)
        self._ask(b.add(count, em.i64(self.lead)))
        inside = em.here().icmp_unsigned("<", count, self.length)
        em.when(inside, partial(self._copy, count))

    def finish(self) -> None:
        """Copy the rows that are left."""
        em = self.em
        b = em.here()
        count = b.load(self.count, typ=I64)
        zero = em.i64(0)
        first = b.select(b.icmp_signed("<", count, zero), zero, count)

        def rest(row: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            self._copy(em.i64(row))
            return []

        em.loop(first, self.length, 1, [], rest)
        for name in self.names:
            del self.scope.variables[name], self.scope.facts.symbols[name]

    # ------------------------------------------------------------------------------------------- rows

    def _copy(self, row: IrValue) -> None:
        em, scope = self.em, self.scope
        scope.variables[PIECE] = row
        scope.facts.symbols[PIECE] = Known(0, self.pack.axes[self.row].block - 1)
        axes = list(self.pack.axes)
        start = Binary("+", axes[self.row].start, Name(PIECE))
        axes[self.row] = replace(axes[self.row], start=start, stop=Binary("+", start, Num(1)), block=1)
        subscripts = tuple(Binary("-", Name(a.name), a.start) for a in self.pack.axes)
        target = Access(self.buffer.name, subscripts, self.pack.span)
        single, copy = copied_axes(scope, tuple(axes), self.buffer)
        ComputeGenerator(em, scope, Compute(target, self.pack.source, copy, span=self.pack.span)).generate()
        sizes = tuple(1 if i == self.row else n for i, n in enumerate(padded_shape(self.buffer)))
        fill_zeros(em, scope, self.buffer, single, target, sizes)
        del scope.variables[PIECE], scope.facts.symbols[PIECE]

    def _find_lines(self) -> None:
        """Where the source's first row begins, the bytes to the next one, and those of a row's lines."""
        domain, place, self.base = region(self.em, self.scope, Prefetch(self.pack.source, self.pack.axes))
        size = place.buffer.dtype.bytes
        strides = {name: n * size for name, n in place.counters}
        rows = self.pack.axes[self.row].name
        self.stride = strides[rows]
        (along,) = (name for name in strides if name != rows)
        wide = domain.axes[along].block * size
        self.lines = [*range(0, wide - size, LINE), wide - size]

    def _ask(self, row: IrValue) -> None:
        """Prefetch a row's lines, into the second-level cache: the first would lose them by then."""
        em = self.em
        b = em.here()
        after = em.i64(1)
        row = b.select(b.icmp_signed("<", row, self.length), row, b.sub(self.length, after))
        offset: Int = em.mul(row, self.stride)
        for line in self.lines:
            b = em.here()
            touch(em, b.gep(self.base, [em.i64(em.add(offset, line))], source_etype=I8), False, SECOND_LEVEL)
