"""Tiles that are staged outside of a loop over what matrix instructions read of them: they have room for its last turn,
and where they are swizzled every turn begins with a panel."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.gpu import H100
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.test_ops_gpu import execute

TEXT = """
op f(X: {t}[M, K], W: {t}[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid(64) / {rows} / mma
  n -> grid(16) / mma
  k -> {part}pipe({step}, 2) / mma
  stage X in shared at n by {by}
  stage W in shared at k by {rest}
  use {use} for Y
"""


def text(part: int, step: int, by: str, t: str = "bf16", use: str = "mma.sync", rows: str = "warp.y(32)") -> str:
    """`part` 0: the sum is not divided among blocks."""
    found = TEXT.format(part=f"grid.z({part}) / " * (part > 0), step=step, by=by, rest=by.split("(")[0], t=t, use=use,
                        rows=rows)  # fmt: skip
    return found + "  combine Y over k by partials\n" * (part > 0)


@pytest.mark.parametrize(
    ("source", "k"),
    [
        (text(48, 32, "cp.async"), 144),  # the second turn of each part has 16 of its 32 values
        (text(96, 32, "cp.async"), 71),  # and the last one of the whole sum 7
        (text(64, 32, "cp.async swizzle"), 144),  # rows of 128 bytes, of which a turn reads half
        (text(128, 64, "cp.async swizzle", "e5m2"), 160),
        (text(0, 32, "tma"), 128),
    ],
)
def test_every_turn_reads_its_own_part(source: str, k: int) -> None:
    module, dims, rng = load_text(source), {"M": 64, "N": 16, "K": k}, np.random.default_rng(1)
    op = module.ops["f"]
    inputs = {name: rng.integers(-3, 4, (dims[d], k)).astype(np.float32) for name, d in (("X", "M"), ("W", "N"))}
    got = execute(lower(op, module, dims, H100), op, inputs)
    np.testing.assert_array_equal(got["Y"], evaluate(op, module, inputs, dims)["Y"])


def test_a_swizzle_wider_than_a_turn_is_refused() -> None:
    module = load_text(text(64, 32, "cp.async swizzle(128)"), "f.tc")
    message = r"does not fit X: a row of its tile has 128 bytes, read 64 at a time"
    with pytest.raises(TcError, match=message):
        lower(module.ops["f"], module, {"M": 64, "N": 16, "K": 144}, H100)


def test_wgmma_reads_whole_tiles() -> None:
    module = load_text(text(0, 64, "tma", use="wgmma", rows="warpgroup(64)"), "f.tc")
    (kernel,) = lower(module.ops["f"], module, {"M": 64, "N": 16, "K": 256}, H100).kernels
    with pytest.raises(UserError, match=r"wgmma on a part of the tile(.|\n)*stage X in shared at k by tma"):
        compile_kernel(kernel, H100)
