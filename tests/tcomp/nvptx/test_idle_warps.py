"""Warps that have no part of a product's tile: where there are more of them than its rows or columns need, or a last
turn that not all of them take. What they load lies inside the tile."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.test_ops_gpu import execute

OP = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N]{more}:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n]
{lines}
schedule f on sm_90a:
  m -> grid.y({rows}) / mma
  n -> grid.x({columns}) / mma
  k -> seq(64) / mma
  stage X, W in shared at k by tma
  use {use} for acc
"""
TURNED = ", T: f32[N, M]", "  T[n, m] = Y[m, n]\n", "  m of T -> lane.x / vec(4)\n  n of T -> warp.y(8) / lane.y(1)\n"
CASES = {
    "a last turn of rows and columns": (
        "96) / warp.y(16, 4",
        "96) / warp.x(16, 4",
        "mma.sync",
        (150, 96),
        ("", "", ""),
    ),
    "a last turn of warpgroups": ("192) / warpgroup(64, 2", "8", "wgmma", (200, 8), ("", "", "")),
    "warps of another equation": ("48) / warp.y(16", "144) / warp.x(48", "mma.sync", (16, 64), TURNED),
}


@pytest.mark.parametrize("what", CASES)
def test_what_they_load_lies_inside_the_tile(what: str) -> None:
    rows, columns, use, (m, n), (more, lines, levels) = CASES[what]
    text = OP.format(rows=rows, columns=columns, use=use, more=more, lines=lines) + levels
    module, dims = load_text(text), {"M": m, "N": n, "K": 72}
    op, rng = module.ops["f"], np.random.default_rng(1)
    inputs = {name: rng.integers(-3, 4, (dims[d], 72)).astype(np.float32) for name, d in (("X", "M"), ("W", "N"))}
    got = execute(lower(op, module, dims, H100), op, inputs)
    for name, wanted in evaluate(op, module, inputs, dims).items():
        np.testing.assert_array_equal(got[name], wanted)


@pytest.mark.parametrize("levels, tile", [("144) / warpgroup(64, 2", 144), ("80) / warpgroup(64, 1", 80)])
def test_warpgroups_multiply_whole_tiles_only(levels: str, tile: int) -> None:
    """The last turn's instruction would read rows behind the tile: others, perhaps while they are being copied."""
    text = OP.format(rows=levels, columns="8", use="wgmma", more="", lines="")
    module = load_text(text, "f.tc")
    with pytest.raises(TcError, match=f"loop 'm' has tiles of {tile} rows") as e:
        lower(module.ops["f"], module, {"M": 150, "N": 8, "K": 72}, H100)
    assert "multiple of 64" in e.value.hint
