"""Sums that every block that reads them computes again (`inline` of a sum, `joining/again.py`): a norm's in the blocks
of the product behind it, from the tiles that the product reads."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Pack, Scope
from tcomp.ir.walk import statements_in
from tcomp.machine.gpu import A100, B200, H100, GpuMachine
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import given, lowered, run
from tests.tcomp.test_schedule_gpu import assert_keeps_results

NORM = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N], r: f32[M]:
  s[m] = sum k: X[m, k] * X[m, k]
  acc[m, n] = sum k: X[m, k] * W[n, k]
  r[m] = rsqrt(s[m] / K + 1e-5)
  Y[m, n] = acc[m, n] * r[m]

schedule f on {}:
  m -> grid.y(128) / {} / mma
  n -> grid.x(64) / {}mma
  k -> pipe(64, 2) / mma
  inline s, r
  fuse s, acc at k
  stage X, W in shared at k by {}
  use {} for acc
"""
SM_80 = NORM.format("sm_80", "warp.y(32)", "warp.x(32) / ", "cp.async swizzle", "mma.sync")
SM_90A = NORM.format("sm_90a", "warpgroup(64)", "", "tma", "wgmma")
SM_100A = NORM.format("sm_100a", "warpgroup(128)", "", "tma", "tcgen05")
# Mean and variance, the second from the first: two passes over the rows, of which the product shares the second.
LAYER_NORM = """
op f(X: bf16[M, K], W: bf16[N, K], u: f32[N]) -> Y: f32[M, N]:
  s[m] = sum k: X[m, k]
  mean[m] = s[m] / K
  v[m] = sum k: (X[m, k] - mean[m]) * (X[m, k] - mean[m])
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = (acc[m, n] - mean[m] * u[n]) * rsqrt(v[m] / K + 1e-5)

schedule f on sm_80:
  m -> grid.y(64) / warp.y(32) / mma
  n -> grid.x(64) / warp.x(32) / mma
  k -> pipe(32, 2) / mma
  inline s, mean, v
  fuse v, acc at k
  stage X, W in shared at k by cp.async swizzle
  use mma.sync for acc
"""
DIMS = {"M": 136, "N": 72, "K": 136}


@pytest.mark.parametrize(
    "text,machine",
    [
        (SM_80, A100),
        pytest.param(SM_90A, H100, marks=pytest.mark.slow),
        pytest.param(SM_100A, B200, marks=pytest.mark.slow),
    ],
)
def test_a_norms_sum_is_made_in_each_block_of_the_product(text: str, machine: GpuMachine) -> None:
    found = lowered(text, DIMS, machine)
    packs = [s.source.tensor for phase in found.phases for s in statements_in(phase) if isinstance(s, Pack)]
    assert sorted(packs) == ["W", "X"], "one copy of a tile for both"
    assert found.buffer("s").scope is Scope.REGISTERS and len(found.phases) == 1
    _, reports = run(found, given(found, np.random.default_rng(3)), machine, tolerance=1e-4)
    assert not any(r.findings for r in reports)


@pytest.mark.parametrize("text", [SM_80, LAYER_NORM])
def test_it_keeps_the_oracles_result(text: str) -> None:
    module = load_text(text)
    op = module.ops["f"]
    assert_keeps_results(op, module, DIMS, lower(op, module, DIMS, A100))


@pytest.mark.parametrize(
    "old,new,why",
    [
        ("n -> grid.x(64) / warp.x(32)", "n -> warp.x(32)", "it is a sum, and no further blocks read it"),
        ("s[m] = sum k: X[m, k] * X[m, k]", "t[m, k] = X[m, k] * 2.0\n  s[m] = sum k: t[m, k] * t[m, k]", "'t', which"),
    ],
)
def test_a_sum_that_no_other_block_needs_or_of_what_is_made_here_is_refused(old: str, new: str, why: str) -> None:
    assert old in SM_80
    with pytest.raises(TcError, match=f"'s' cannot be inlined: {why}"):
        lowered(SM_80.replace(old, new), DIMS, A100)


def test_a_map_between_the_sum_and_its_blocks_is_to_be_inlined_too() -> None:
    """And then it can be: without the line the refusal's advice is to inline the sum."""
    made = "q[m] = s[m] / K\n  z[m] = q[m]\n  r[m] = rsqrt(q[m] + 1e-5)"
    text = SM_80.replace("r: f32[M]", "z: f32[M]").replace("r[m] = rsqrt(s[m] / K + 1e-5)", made)
    with pytest.raises(TcError) as refused:
        lowered(text.replace("inline s, r", "inline s"), DIMS, A100)
    assert refused.value.hint.endswith("too: inline s, q, r")
    lowered(text.replace("inline s, r", "inline s, q, r"), DIMS, A100)


@pytest.mark.parametrize("order", ["k, n, m", "m, k"])
def test_a_block_that_takes_its_columns_in_turns_sums_once(order: str) -> None:
    text = """
op f(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N], r: f32[M]:
  s[m] = sum k: X[m, k] * X[m, k]
  acc[m, n] = sum k: X[m, k] * W[n, k]
  r[m] = s[m] + 1.0
  Y[m, n] = acc[m, n] * s[m]

schedule f on sm_80:
  m -> grid.y(8)
  n -> grid.x(8) / seq(4)
  k -> pipe(4)
  inline s
  order """
    module, dims = load_text(text + order + "\n"), {"M": 13, "N": 11, "K": 9}
    op = module.ops["f"]
    assert_keeps_results(op, module, dims, lower(op, module, dims, A100))
