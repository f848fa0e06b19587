"""An accumulator's values on their way to a swizzled tile: the stores that meet no bank twice.

16-bit values go by stmatrix (`matrix_store.py`), f32 in pairs, in an order of their own (`pair_store.py`). Both take
whole squares of what a warp has: lane 4 g + t has columns 2 t and 2 t + 1 of every 8, of rows g and g + 8. Warps divide
rows, columns or both.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.llvm.integers import Affine
from tcomp.codegen.nvptx.results.matrix_store import FIRST_SM, SIDE, MatrixStore
from tcomp.codegen.nvptx.results.pair_store import PairStore
from tcomp.codegen.nvptx.threads.addressing import Place
from tcomp.codegen.nvptx.threads.domain import GpuDomain, Point
from tcomp.codegen.nvptx.threads.turns import walked
from tcomp.ir.tile import Buffer, Scope, Swizzled


def accumulator_store(domain: GpuDomain, target: Place, points: Sequence[Point]) -> MatrixStore | PairStore | None:
    """How the points' values are stored; None where target, layouts or points do not fit."""
    axes = _matrix_axes(target)
    if axes is None or not _spread_as_accumulator(domain, target.buffer, *axes):
        return None
    rows, columns = axes
    store, width = _kind(domain, target.buffer)
    if store is None or domain.places[columns].spread.warp_tile % width:
        return None
    down, across = domain.places[rows].offsets, domain.places[columns].offsets
    if not _whole_squares([(down[p[rows]], across[p[columns]]) for p in points], width):
        return None
    return store(domain, target, rows, columns)


def _matrix_axes(target: Place) -> tuple[str, str] | None:
    """The axes that walk rows and columns of a swizzled matrix in shared memory; None for any other target."""
    buffer = target.buffer
    if buffer.scope is not Scope.SHARED or not isinstance(buffer.layout, Swizzled) or len(buffer.shape) != 2:
        return None
    pitch = buffer.shape[-1]
    axes = {name[:-1]: stride for name, stride in target.form.terms if name.endswith("'")}
    rows = next((a for a, stride in axes.items() if stride == pitch), "")
    columns = next((a for a, stride in axes.items() if stride == 1), "")
    column = Affine(((f"{columns}'", 1),))
    if not rows or target.column != column or target.form - column != Affine(((f"{rows}'", pitch),)):
        return None
    return rows, columns


def _spread_as_accumulator(domain: GpuDomain, buffer: Buffer, rows: str, columns: str) -> bool:
    """Do lanes have what a product leaves in them, from the first element on and never past the buffer's ends?"""
    down, across = domain.places[rows], domain.places[columns]
    lanes = [(s.lane, s.lanes, s.grain) for s in (down.spread, across.spread)]
    counted = all(isinstance(p.base, int) and p.base == 0 and not any(p.owned) for p in (down, across))
    inside = all(walked(domain.axes[a]) <= n for a, n in zip((rows, columns), buffer.shape, strict=True))
    quads = lanes == [("y", SIDE, 1), ("x", 4, 2)]
    return quads and counted and inside and down.spread.warp_tile % (2 * SIDE) == 0


def _kind(domain: GpuDomain, buffer: Buffer) -> tuple[type[MatrixStore | PairStore] | None, int]:
    """The kind of store for the buffer's type on this GPU (None: there is none), and the columns of its squares."""
    assert isinstance(buffer.layout, Swizzled)
    if buffer.dtype.bytes == 4:
        return PairStore, buffer.layout.width // buffer.dtype.bytes
    sm = int("".join(c for c in domain.block.target if c.isdigit()) or 0)
    return (MatrixStore if buffer.dtype.bytes == 2 and sm >= FIRST_SM else None), 2 * SIDE


def _whole_squares(places: Sequence[tuple[int, int]], width: int) -> bool:
    """Are a lane's places (row, column) all that it has of some squares of 16 rows and `width` columns, each once?"""
    found = set(places)
    corners = {(row // (2 * SIDE) * 2 * SIDE, column // width * width) for row, column in found}
    square = [(r, c + e) for r in (0, SIDE) for c in range(0, width, SIDE) for e in (0, 1)]
    whole = {(row + r, column + c) for row, column in corners for r, c in square}
    return found == whole and len(found) == len(places)
