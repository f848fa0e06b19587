"""Long sums divided among blocks (split-K): parts in registers, joined in a second launch, the same bits every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.tile import Scope
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import given, lowered, run

RNG = np.random.default_rng(4)
CORES = """
op f(dY: {t}[M, N], X: {t}[M, K]{old}) -> {new}:
  dW[n, k] {eq} sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y(32) / warp.y(16) / lane.y(4) / vec
  k -> grid.x(32) / warp.x(16) / lane.x / vec(2)
  m -> grid.z(64) / pipe(32, 2)
  stage dY, X in shared at m by {by}
  combine dW over m by partials
"""
TENSOR = """
op f(dY: bf16[M, N], X: bf16[M, K]) -> dW: bf16[N, K]:
  dW[n, k] = sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y(128) / warpgroup(64) / mma
  k -> grid.x(64) / mma
  m -> grid.z(128) / pipe(64, 2) / mma
  stage dY, X in shared at m by tma
  use wgmma for dW
  combine dW over m by partials
  producer warpgroup(40)
  persistent
"""


@pytest.mark.slow
@pytest.mark.parametrize("m,n,k", [(150, 40, 48), (128, 32, 32), (70, 5, 7)])
@pytest.mark.parametrize("by,t", [("tma", "bf16"), ("cp.async", "f32")])
def test_parts_on_cuda_cores(m: int, n: int, k: int, by: str, t: str) -> None:
    if by == "tma":
        n, k = -(-n // 8) * 8, -(-k // 8) * 8  # rows that tensor maps can describe
    text = CORES.format(t=t, by=by, old="", new=f"dW: {t}[N, K]", eq="=")
    found = lowered(text, {"M": m, "N": n, "K": k})
    (partial,) = (b for b in found.tiles if b.scope is Scope.TEAM)
    assert partial.dtype is DType.F32 and partial.shape[0] == -(-m // 64)
    assert len(found.phases) == 2
    _, reports = run(found, given(found, RNG), tolerance=1e-4)
    assert reports[0].grid[0] == -(-m // 64) * -(-n // 32) * -(-k // 32)


@pytest.mark.parametrize("m", [64, 150])
def test_what_is_computed_from_a_sum_follows_its_join(m: int) -> None:
    """`acc` stays in registers, in the join's own loops, also where there is nothing to join."""
    text = CORES.format(t="f32", by="cp.async", old="", new="dW: f32[N, K]", eq="=")
    text = text.replace("dW[n, k] = sum", "acc[n, k] = sum").replace("combine dW", "combine acc")
    text = text.replace("X[m, k]\n", "X[m, k]\n  dW[n, k] = acc[n, k] * 0.5\n", 1)
    found = lowered(text, {"M": m, "N": 40, "K": 36})
    assert len(found.phases) == (2 if m > 64 else 1)
    assert [b.name for b in found.tiles if b.scope is Scope.TEAM] == (["acc.partial"] if m > 64 else [])
    run(found, given(found, RNG), tolerance=1e-4)


def test_a_sum_of_one_part_is_not_divided() -> None:
    text = CORES.format(t="f32", by="cp.async", old="", new="dW: f32[N, K]", eq="=")
    found = lowered(text, {"M": 64, "N": 40, "K": 36})
    assert len(found.phases) == 1 and not any(b.scope is Scope.TEAM for b in found.tiles)
    run(found, given(found, RNG), tolerance=1e-4)


def test_two_sums_over_one_index() -> None:
    text = """
op f(dY: f32[M, N], X: f32[M, N]) -> a: f32[N], b: f32[N]:
  a[n] = sum m: dY[m, n] * X[m, n]
  b[n] = sum m: dY[m, n]

schedule f on gpu:
  n -> grid.x(64) / lane.x / vec(2)
  m -> grid.y(32) / seq(16) / warp.y(4)
  combine a, b over m by partials
"""
    found = lowered(text, {"M": 75, "N": 70})
    assert {b.name for b in found.tiles if b.scope is Scope.TEAM} == {"a.partial", "b.partial"}
    run(found, given(found, RNG), tolerance=1e-4)


def test_parts_are_added_to_what_is_there() -> None:
    text = CORES.format(t="f32", by="cp.async", old=", inout dW: f32[N, K]", new="", eq="+=").replace(") -> :", "):")
    found = lowered(text, {"M": 150, "N": 40, "K": 36})
    run(found, given(found, RNG), tolerance=1e-4)


def test_parts_on_tensor_cores_with_a_producer() -> None:
    found = lowered(TENSOR, {"M": 364, "N": 136, "K": 72})
    few = replace(H100, sms=3)
    _, reports = run(found, given(found, RNG), few)
    assert [r.block[0] for r in reports] == [384, 256], "the joining launch has no producer"
    assert [r.grid[0] for r in reports] == [3, 3]


def test_a_weight_gradient_of_gpt2_fills_the_machine() -> None:
    """768 x 768 outputs are 18 tiles of 128 x 256; eight parts of a sum over 65536 make 144, for 132 processors."""
    text = (
        TENSOR.replace("grid.x(64)", "grid.x(256)").replace("grid.z(128)", "grid.z(8192)").replace("  persistent", "")
    )
    gpu = compile_kernel(lowered(text, {"M": 65536, "N": 768, "K": 768}), H100)
    assert [s.blocks for s in gpu.launches] == [144, 144] and gpu.team_bytes == 8 * 768 * 768 * 4
    assembled = assemble(gpu.ptx, "sm_90a")
    for r in assembled.resources:
        assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0
    assert not [m for m in assembled.findings if m.code != "C7504"]


@pytest.mark.slow
def test_a_shipped_weight_gradient_is_divided_while_tiles_leave_processors_idle() -> None:
    """Two parts of 1088 and 1024 rows; the second's last turn lies past the end, where tiles are zero."""
    module = load_text("import ops.linear\n", "f.tc")
    backward = backward_of("matmul", module)
    assert backward is not None
    kernels = lower(bound(backward, DType.BF16), module, {"M": 2112, "N": 136, "K": 264}, H100).kernels
    (found,) = (k for k in kernels if "dW" in k.writes)
    assert found.buffer("dW.partial").shape[0] == 2
    inputs = {
        o.name: RNG.standard_normal(o.shape).astype(np.float32) / 8 for o in found.operands if o.name in found.reads
    }
    run(found, inputs, replace(H100, sms=3))
