"""Packing ahead: beside a reduction, piece by piece, the tile that the next turn reads.

    for each register tile:                     c counts pieces
      for each part of the reduction:           parts are as many as a register tile has pieces to do
        prefetch lines of a piece that a register tile later will be packed
        pack piece c, if there is one           into the tile's other copy
        the part's steps

Multiplication leaves loads, stores and shuffles free, and a piece is small: nothing waits for it, and its registers are
those that accumulators leave. Where source and tile run along the same axis a piece is a row of the tile; elsewhere
four vectors of it or of the source, transposed. Memory is asked for a register tile ahead; the first register tile only
asks. What is left after the last one is packed then, and so is a tile that an axis's stop cuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.groups import is_grouped, pack_groups, pack_piece_in_groups, words_moved
from tcomp.codegen.cpu.pack import TRANSPOSED, contiguous_axis, generate_pack, generate_piece, piece_sides, source_axis
from tcomp.codegen.cpu.prefetch import LINE, quotient, region, remainder, touch
from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.tiles import span_of
from tcomp.codegen.llvm.types import I1, I8, I64, IrValue
from tcomp.ir.tile import Ahead, Compute, Pack, Panels, Prefetch

LEAST_PART = 16
"""Turns of a reduction's loop between two pieces."""


def copy_ahead(tile: str) -> str:
    """The name of a tile's other copy, which the next turn reads."""
    return f"{tile} ahead"


class AheadPacker:
    """Writes the pieces of a Compute's `ahead`; made where the Compute begins, finished behind it. The word `turns`
    goes on to the copy that the next turn shall read: to the same one where that reads the same region."""

    def __init__(self, em: Emitter, scope: Scope, node: Compute, ahead: Ahead, turns: IrValue) -> None:
        self.em, self.scope = em, scope
        self.pack: Pack = replace(ahead.pack, buffer=copy_ahead(ahead.pack.buffer))
        self.names = [name for name, _, _ in ahead.following]
        b = em.here()
        same: IrValue = ir.Constant(I1, 1)
        for name, variable, value in ahead.following:
            scope.variables[name] = em.i64(integer_value(em, value, scope))
            scope.facts.symbols[name] = scope.facts.symbols[variable]
            same = b.and_(same, b.icmp_signed("==", scope.variables[name], scope.variables[variable]))
        self._find_pieces()
        parallel = (a for a in node.axes if a.name not in node.reduced)
        tiles = math.prod(math.ceil(a.block / (a.unroll * a.lanes)) for a in parallel)
        self.lead = math.ceil(self.total / max(1, tiles - 1))
        self._find_lines()
        with b.goto_entry_block():
            self.count = b.alloca(I64)
        b = em.here()
        self.cut = b.and_(b.not_(same), b.not_(self._is_whole()))
        begins = b.and_(b.not_(same), b.not_(self.cut))
        b.store(b.select(begins, em.i64(-self.lead), em.i64(self.total)), self.count)
        b.store(b.add(b.load(turns, typ=I64), b.select(same, em.i64(2), em.i64(1))), turns)

    def beside(self, node: Compute) -> Compute:
        """The Compute without the prefetch that pieces ask for themselves."""
        if not self.total:
            return node
        source = self.pack.source.tensor
        return replace(node, prefetch=tuple(p for p in node.prefetch if p.source.tensor != source))

    def part(self, steps: int) -> int:
        """How many of so many turns of the reduction's loop come between two pieces: a divisor where that serves."""
        if not self.total:
            return steps
        fitting = [n for n in range(self.lead, steps // LEAST_PART + 1) if steps % n == 0]
        pieces = fitting[0] if fitting else max(1, min(self.lead, steps // LEAST_PART))
        return steps // pieces

    def piece(self) -> None:
        """Pack the next piece, and ask for a later one."""
        em = self.em
        b = em.here()
        count = b.load(self.count, typ=I64)
        b.store(b.add(count, em.i64(1)), self.count)
        self._ask(b.add(count, em.i64(self.lead)))
        inside = em.here().icmp_unsigned("<", count, em.i64(self.total))
        em.when(inside, partial(self._pack, count))

    def finish(self) -> None:
        """Pack what is left."""
        em = self.em
        b = em.here()
        count = b.load(self.count, typ=I64)
        zero = em.i64(0)
        first = b.select(b.icmp_signed("<", count, zero), zero, count)

        def rest(number: Int, _: Sequence[IrValue]) -> Sequence[IrValue]:
            self._pack(em.i64(number))
            return []

        em.loop(first, self.total, 1, [], rest)
        em.when(self.cut, self._pack_all)
        for name in self.names:
            del self.scope.variables[name], self.scope.facts.symbols[name]

    # ----------------------------------------------------------------------------------------- pieces

    def _find_pieces(self) -> None:
        """Elements of a piece along each axis, and how many pieces that makes of a whole tile."""
        scope, axes = self.scope, self.pack.axes
        self.buffer = scope.buffers[self.pack.buffer]
        assert isinstance(self.buffer.layout, Panels)
        group = self.buffer.layout.group
        inner = contiguous_axis(self.buffer)
        along = source_axis(scope, self.pack)
        if along != axes[inner].name:
            moved = words_moved(scope, self.pack) if is_grouped(self.buffer) else self.pack
            rows, columns = (0, TRANSPOSED) if moved is None else piece_sides(scope, moved)
            self.sizes = tuple(rows if i == inner else columns * group for i in range(len(axes)))
        else:
            self.sizes = tuple(a.block if i == inner else group for i, a in enumerate(axes))
        fits = all(size and a.block % size == 0 for a, size in zip(axes, self.sizes, strict=True))
        self.order = [i for i in range(len(axes)) if axes[i].name != along]
        self.order += [i for i in range(len(axes)) if axes[i].name == along]
        self.counts = [a.block // size if fits else 1 for a, size in zip(axes, self.sizes, strict=True)]
        self.total = math.prod(self.counts) if fits else 0

    def _is_whole(self) -> IrValue:
        """Whether no axis of the tile stops early."""
        em = self.em
        whole: IrValue = ir.Constant(I1, int(self.total > 0))
        for a in self.pack.axes:
            length = span_of(em, a, self.scope).length
            b = em.here()
            whole = b.and_(whole, b.icmp_signed("==", em.i64(length), em.i64(a.block)))
        return whole

    def _numbers(self, number: IrValue) -> list[Int]:
        """A piece's number along each axis; the source's contiguous axis is the fastest."""
        b = self.em.here()
        found: list[Int] = [0] * len(self.counts)
        rest: Int = number
        for i in reversed(self.order):
            n = self.counts[i]
            last = i == self.order[0]
            found[i] = rest if last else remainder(b, rest, n) if n > 1 else 0
            rest = rest if last or n == 1 else quotient(b, rest, n)
        return found

    def _pack(self, number: IrValue) -> None:
        generate = pack_piece_in_groups if is_grouped(self.buffer) else generate_piece
        generate(self.em, self.scope, self.pack, self._numbers(number))

    def _pack_all(self) -> None:
        generate = pack_groups if is_grouped(self.buffer) else generate_pack
        generate(self.em, self.scope, self.pack)

    # ----------------------------------------------------------------------------------------- memory

    def _find_lines(self) -> None:
        """Where the source begins, and the bytes from one piece to the next and from one row of it to the next."""
        domain, place, self.base = region(self.em, self.scope, Prefetch(self.pack.source, self.pack.axes))
        size = place.buffer.dtype.bytes
        strides = {name: n * size for name, n in place.counters}
        names = [a.name for a in self.pack.axes]
        self.strides = [strides.get(n, 0) for n in names]
        slow, fast = self.order
        self.row = self.strides[slow]
        self.rows = self.sizes[slow]
        wide = min(self.sizes[fast], domain.axes[names[fast]].block) * size
        self.lines = [*range(0, wide - size, LINE), wide - size] if wide > LINE else [0]
        self.together = max(1, LINE // wide)

    def _ask(self, number: IrValue) -> None:
        """Prefetch a piece's lines: of lines that several pieces share each asks for its part."""
        em = self.em
        b = em.here()
        last = em.i64(max(0, self.total - 1))
        number = b.select(b.icmp_signed("<", number, last), number, last)
        offset: Int = 0
        numbers = self._numbers(number)
        for at, size, stride in zip(numbers, self.sizes, self.strides, strict=True):
            offset = em.add(offset, em.mul(at, size * stride))
        rows = max(1, self.rows // self.together)
        if self.together > 1:
            turn = remainder(em.here(), numbers[self.order[1]], self.together)
            offset = em.add(offset, em.mul(turn, rows * self.row))
        for row in range(rows):
            for line in self.lines:
                b = em.here()
                at_line = em.add(offset, row * self.row + line)
                touch(em, b.gep(self.base, [em.i64(at_line)], source_etype=I8), written=False)
