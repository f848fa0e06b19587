"""Reductions on the virtual GPU: by one thread, lanes, warps and all of them; guards, ragged sizes, several types."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Num
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Axis, Compute, Kernel, Spread
from tests.tcomp.nvptx.support import (
    at,
    axis,
    fn,
    grid,
    kernel,
    lanes,
    local,
    loop,
    op,
    operand,
    registers,
    run,
    tile_axis,
)

RNG = np.random.default_rng(3)
WARPS = Spread(4, "x", 32, "x", 4, 128)
SPREADS = {
    "one thread": (None, ThreadShape()),
    "lanes": (lanes(), ThreadShape()),
    "lanes by 4": (lanes(4), ThreadShape()),
    "half lanes": (lanes(2, 16), ThreadShape(1, 1, 16, 2)),
    "lanes y": (lanes(1, 4, "y"), ThreadShape(1, 1, 8, 4)),
    "warps": (WARPS, ThreadShape(4)),
    "three warps": (Spread(1, "x", 32, "x", 3, 32), ThreadShape(3)),
    "warps only": (Spread(2, "", 1, "y", 2, 8), ThreadShape(1, 2)),
    "uneven warp tiles": (Spread(2, "x", 32, "x", 2, 40), ThreadShape(2)),
}


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def rows(m: int, n: int, spread: Spread | None, shape: ThreadShape, reducer: str = "sum") -> Kernel:
    body = Compute(
        at("s", "m"),
        op("*", at("X", "m", "c"), at("X", "m", "c")),
        (tile_axis("m", 2, m), axis("c", n, spread)),
        frozenset({"c"}),
        reducer,
    )
    return kernel([operand("X", m, n), operand("s", m)], [[grid("m", m, 2, body)]], threads=shape)


@pytest.mark.parametrize("n", [1, 7, 32, 64, 127, 512, 700])
@pytest.mark.parametrize("name", SPREADS)
def test_sums_of_rows(name: str, n: int) -> None:
    spread, shape = SPREADS[name]
    run(rows(5, n, spread, shape), {"X": rand(5, n)}, tolerance=1e-4)


@pytest.mark.parametrize("reducer", ["max", "min"])
@pytest.mark.parametrize("name", ["lanes by 4", "warps"])
def test_extremes(name: str, reducer: str) -> None:
    spread, shape = SPREADS[name]
    for n in (3, 130, 512):
        run(rows(4, n, spread, shape, reducer), {"X": rand(4, n)})


def test_whole_rows_need_no_masks() -> None:
    ptx, _ = run(rows(4, 512, lanes(4), ThreadShape()), {"X": rand(4, 512)}, tolerance=1e-4)
    assert "selp" not in ptx and "v4.b32" in ptx and "shfl.sync.bfly" in ptx and "bar.sync" not in ptx


@pytest.mark.parametrize("name", ["one thread", "lanes by 4", "warps"])
def test_accumulating_with_a_guard(name: str) -> None:
    spread, shape = SPREADS[name]
    n = 150
    body = Compute(
        at("s", "m"),
        at("X", "m", "c"),
        (axis("m", 6), axis("c", n, spread)),
        frozenset({"c"}),
        "sum",
        True,
        op("<=", "c", op("*", "m", 20)),
    )
    k = kernel([operand("X", 6, n), operand("s", 6)], [[body]], threads=shape)
    run(k, {"X": rand(6, n), "s": rand(6)}, tolerance=1e-4)


@pytest.mark.parametrize("name", ["lanes", "warps"])
def test_no_values_at_all(name: str) -> None:
    """Rows of a triangle: c < m, empty for the first."""
    spread, shape = SPREADS[name]
    c = Axis("c", Num(0), op("*", "m.0", 10), 70, spread=spread)
    body = Compute(at("s", "m.0"), at("X", "m.0", "c"), (c,), frozenset({"c"}), "sum")
    k = kernel([operand("X", 8, 70), operand("s", 8)], [[grid("m", 8, 1, body)]], threads=shape)
    run(k, {"X": rand(8, 70)}, tolerance=1e-4)


def test_parallel_and_reduced_axes_share_a_warp() -> None:
    """Rows along lane.y and warp.y, columns along lane.x and warp.x."""
    shape = ThreadShape(2, 2, 8, 4)
    for m, n in ((8, 64), (13, 50), (1, 1)):
        rs, cs = Spread(1, "y", 4, "y", 2, 8), Spread(2, "x", 8, "x", 2, 16)
        body = Compute(
            at("s", "m"), at("X", "m", "c"), (tile_axis("m", 16, m, rs), axis("c", n, cs)), frozenset({"c"}), "sum"
        )
        run(
            kernel([operand("X", m, n), operand("s", m)], [[grid("m", m, 16, body)]], threads=shape),
            {"X": rand(m, n)},
            tolerance=1e-4,
        )


def test_columns_by_warps_of_rows() -> None:
    """sum over rows divided among warps, columns along lanes."""
    shape = ThreadShape(1, 4)
    for m, n in ((16, 64), (37, 50)):
        body = Compute(
            at("s", "c"),
            at("X", "m", "c"),
            (tile_axis("c", 64, n, lanes(2)), axis("m", m, Spread(1, "", 1, "y", 4, 4))),
            frozenset({"m"}),
            "sum",
        )
        ptx, _ = run(
            kernel([operand("X", m, n), operand("s", n)], [[grid("c", n, 64, body)]], threads=shape),
            {"X": rand(m, n)},
            tolerance=1e-4,
        )
        assert "shfl" not in ptx and "bar.sync" in ptx


def test_two_reduced_axes() -> None:
    body = Compute(
        at("s", "m"),
        at("X", "m", "a", "b"),
        (axis("m", 3), axis("a", 5), axis("b", 45, lanes(2))),
        frozenset({"a", "b"}),
        "sum",
    )
    run(kernel([operand("X", 3, 5, 45), operand("s", 3)], [[body]]), {"X": rand(3, 5, 45)}, tolerance=1e-4)


def test_more_rows_than_accumulators() -> None:
    body = Compute(at("s", "m"), at("X", "m", "c"), (axis("m", 600), axis("c", 40, WARPS)), frozenset({"c"}), "sum")
    run(
        kernel([operand("X", 600, 40), operand("s", 600)], [[body]], threads=ThreadShape(4)),
        {"X": rand(600, 40)},
        tolerance=1e-4,
    )


def test_in_f64() -> None:
    spread, shape = SPREADS["warps"]
    body = Compute(
        at("s"),
        op("*", fn("f64", at("X", "c")), fn("f64", at("X", "c"))),
        (axis("c", 1000, spread),),
        frozenset({"c"}),
        "sum",
    )
    k = kernel([operand("X", 1000), operand("s", dtype=DType.F64)], [[body]], threads=shape)
    run(k, {"X": rand(1000)}, tolerance=1e-12)


def test_of_integers() -> None:
    spread, shape = SPREADS["warps"]
    for reducer in ("sum", "max"):
        body = Compute(at("s"), at("X", "c"), (axis("c", 333, spread),), frozenset({"c"}), reducer)
        k = kernel([operand("X", 333, dtype=DType.I32), operand("s", dtype=DType.I32)], [[body]], threads=shape)
        run(k, {"X": RNG.integers(-1000, 1000, 333)})


@pytest.mark.parametrize("n", [64, 77, 200])
def test_softmax_in_registers(n: int) -> None:
    """Rows along lanes y, columns along lanes x; maximum, weights and sum stay in registers."""
    shape = ThreadShape(1, 2, 8, 4)
    q, k = Spread(1, "y", 4, "y", 2, 4), Spread(2, "x", 8)
    m = 13
    qa, ka = tile_axis("q", 8, m, q), tile_axis("k", 32, n, k)
    lq = local("q")
    tiles = [registers("mx", (8, q)), registers("l", (8, q)), registers("new", (8, q)), registers("w", (8, q), (32, k))]
    body = [
        Compute(at("mx", lq), Num(-1e30), (qa,)),
        Compute(at("l", lq), Num(0.0), (qa,)),
        loop(
            "k",
            n,
            32,
            Compute(at("new", lq), at("X", "q", "k"), (qa, ka), frozenset({"k"}), "max"),
            Compute(at("new", lq), fn("max", at("new", lq), at("mx", lq)), (qa,)),
            Compute(at("w", lq, local("k")), fn("exp", op("-", at("X", "q", "k"), at("new", lq))), (qa, ka)),
            Compute(at("l", lq), op("*", at("l", lq), fn("exp", op("-", at("mx", lq), at("new", lq)))), (qa,)),
            Compute(at("l", lq), at("w", lq, local("k")), (qa, ka), frozenset({"k"}), "sum", True),
            Compute(at("mx", lq), at("new", lq), (qa,)),
        ),
        Compute(at("Y", "q"), op("+", at("mx", lq), fn("log", at("l", lq))), (qa,)),
    ]
    ptx, _ = run(
        kernel([operand("X", m, n), operand("Y", m)], [[grid("q", m, 8, *body)]], tiles, shape),
        {"X": rand(m, n)},
        tolerance=1e-4,
    )
    assert "bar.sync" not in ptx and "shared" not in ptx.replace(".extern .shared", "").replace("tc_shared", "")


def test_a_row_that_all_threads_know() -> None:
    """A mean in a register that every thread holds, used by all of them."""
    spread, shape = SPREADS["warps"]
    n = 300
    mean = registers("mean", (1, SERIAL))
    row = Axis("m", Num(0), Num(1), 1)
    body = [
        Compute(at("mean", "m"), at("X", "m.0", "c"), (row, axis("c", n, spread)), frozenset({"c"}), "sum"),
        Compute(
            at("Y", "m.0", "c"), op("-", at("X", "m.0", "c"), op("/", at("mean", 0), float(n))), (axis("c", n, spread),)
        ),
    ]
    k = kernel([operand("X", 3, n), operand("Y", 3, n)], [[grid("m", 3, 1, *body)]], [mean], shape)
    run(k, {"X": rand(3, n)}, tolerance=1e-4)


@pytest.mark.parametrize("reducer", ["sum", "max"])
@pytest.mark.parametrize(
    "warps, lanes_x, each", [(16, 8, 16), (8, 8, 16), (16, 16, 8), (4, 32, 16)], ids=lambda n: str(n)
)
def test_many_results_of_a_thread_are_joined_by_a_few(reducer: str, warps: int, lanes_x: int, each: int) -> None:
    """Of columns, which all warps have rows of: no thread reads as many parts as if it joined its own."""
    lanes_y = 32 // lanes_x
    m, n = 2 * lanes_y * warps, lanes_x * each
    body = Compute(
        at("s", "c"),
        at("X", "m", "c"),
        (axis("c", n, Spread(4, "x", lanes_x)), axis("m", m, Spread(2, "y", lanes_y, "y", warps, 2 * lanes_y))),
        frozenset({"m"}),
        reducer,
    )
    k = kernel([operand("X", m, n), operand("s", n)], [[body]], threads=ThreadShape(1, warps, lanes_x, lanes_y))
    ptx, reports = run(k, {"X": rand(m, n)}, tolerance=1e-4)
    assert ptx.count("ld.shared") + ptx.count("shfl.sync") < each * warps // 2
    assert ptx.count("bar.sync") + ptx.count("barrier.sync") == 2
    assert all(r.traffic["shared"].bank_conflicts == 0 for r in reports)


@pytest.mark.parametrize(
    "spread, shape, each",
    [
        (Spread(2, "", 1, "y", 16, 2), ThreadShape(1, 16, 8, 4), 16),
        (Spread(2, "y", 4, "y", 8, 8), ThreadShape(2, 8, 8, 4), 16),
        (Spread(2, "", 1, "y", 18, 2), ThreadShape(1, 18), 4),
        (Spread(2, "y", 2, "y", 17, 4), ThreadShape(1, 17, 16, 2), 8),
    ],
    ids=["lanes with equal parts", "warps with equal parts", "18 parts", "34 parts"],
)
def test_each_part_counts_once_where_many_results_are_joined(spread: Spread, shape: ThreadShape, each: int) -> None:
    """Threads that no axis is divided along have equal parts, and no helper goes beyond the last part."""
    m, n = 2 * max(1, spread.lanes) * spread.warps, shape.lanes_x * each
    axes = (axis("c", n, Spread(4, "x", shape.lanes_x)), axis("m", m, spread))
    body = Compute(at("s", "c"), at("X", "m", "c"), axes, frozenset({"m"}), "sum")
    run(kernel([operand("X", m, n), operand("s", n)], [[body]], threads=shape), {"X": rand(m, n)}, tolerance=1e-4)
