"""A matrix product as tile IR: a register tile per thread, operands staged in shared memory, a pipe over k."""

from __future__ import annotations

from tcomp.dsl.ast import Access, DType, Num
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Pack, Pitched, RowMajor, Spread, Swizzled
from tests.tcomp.nvptx.support import (
    at,
    grid,
    kernel,
    local,
    loop,
    op,
    operand,
    registers,
    shared,
    tile_axis,
)


def product(
    m: int,
    n: int,
    k: int,
    by: str = "cp.async",
    stages: int = 3,
    dtype: DType = DType.F32,
    tile: tuple[int, int, int] = (128, 128, 16),
    shape: ThreadShape = ThreadShape(2, 4, 8, 4),
    per_thread: tuple[int, int] = (4, 4),
    transposed: bool = True,
    swizzle: int | None = None,
) -> Kernel:
    """Y[m, n] = sum k: X[m, k] * W[n, k] (or X[k, m] * W[k, n] where not `transposed`). Tiles are [k][m] and [k][n],
    but in the operands' own order by tma; `swizzle` (0: none) instead of padded rows."""
    bm, bn, bk = tile
    my = Spread(per_thread[0], "y", shape.lanes_y, "y", shape.warps_y, bm // shape.warps_y)
    nx = Spread(per_thread[1], "x", shape.lanes_x, "x", shape.warps_x, bn // shape.warps_x)
    ring = 1 if by == "copy" else stages
    own = by == "tma" and transposed

    def tile_of(name: str, b: int) -> Buffer:
        padded = Pitched((bk if own else b) + 16 // dtype.bytes)
        layout = padded if swizzle is None else Swizzled(swizzle) if swizzle else RowMajor()
        return shared(name, *((b, bk) if own else (bk, b)), layout=layout, dtype=dtype, ring=ring)

    xs, ws = tile_of("Xs", bm), tile_of("Ws", bn)
    acc = registers("acc", (bm, my), (bn, nx))
    ma, na = tile_axis("m", bm, m, my), tile_axis("n", bn, n, nx)
    ka = tile_axis("k", bk, k)

    def bare(a: Axis) -> Axis:
        return Axis(a.name, a.start, a.stop, a.block)

    def inner(tile: str, i: str) -> Access:
        return at(tile, local(i), local("k")) if own else at(tile, local("k"), local(i))

    source = at("X", "m", "k") if transposed else at("X", "k", "m")
    weights = at("W", "n", "k") if transposed else at("W", "k", "n")
    body = [
        Compute(at("acc", local("m"), local("n")), Num(0.0), (ma, na)),
        loop(
            "k",
            k,
            bk,
            Pack("Xs", (bare(ma), bare(ka)) if own else (bare(ka), bare(ma)), source, by=by),
            Pack("Ws", (bare(na), bare(ka)) if own else (bare(ka), bare(na)), weights, by=by),
            Compute(
                at("acc", local("m"), local("n")),
                op("*", inner("Xs", "m"), inner("Ws", "n")),
                (ma, na, ka),
                frozenset({"k"}),
                "sum",
                accumulate=True,
            ),
            level="pipe",
            stages=stages,
        ),
        Compute(at("Y", "m", "n"), at("acc", local("m"), local("n")), (ma, na)),
    ]
    x = operand("X", m, k, dtype=dtype) if transposed else operand("X", k, m, dtype=dtype)
    w = operand("W", n, k, dtype=dtype) if transposed else operand("W", k, n, dtype=dtype)
    phase = grid("m", m, bm, grid("n", n, bn, *body))
    return kernel([x, w, operand("Y", m, n, dtype=dtype)], [[phase]], [xs, ws, acc], shape)
