"""From a block's number to its turn of the grid loops: in order or in bands, one turn or one after the other.

Nested `grid` loops are one-dimensional grid, the innermost loop fastest. With a raster of `b`, of the two innermost
loops (rows outside, columns inside) bands of b rows are walked column by column:

    band, rest = divmod(number, b * columns); height = min(b, rows - band * b)
    row, column = band * b + rest % height, rest // height

Loops that run in reverse count from their last turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.expressions import fold
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.dsl.ast import Expr, Num
from tcomp.ir.blocks import Cluster, GridOrder
from tcomp.ir.tile import Loop


@dataclass(frozen=True)
class Turns:
    """The grid loops' turns: `ranges` of their variables, the outermost loop first. `cluster` neighbours along loop
    `along` are taken by the blocks of one cluster; that range is rounded up to whole clusters, by `padded` turns."""

    loops: tuple[Loop, ...]
    ranges: tuple[range, ...]
    cluster: int = 1
    along: int = 0
    padded: int = 0

    @property
    def total(self) -> int:
        n = 1
        for r in self.ranges:
            n *= len(r)
        return n

    @property
    def clusters(self) -> int:
        """Turns of whole clusters."""
        return self.total // self.cluster

    def values(self, em: GpuEmitter, number: Int, order: GridOrder, rank: Int = 0) -> list[Int]:
        """The loops' variables of block `rank` in the cluster's turn of that number, emitted where the builder is."""
        counts: list[Int] = []
        rest = number
        ranges = list(self.ranges)
        if self.cluster > 1:
            ranges[self.along] = range(len(ranges[self.along]) // self.cluster)
        if order.raster and len(ranges) > 1:
            columns, rows = len(ranges.pop()), len(ranges.pop())
            rest, own = _divided(em, number, rows * columns, self.clusters)
            counts = list(_banded(em, own, rows, columns, order.raster))
        size = 1
        for r in ranges:
            size *= len(r)
        for r in reversed(ranges):
            rest, own = _divided(em, rest, len(r), size)
            size //= max(1, len(r))
            counts.insert(0, own)
        if self.cluster > 1:
            counts[self.along] = em.add(em.mul(counts[self.along], self.cluster), rank)
        for at, (loop, r) in enumerate(zip(self.loops, self.ranges, strict=True)):
            if loop.variable in order.reversed:
                counts[at] = em.add(em.mul(counts[at], -1), len(r) - 1)
        return [em.add(em.mul(c, r.step), r.start) for c, r in zip(counts, self.ranges, strict=True)]


def turns_of(nest: Sequence[Loop], cluster: Cluster | None = None) -> Turns:
    """The turns of a nest of grid loops, made whole clusters along the cluster's loop."""
    ranges = [range(_constant(g, g.start), _constant(g, g.stop), g.step) for g in nest]
    if cluster is None:
        return Turns(tuple(nest), tuple(ranges))
    along = next(i for i, g in enumerate(nest) if g.variable == cluster.variable)
    r = ranges[along]
    whole = -(-len(r) // cluster.blocks) * cluster.blocks
    ranges[along] = range(r.start, r.start + whole * r.step, r.step)
    return Turns(tuple(nest), tuple(ranges), cluster.blocks, along, whole - len(r))


def _constant(loop: Loop, e: Expr) -> int:
    folded = fold(e)
    if not isinstance(folded, Num):
        raise Unsupported(f"grid loop '{loop.variable}' must have constant bounds", loop.span)
    return int(folded.value)


def _divided(em: GpuEmitter, value: Int, by: int, total: int) -> tuple[Int, Int]:
    """Quotient and rest of a number below `total`."""
    if isinstance(value, int):
        return divmod(value, by)
    if by == 1:
        return value, 0
    if by == total:
        return 0, value
    b = em.builder
    return b.udiv(value, em.i64(by)), b.urem(value, em.i64(by))


def _banded(em: GpuEmitter, number: Int, rows: int, columns: int, band: int) -> tuple[Int, Int]:
    """Row and column of a number below rows * columns."""
    whole, rest = _divided(em, number, band * columns, rows * columns if band >= rows else 0)
    first = em.mul(whole, band)
    if isinstance(rest, int) and not isinstance(first, int):  # bands of one tile
        return first, rest
    if isinstance(rest, int):
        assert isinstance(first, int)
        height = min(band, rows - first)
        return first + rest % height, rest // height
    b = em.builder
    if band >= rows:
        height_value: Int = rows
    elif rows % band == 0:
        height_value = band
    else:
        left = b.sub(em.i64(rows), em.i64(first))
        height_value = b.select(b.icmp_signed("<", left, em.i64(band)), left, em.i64(band))
    height_value = em.i64(height_value)
    return em.add(first, b.urem(rest, height_value)), b.udiv(rest, height_value)
