"""Swizzled shared tiles: the layout as data, tiles written by copies and cp.async and read by ordinary code."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as points

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Compute, Kernel, Spread, Swizzled
from tests.tcomp.nvptx import support
from tests.tcomp.nvptx.gemm import product
from tests.tcomp.nvptx.support import at, axis, grid, kernel, lanes, local, operand, run, shared, tile_axis

RNG = np.random.default_rng(8)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("shape,itemsize", [((16, 64), 2), ((5, 128), 2), ((3, 4, 64), 4), ((64,), 8), ((8, 256), 1)])
def test_the_layout_is_a_bijection_of_whole_granules(width: int, shape: tuple[int, ...], itemsize: int) -> None:
    layout = Swizzled(width)
    found = {layout.offset(shape, itemsize, p): p for p in points(*map(range, shape))}
    assert len(found) == int(np.prod(shape))
    panels = shape[-1] * itemsize // width
    assert max(found) < panels * layout.panel_rows(shape) * width
    assert panels * layout.panel_rows(shape) * width % 1024 == 0
    n = 16 // itemsize
    for offset, p in found.items():
        assert offset // 16 == layout.offset(shape, itemsize, (*p[:-1], p[-1] // n * n)) // 16
        assert offset % 16 == p[-1] % n * itemsize


def test_the_pattern_is_the_copy_engines() -> None:
    """byte(row, col) = row * 128 + ((col >> 3) ^ (row & 7)) * 16 + (col & 7) * 2 of a [rows][64 bf16] panel."""
    layout, shape = Swizzled(128), (24, 192)
    for row, col in points(range(24), range(192)):
        panel, c = divmod(col, 64)
        assert layout.offset(shape, 2, (row, col)) == (
            panel * 24 * 128 + row * 128 + ((c >> 3) ^ (row & 7)) * 16 + (c & 7) * 2
        )


def test_eight_rows_of_a_column_lie_in_eight_bank_groups() -> None:
    for width in (32, 64, 128):
        groups = {Swizzled(width).offset((64, 64), 2, (r, 8)) // 16 % 8 for r in range(8)}
        assert len(groups) == 8


def swizzled(k: Kernel, width: int) -> Kernel:
    tiles = tuple(replace(t, layout=Swizzled(width)) if t.name in ("Xs", "Ws") else t for t in k.tiles)
    return replace(k, tiles=tiles)


@pytest.mark.slow
@pytest.mark.parametrize(
    "width,by,dtype,transposed",
    [
        (32, "copy", DType.F32, True),
        (64, "cp.async", DType.F32, False),
        (128, "cp.async", DType.BF16, False),
        (128, "copy", DType.BF16, True),
    ],
)
def test_products_through_swizzled_tiles(width: int, by: str, dtype: DType, transposed: bool) -> None:
    tile, shape = (64, 64, 16), ThreadShape(2, 2, 8, 4)
    k = swizzled(product(67, 96, 40, by, 3, dtype, tile, shape, transposed=transposed), width)
    x, w = ((67, 40), (96, 40)) if transposed else ((40, 67), (40, 96))
    ptx, _ = run(k, {"X": rand(*x), "W": rand(*w)}, tolerance=1e-4)
    if by == "cp.async" and not transposed and dtype is DType.F32:
        whole = swizzled(product(64, 96, 48, by, 3, dtype, tile, shape, transposed=False), width)
        ptx, _ = run(whole, {"X": rand(48, 64), "W": rand(48, 96)}, tolerance=1e-4)
        assert "cp.async.cg.shared.global" in ptx and "cp.async.ca" not in ptx
        assert "ld.shared.v4.b32" in ptx or "ld.shared.v2.b64" in ptx


@pytest.mark.parametrize("width", [32, 64, 128])
def test_written_and_read_by_computes(width: int) -> None:
    """Every element goes through the tile and comes back from another thread's view of it."""
    m, n = 13, 128
    rows, cols = tile_axis("m", 8, m), axis("n", n, Spread(2, "x", 32, "x", 2, 64))
    tile = shared("t", 8, n, layout=Swizzled(width), dtype=DType.F32)
    put = Compute(at("t", local("m"), "n"), at("X", "m", "n"), (rows, cols))
    back = axis("n", n, lanes(1))
    get = Compute(at("Y", "n", "m"), at("t", local("m"), "n"), (back, rows))
    k = kernel([operand("X", m, n), operand("Y", n, m)], [[grid("m", m, 8, put, get)]], [tile], ThreadShape(2))
    run(k, {"X": rand(m, n)})


SOURCE = """
op f(X: {t}[M, K], W: {t}[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on gpu:
  m -> grid.y(32) / warp.y(16) / lane.y(4)
  n -> grid.x(32) / warp.x(16) / lane.x / vec(2)
  k -> pipe({k}, 3) / vec(4)
  stage X, W in shared at k by cp.async {option}
"""


def lowered(t: str, k: int, option: str) -> Kernel:
    return support.lowered(SOURCE.format(t=t, k=k, option=option), {"M": 40, "N": 64, "K": 96})


@pytest.mark.parametrize("option,width", [("swizzle(64)", 64), ("swizzle", 128), ("swizzle(32)", 32)])
def test_scheduled(option: str, width: int) -> None:
    k = lowered("bf16", 64, option)
    assert {t.layout for t in k.tiles if t.ring > 1} == {Swizzled(width)}
    run(k, {"X": rand(40, 96), "W": rand(64, 96)}, tolerance=1e-4)


@pytest.mark.parametrize(
    "option,message",
    [
        ("swizzle(128)", "swizzle(128) does not fit X: a row of its tile has 64 bytes"),
        ("swizzle(48)", "there is no swizzle of 48 bytes"),
        ("swizzle(64) pad(4)", "a staged tile has one layout"),
    ],
)
def test_refused(option: str, message: str) -> None:
    with pytest.raises(TcError) as e:
        lowered("bf16", 32, option)
    assert e.value.message == message and e.value.span.line == 9 and e.value.hint
