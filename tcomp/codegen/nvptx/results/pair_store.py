"""An accumulator's f32 values to a swizzled tile, two neighbouring columns by each store, without bank conflicts.

    lane 4 g + t has columns 8 j + 2 t and 8 j + 2 t + 1 of row g, for all j

The lanes of a half-warp, which are served at a time, have four rows and 8 bytes each. Where rows are as long as all
banks together, the swizzle puts the same 8 columns of rows 2 i and 2 i + 1 into the same banks: so odd rows store the
columns 16 further first. Lanes swap what they have in registers, and each one's address is that of its own columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.codegen.nvptx.results.matrix_store import SIDE
from tcomp.codegen.nvptx.swizzle import granule_of
from tcomp.codegen.nvptx.threads import formats
from tcomp.codegen.nvptx.threads.addressing import Place
from tcomp.codegen.nvptx.threads.domain import GpuDomain, Point
from tcomp.ir.tile import Swizzled

APART = {128: (1, 2), 64: (2, 1), 32: (0, 0)}
"""By bytes of a row: the bit of the row's number that makes its lanes store other columns, and how many times 8 further
those are (with an exclusive or)."""


class PairStore:
    """Stores the values of a Compute whose rows are `rows` and whose columns are `columns`."""

    def __init__(self, domain: GpuDomain, target: Place, rows: str, columns: str) -> None:
        self.domain, self.target, self.rows, self.columns = domain, target, rows, columns
        self.em = domain.gpu
        layout = target.buffer.layout
        assert isinstance(layout, Swizzled)
        self.layout = layout
        self.bit, self.step = APART[layout.width]
        self.width = layout.width // target.buffer.dtype.bytes
        """columns of a panel"""

    def parts(self, points: Sequence[Point]) -> list[Sequence[Point]]:
        """All points at once."""
        return [points]

    def store(self, points: Sequence[Point], values: Sequence[IrValue]) -> None:
        """One value per point."""
        em, places = self.em, self.domain.places
        at = {
            (places[self.rows].offsets[p[self.rows]], places[self.columns].offsets[p[self.columns]]): v
            for p, v in zip(points, values, strict=True)
        }
        firsts = sorted({(r, c // self.width * self.width) for r, c in at})
        for (row, column), block in product(firsts, range(self.width // SIDE)):
            own, other = (column + SIDE * j for j in (block, block ^ self.step))
            pair = [self._exchanged(at[row, own + e], at[row, other + e]) for e in (0, 1)]
            pointer, offset = self._address(row, column, block)
            b = em.here()
            formats.store(em, b.gep(pointer, [em.i64(offset)], source_etype=I8), self.target.buffer.dtype, pair)

    def _exchanged(self, own: IrValue, other: IrValue) -> IrValue:
        """What this lane stores: `other`, where its row stores other columns first."""
        if not self.step:
            return own
        em = self.em
        row = em.i64(em.coordinate("lane.y"))

        def turned() -> IrValue:
            b = em.builder
            return b.icmp_signed("!=", b.and_(row, em.i64(self.bit)), em.i64(0))

        other_first = em.once(0, ("other columns first", self.bit), turned)
        return em.here().select(other_first, other, own)

    def _address(self, row: int, column: int, block: int) -> tuple[IrValue, int]:
        """The lane's pointer to its pair of a block of 8 columns, and a number of bytes to add."""
        em, width = self.em, self.layout.width
        down, across = (self.domain.places[a].spread for a in (self.rows, self.columns))
        warp, right = (em.coordinate(f"warp.{s.warp}") if s.warp else 0 for s in (down, across))
        panel_bytes = self.layout.panel_rows(self.target.buffer.shape) * width
        y, x = em.i64(em.coordinate("lane.y")), em.coordinate("lane.x")

        def first() -> Int:
            """Of the lane's first pair; those of other blocks differ in bits of their own."""
            b = em.at(0)
            own = em.add(em.mul(warp, down.warp_tile), y)
            left = em.mul(right, across.warp_tile // self.width * panel_bytes)
            turn = em.mul(b.and_(b.lshr(y, em.i64(self.bit // 2)), em.i64(1)), SIDE * 4 * self.step)
            inside = b.xor(em.i64(em.mul(x, 8)), em.i64(granule_of(em, self.layout, y)))
            return em.add(em.add(left, em.mul(own, width)), b.xor(inside, em.i64(turn)))

        part: Int = em.once(0, ("pair store", self.layout, self.target.buffer.shape, down, across), first)
        root = self.domain.block.roots[self.target.buffer.name]
        b = em.here()
        at = b.xor(em.i64(part), em.i64(SIDE * 4 * block)) if block else em.i64(part)
        panel = column // self.width * panel_bytes
        return b.gep(root, [at], source_etype=I8), row * width + panel
