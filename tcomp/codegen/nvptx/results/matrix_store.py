"""stmatrix: a warp's part of an accumulator to a swizzled 16-bit tile, 16 rows and 16 columns by each instruction.

    registers: lane 4 g + t has columns 2 t and 2 t + 1 of row g of each of four 8 x 8 matrices
    memory:    lane l points at 16 bytes, row l % 16 and columns from 8 (l / 16) on

Ordinary stores would be eight of 32 bits in their place. PTX ISA, section 9.7.14.5.16.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.codegen.nvptx.swizzle import column_bytes, granule_of
from tcomp.codegen.nvptx.threads import formats
from tcomp.codegen.nvptx.threads.addressing import Place
from tcomp.codegen.nvptx.threads.domain import GpuDomain, Point
from tcomp.ir.tile import Swizzled

FIRST_SM = 90
SIDE = 8
"""rows and columns of a matrix"""
PAIRS = tuple((SIDE * (q & 1), SIDE * (q >> 1)) for q in range(4))
"""where the four matrices of an instruction lie"""


class MatrixStore:
    """Stores the values of a Compute whose rows are `rows` and whose columns are `columns`."""

    def __init__(self, domain: GpuDomain, target: Place, rows: str, columns: str) -> None:
        self.domain, self.target, self.rows, self.columns = domain, target, rows, columns
        self.em = domain.gpu

    def parts(self, points: Sequence[Point]) -> list[Sequence[Point]]:
        """The points by columns of instructions."""
        found: dict[int, list[Point]] = {}
        for p in points:
            column = self.domain.places[self.columns].offsets[p[self.columns]]
            found.setdefault(column // (2 * SIDE), []).append(p)
        return [tuple(found[c]) for c in sorted(found)]

    def store(self, points: Sequence[Point], values: Sequence[IrValue]) -> None:
        """One value per point."""
        em, places = self.em, self.domain.places
        at = {
            (places[self.rows].offsets[p[self.rows]], places[self.columns].offsets[p[self.columns]]): v
            for p, v in zip(points, values, strict=True)
        }
        for row, column in sorted(at):
            if row % (2 * SIDE) or column % (2 * SIDE):
                continue
            quads = [[at[row + r, column + c], at[row + r, column + c + 1]] for r, c in PAIRS]
            em.here()
            words = [formats.pack(em, pair, self.target.buffer.dtype) for pair in quads]
            pointer, offset = self._address(row, column)
            text = f"stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0+{offset}], {{$1, $2, $3, $4}};"
            em.effect(text, "rrrrr", [pointer, *words])

    def _address(self, row: int, column: int) -> tuple[IrValue, int]:
        """This lane's pointer to a row of its matrix, and a number of bytes to add."""
        em, buffer = self.em, self.target.buffer
        layout = buffer.layout
        assert isinstance(layout, Swizzled)
        panel, inside = divmod(column * buffer.dtype.bytes, layout.width)
        down, across = (self.domain.places[a].spread for a in (self.rows, self.columns))

        def lane_part() -> Int:
            row, right = (em.coordinate(f"warp.{s.warp}") if s.warp else 0 for s in (down, across))
            lane = em.lane()
            b = em.at(0)
            own = em.add(em.mul(row, down.warp_tile), b.and_(lane, em.i64(2 * SIDE - 1)))
            first = em.add(em.mul(b.lshr(lane, em.i64(4)), SIDE), inside // buffer.dtype.bytes)
            first = em.add(em.mul(right, across.warp_tile), first)
            at = column_bytes(em, buffer, layout, first, granule_of(em, layout, own))
            return em.add(em.mul(own, layout.width), at)

        key = ("matrix store", layout, buffer.shape, buffer.dtype, down, across, inside)
        part: Int = em.once(0, key, lane_part)
        root, level = self.domain.block.roots[buffer.name], self.domain.block.levels.get(buffer.name, 0)

        def pointer() -> IrValue:
            return em.builder.gep(root, [em.i64(part)], source_etype=I8)

        found: IrValue = em.once(level, (*key, id(root)), pointer)
        return found, row * layout.width + panel * layout.panel_rows(buffer.shape) * layout.width
