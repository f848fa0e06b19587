"""A matrix product as tile IR: a register tile per thread, operands staged in shared memory, a pipe over k."""

from __future__ import annotations

from tcomp.dsl.ast import DType, Num
from tcomp.ir.tile import Axis, Compute, Kernel, Pack, Pitched, Spread, ThreadShape
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
) -> Kernel:
    """Y[m, n] = sum k: X[m, k] * W[n, k] (or W[k, n]), tiles along k kept transposed where `transposed`."""
    bm, bn, bk = tile
    my = Spread(per_thread[0], "y", shape.lanes_y, "y", shape.warps_y, bm // shape.warps_y)
    nx = Spread(per_thread[1], "x", shape.lanes_x, "x", shape.warps_x, bn // shape.warps_x)
    ring = stages if by == "cp.async" else 1
    xs = shared("Xs", bk, bm, layout=Pitched(bm + 16 // dtype.bytes), dtype=dtype, ring=ring)
    ws = shared("Ws", bk, bn, layout=Pitched(bn + 16 // dtype.bytes), dtype=dtype, ring=ring)
    acc = registers("acc", (bm, my), (bn, nx))
    ma, na = tile_axis("m", bm, m, my), tile_axis("n", bn, n, nx)
    ka = tile_axis("k", bk, k)

    def bare(a: Axis) -> Axis:
        return Axis(a.name, a.start, a.stop, a.block)

    source = at("X", "m", "k") if transposed else at("X", "k", "m")
    weights = at("W", "n", "k") if transposed else at("W", "k", "n")
    body = [
        Compute(at("acc", local("m"), local("n")), Num(0.0), (ma, na)),
        loop(
            "k",
            k,
            bk,
            Pack("Xs", (bare(ka), bare(ma)), source, by=by),
            Pack("Ws", (bare(ka), bare(na)), weights, by=by),
            Compute(
                at("acc", local("m"), local("n")),
                op("*", at("Xs", local("k"), local("m")), at("Ws", local("k"), local("n"))),
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
