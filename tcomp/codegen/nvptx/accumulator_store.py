"""An accumulator's values on their way to a swizzled tile: the stores that meet no bank twice.

16-bit values go by stmatrix (`matrix_store.py`), f32 in pairs, in an order of their own (`pair_store.py`). Both take
whole squares of what a warp has: lane 4 g + t has columns 2 t and 2 t + 1 of every 8, of rows g and g + 8. Warps divide
rows, columns or both.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.codegen.llvm.integers import Affine
from tcomp.codegen.nvptx.addressing import Place
from tcomp.codegen.nvptx.domain import GpuDomain, Point
from tcomp.codegen.nvptx.matrix_store import FIRST_SM, SIDE, MatrixStore
from tcomp.codegen.nvptx.pair_store import PairStore
from tcomp.codegen.nvptx.turns import walked
from tcomp.ir.tile import Scope, Swizzled


def accumulator_store(domain: GpuDomain, target: Place, points: Sequence[Point]) -> MatrixStore | PairStore | None:
    """How the points' values are stored; None where target, layouts or points do not fit."""
    buffer = target.buffer
    if buffer.scope is not Scope.SHARED or not isinstance(buffer.layout, Swizzled) or len(buffer.shape) != 2:
        return None
    pitch = buffer.shape[-1]
    axes = {n[:-1]: c for n, c in target.form.terms if n.endswith("'")}
    rows = next((a for a, c in axes.items() if c == pitch), "")
    columns = next((a for a, c in axes.items() if c == 1), "")
    plain = Affine(((f"{columns}'", 1),))
    if not rows or target.column != plain or target.form - plain != Affine(((f"{rows}'", pitch),)):
        return None
    down, across = domain.places[rows], domain.places[columns]
    lanes = [(s.lane, s.lanes, s.grain) for s in (down.spread, across.spread)]
    quad = lanes == [("y", SIDE, 1), ("x", 4, 2)]
    counted = all(isinstance(p.base, int) and p.base == 0 and not any(p.owned) for p in (down, across))
    inside = all(walked(domain.axes[a]) <= n for a, n in zip((rows, columns), buffer.shape, strict=True))
    if not quad or not counted or not inside or down.spread.warp_tile % (2 * SIDE):
        return None
    found = {(down.offsets[p[rows]], across.offsets[p[columns]]) for p in points}
    sm = int("".join(c for c in domain.block.target if c.isdigit()) or 0)
    width = 2 * SIDE if buffer.dtype.bytes == 2 else buffer.layout.width // buffer.dtype.bytes
    if (buffer.dtype.bytes == 2 and sm < FIRST_SM) or buffer.dtype.bytes not in (2, 4) or len(found) != len(points):
        return None
    if across.spread.warp_tile % width:
        return None
    blocks = {(r // (2 * SIDE) * 2 * SIDE, c // width * width) for r, c in found}
    square = [(r, c + e) for r in (0, SIDE) for c in range(0, width, SIDE) for e in (0, 1)]
    if found != {(row + r, column + c) for row, column in blocks for r, c in square}:
        return None
    store = MatrixStore if buffer.dtype.bytes == 2 else PairStore
    return store(domain, target, rows, columns)
