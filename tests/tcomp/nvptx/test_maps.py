"""Maps on the virtual GPU: every spread and ragged size, vector accesses, guards, select, integers, narrow types."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Expr, Num
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Compute, Kernel, Spread
from tests.tcomp.nvptx.support import (
    at,
    axis,
    ex,
    fn,
    grid,
    kernel,
    lanes,
    loop,
    machine,
    op,
    operand,
    run,
    tile_axis,
)

RNG = np.random.default_rng(7)
SIZES = [1, 3, 31, 32, 37, 64, 128, 251, 256, 1000]


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def map_1d(n: int, tile: int, spread: Spread, dtype: DType = DType.F32, value: Expr | None = None) -> Kernel:
    value = value or op("+", op("*", at("X", "i"), 3.0), 1.0)
    body = Compute(at("Y", "i"), value, (tile_axis("i", tile, n, spread),))
    shape = ThreadShape(spread.warps) if spread.warp else ThreadShape()
    return kernel(
        [operand("X", n, dtype=dtype), operand("Y", n, dtype=dtype)], [[grid("i", n, tile, body)]], threads=shape
    )


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    "spread", [lanes(), lanes(4), lanes(8), Spread(2, "x", 32, "x", 2, 64), Spread(4, "x", 32, "x", 4, 96)], ids=str
)
def test_one_axis(n: int, spread: Spread) -> None:
    run(map_1d(n, 256, spread), {"X": rand(n)})


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16, DType.F64])
def test_whole_tiles_are_vectors_without_predicates(dtype: DType) -> None:
    grain = 16 // dtype.bytes
    ptx, reports = run(map_1d(1024, 32 * grain, lanes(grain), dtype), {"X": rand(1024)})
    wide = "v2.b64" if dtype is DType.F64 else "v4.b32"
    assert f"ld.global.nc.{wide}" in ptx and f"st.global.{wide}" in ptx
    assert "setp" not in ptx and "bra" not in ptx and "bar.sync" not in ptx
    assert reports[0].traffic["global"].sectors_per_request == 16


def test_a_cut_block_takes_vectors_where_it_is_whole() -> None:
    ptx, _ = run(map_1d(1021, 128, lanes(4)), {"X": rand(1021)})
    assert "ld.global.nc.v4.b32" in ptx and "ld.global.nc.b32" in ptx


def test_eight_values_are_two_accesses() -> None:
    ptx, _ = run(map_1d(1024, 256, lanes(8)), {"X": rand(1024)})
    assert ptx.count("ld.global.nc.v4.b32") == 2 and ptx.count("st.global.v4.b32") == 2


def test_an_odd_pitch_is_read_by_elements() -> None:
    spread = lanes(4)
    body = Compute(at("Y", "i.0", "j"), at("X", "i.0", "j"), (axis("j", 129, spread),))
    ptx, _ = run(kernel([operand("X", 3, 129), operand("Y", 3, 129)], [[grid("i", 3, 1, body)]]), {"X": rand(3, 129)})
    assert "v4" not in ptx


@pytest.mark.parametrize("m,n", [(1, 1), (5, 7), (64, 33), (37, 128)])
def test_two_axes_and_a_broadcast(m: int, n: int) -> None:
    shape = ThreadShape(1, 2, 8, 4)
    y, x = Spread(1, "y", 4, "y", 2, 8), Spread(2, "x", 8)
    value = op("+", op("*", at("X", "m", "n"), at("b", "n")), at("a", "m"))
    body = Compute(at("Y", "m", "n"), value, (tile_axis("m", 16, m, y), tile_axis("n", 32, n, x)))
    operands = [operand("X", m, n), operand("b", n), operand("a", m), operand("Y", m, n)]
    k = kernel(operands, [[grid("m", m, 16, grid("n", n, 32, body))]], threads=shape)
    run(k, {"X": rand(m, n), "b": rand(n), "a": rand(m)})


def test_a_transpose() -> None:
    body = Compute(at("Y", "j", "i"), at("X", "i", "j"), (axis("j", 45), axis("i", 37, lanes(2))))
    run(kernel([operand("X", 37, 45), operand("Y", 45, 37)], [[body]]), {"X": rand(37, 45)})


def test_long_axes_are_loops() -> None:
    spread = lanes(4)
    body = Compute(at("Y", "i", "j"), op("*", at("X", "i", "j"), 2.0), (axis("i", 40), axis("j", 4096 + 20, spread)))
    k = kernel([operand("X", 40, 4116), operand("Y", 40, 4116)], [[body]])
    ptx, _ = run(k, {"X": rand(40, 4116)})
    assert len(ptx) < 40_000 and "v4.b32" in ptx


def test_threads_that_no_axis_uses_write_once() -> None:
    shape = ThreadShape(2, 1, 16, 2)
    body = Compute(at("Y", "i"), at("X", "i"), (axis("i", 40, Spread(1, "x", 16)),))
    _, reports = run(kernel([operand("X", 40), operand("Y", 40)], [[body]], threads=shape), {"X": rand(40)})
    assert reports[0].traffic["global"].bytes_written == 160


def test_accumulating_maps() -> None:
    for n in (256, 77):
        body = Compute(at("Y", "i"), at("X", "i"), (axis("i", n, lanes(4)),), reducer="sum", accumulate=True)
        run(kernel([operand("X", n), operand("Y", n)], [[body]]), {"X": rand(n), "Y": rand(n)})


def test_a_guard_leaves_elements_alone() -> None:
    guard = op("<=", "j", "i")
    body = Compute(at("Y", "i", "j"), at("X", "i", "j"), (axis("i", 9), axis("j", 64, lanes(2))), guard=guard)
    run(kernel([operand("X", 9, 64), operand("Y", 9, 64)], [[body]]), {"X": rand(9, 64), "Y": rand(9, 64)})


def test_an_arm_not_taken_reads_nothing_outside() -> None:
    value = fn("select", op(">=", "i", 3), at("X", op("-", "i", 3)), 0.5)
    body = Compute(at("Y", "i"), value, (axis("i", 50, lanes()),))
    run(kernel([operand("X", 47), operand("Y", 50)], [[body]]), {"X": rand(47)})


def test_gathers_and_integers() -> None:
    n, c = 70, 36
    ids = RNG.integers(0, 11, n)
    value = op("+", at("E", at("ids", "t"), "c"), fn("f32", op("%", op("-", "c", op("*", "t", 3)), 5)))
    body = Compute(at("Y", "t", "c"), value, (tile_axis("t", 8, n), tile_axis("c", 36, c, lanes(4))))
    operands = [operand("E", 11, c), operand("ids", n, dtype=DType.I32), operand("Y", n, c)]
    ptx, _ = run(kernel(operands, [[grid("t", n, 8, grid("c", c, 36, body))]]), {"E": rand(11, c), "ids": ids})
    assert "ld.global.nc.v4.b32" in ptx


def test_integer_outputs() -> None:
    value = op("//", op("-", op("*", "i", 7), 40), 3)
    body = Compute(at("Y", "i"), value, (axis("i", 100, lanes(4)),))
    run(kernel([operand("Y", 100, dtype=DType.I32)], [[body]]), {})


def test_sequential_loops_bound_by_outer_ones() -> None:
    n = 40
    inner = Compute(
        at("Y", "i.0", "j"),
        at("X", "i.0", "j"),
        (axis_from("j", "j.0", fn("min", op("+", "j.0", 8), op("+", "i.0", 1)), 8),),
    )
    body = loop("j", n, 8, inner)
    bounded = type(body)("j.0", Num(0), op("+", "i.0", 1), 8, "seq", body.body)
    k = kernel([operand("X", n, n), operand("Y", n, n)], [[grid("i", n, 1, bounded)]])
    run(k, {"X": rand(n, n), "Y": rand(n, n)})


def axis_from(name: str, start: str, stop: Expr, block: int):  # type: ignore[no-untyped-def]
    from tcomp.ir.tile import Axis

    return Axis(name, ex(start), stop, block, spread=lanes())


def test_two_phases_share_a_team_tile() -> None:
    from tcomp.ir.tile import Buffer, Scope

    n = 100
    team = Buffer("P", DType.F32, (n,), Scope.TEAM)
    a = tile_axis("i", 32, n, lanes())
    first = grid("i", n, 32, Compute(at("P", "i"), op("*", at("X", "i"), 2.0), (a,)))
    second = grid("i", n, 32, Compute(at("Y", "i"), op("+", at("P", "i"), at("P", op("-", n - 1, "i"))), (a,)))
    run(kernel([operand("X", n), operand("Y", n)], [[first], [second]], [team]), {"X": rand(n)})


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"])
def test_every_target(target: str) -> None:
    n = 77
    body = Compute(at("Y", "i"), fn("exp", at("X", "i")), (axis("i", n, lanes(4)),))
    ptx, _ = run(
        kernel([operand("X", n, dtype=DType.BF16), operand("Y", n)], [[body]]), {"X": rand(n)}, machine(target)
    )
    assert f".target {target}" in ptx
