"""Random Computes on the virtual GPU against the tile interpreter: any spreads, sizes, tiles, guards and reducers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tcomp.dsl.ast import DType, Expr, Num
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Axis, Compute, Kernel, Pack, Pitched, Spread, Statement
from tests.tcomp.nvptx.support import (
    at,
    fn,
    grid,
    kernel,
    local,
    loop,
    op,
    operand,
    registers,
    run,
    shared,
    tile_axis,
)
from tests.turns import examples

SHAPES = [ThreadShape(), ThreadShape(2, 1, 16, 2), ThreadShape(1, 3, 8, 4), ThreadShape(2, 2, 4, 8)]


@st.composite
def spreads(draw: st.DrawFn, shape: ThreadShape, free: set[str]) -> Spread:
    """A spread along dimensions of the block that are still free."""
    lane = draw(st.sampled_from(["", *sorted(d[-1] for d in free if d.startswith("lane"))]))
    warp = draw(st.sampled_from(["", *sorted(d[-1] for d in free if d.startswith("warp"))]))
    free -= {f"lane.{lane}", f"warp.{warp}"}
    lanes = {"": 1, "x": shape.lanes_x, "y": shape.lanes_y}[lane]
    warps = {"": 1, "x": shape.warps_x, "y": shape.warps_y}[warp]
    grain = draw(st.sampled_from([1, 1, 2, 4]))
    tile = draw(st.sampled_from([lanes * grain, 2 * lanes * grain, grain * (lanes + 1)])) if warp else 0
    return Spread(grain, lane, lanes, warp, warps, tile)


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    """Y[m, n] or s[m] from X[m, n, k], in tiles, through an optional shared or register tile."""
    shape = draw(st.sampled_from(SHAPES))
    free = {"lane.x", "lane.y", "warp.x", "warp.y"}
    m, n, k = (draw(st.integers(1, 20)) for _ in range(3))  # (one tile of 16 and a part, or five of 4)
    bm, bn, bk = (draw(st.sampled_from([1, 4, 8, 16])) for _ in range(3))
    ns, ms, ks = (draw(spreads(shape, free)) for _ in range(3))
    ma, na, ka = tile_axis("m", bm, m, ms), tile_axis("n", bn, n, ns), tile_axis("k", bk, k, ks)
    x = at("X", "m", "n", "k")
    tiles = []
    inner: list[Statement] = []
    if draw(st.booleans()):
        pitch = bk + draw(st.sampled_from([0, 1, 4]))
        tiles.append(shared("x", bm, bn, bk, layout=Pitched(pitch), ring=draw(st.sampled_from([1, 2, 3]))))
        bare = tuple(Axis(a.name, a.start, a.stop, a.block) for a in (ma, na, ka))
        inner.append(Pack("x", bare, x, by=draw(st.sampled_from(["copy", "cp.async"]))))
        x = at("x", local("m"), local("n"), local("k"))
    value: Expr = draw(st.sampled_from([x, op("*", x, at("w", "k")), fn("max", x, fn("f32", op("-", "n", "m")))]))
    guard = draw(st.sampled_from([None, op("<=", "k", op("+", "m", "n")), op("!=", op("%", "k", 3), 0)]))
    reducer = draw(st.sampled_from(["sum", "max"]))
    across = draw(st.booleans())
    axes, reduced = ((ma, na, ka), {"k"}) if not across else ((ma, na, ka), {"n", "k"})
    kept = tuple(a for a in axes if a.name not in reduced)
    target = at("acc", *(local(a.name) for a in kept))
    in_registers = draw(st.booleans())
    if in_registers:
        tiles.append(registers("acc", *((a.block, a.spread or SERIAL) for a in kept)))
    else:
        tiles.append(shared("acc", *(a.block for a in kept)))
    inner.append(Compute(target, value, axes, frozenset(reduced), reducer, True, guard))
    level, stages = ("pipe", tiles[0].ring) if len(inner) > 1 else ("seq", 1)
    body: list[Statement] = [Compute(target, Num(0.25), kept)]
    steps = loop("k", k, bk, *inner, level=level, stages=stages)
    body.append(loop("n", n, bn, steps) if across else steps)
    out = at("Y", *(a.name for a in kept))
    body.append(Compute(out, op("+", target, 1.0), kept))
    top = grid("m", m, bm, *body) if across else grid("m", m, bm, grid("n", n, bn, *body))
    y = operand("Y", m) if across else operand("Y", m, n)
    return kernel([operand("X", m, n, k), operand("w", k), y], [[top]], tiles, shape)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(kernels(), st.integers(0, 2**31))
def test_any_reduction(k: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {o.name: rng.standard_normal(o.shape).astype(np.float32) for o in k.operands[:2]}
    run(k, inputs, tolerance=1e-4)


@pytest.mark.slow
@examples(16, 2, suppress_health_check=list(HealthCheck))
@given(kernels(), st.integers(0, 2**31))
def test_any_reduction_at_length(k: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {o.name: rng.standard_normal(o.shape).astype(np.float32) for o in k.operands[:2]}
    run(k, inputs, tolerance=1e-4)


@st.composite
def maps(draw: st.DrawFn) -> Kernel:
    """A map over two axes with any types, spreads and offsets."""
    shape = draw(st.sampled_from(SHAPES))
    free = {"lane.x", "lane.y", "warp.x", "warp.y"}
    m, n = draw(st.integers(1, 30)), draw(st.integers(1, 150))
    bm, bn = draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([1, 8, 32, 64, 100]))
    ns, ms = draw(spreads(shape, free)), draw(spreads(shape, free))
    dtype = draw(st.sampled_from([DType.F32, DType.F32, DType.BF16, DType.F64, DType.F16]))
    shift = draw(st.sampled_from([0, 1, 4]))
    x = at("X", "m", op("+", "n", shift))
    value = draw(st.sampled_from([x, op("-", x, at("X", 0, "n")), fn("select", op("<", "m", "n"), x, at("b", "m"))]))
    guard = draw(st.sampled_from([None, op(">=", "n", "m"), op("<", "m", 3)]))
    body = Compute(at("Y", "m", "n"), value, (tile_axis("m", bm, m, ms), tile_axis("n", bn, n, ns)), guard=guard,
                   reducer="sum", accumulate=draw(st.booleans()))  # fmt: skip
    top = grid("m", m, bm, grid("n", n, bn, body)) if draw(st.booleans()) else grid("m", m, bm, loop("n", n, bn, body))
    operands = [operand("X", m, n + shift, dtype=dtype), operand("b", m, dtype=dtype), operand("Y", m, n, dtype=dtype)]
    return kernel(operands, [[top]], threads=shape)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(maps(), st.integers(0, 2**31))
def test_any_map(k: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run(k, {o.name: rng.standard_normal(o.shape).astype(np.float32) for o in k.operands})


@pytest.mark.slow
@examples(50, 2, suppress_health_check=list(HealthCheck))
@given(maps(), st.integers(0, 2**31))
def test_any_map_at_length(k: Kernel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    run(k, {o.name: rng.standard_normal(o.shape).astype(np.float32) for o in k.operands})
