"""Results that leave through shared memory by the copy engine: in the background, whole lines, clipped at the ends."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, held
from tcomp.ir.print import print_kernel
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import given, launch, lowered, run

RNG = np.random.default_rng(9)
CORES = """
op f(X: f32[M, K], W: f32[N, K], b: f32[N]) -> Y: {t}[M, N]{more}:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] {eq} acc[m, n] + b[n]

schedule f on sm_90a:
  m -> grid.y(16) / warp.y(16) / lane.y(4)
  n -> grid.x(32) / warp.x(16) / lane.x / vec(2)
  k -> pipe(16, 2) / vec(4)
  stage X, W in shared at k by {by}
  stage Y in shared at n by tma
  {flags}
"""
TENSOR = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y(256) / cluster(128) / warpgroup(64) / mma
  n -> grid.x({bn}) / mma
  k -> pipe(64, 3) / mma
  stage X, W in shared at k by tma
  stage Y in shared at n by tma
  use wgmma for Y
  producer warp
  persistent
  raster(8)
"""
TWO = "-> Y: bf16[M, N], Z: bf16[M, N]"


@pytest.mark.parametrize(
    "t,by,flags,m,n,k",
    [
        ("f32", "cp.async", "", 16, 32, 32),
        ("bf16", "tma", "producer warp\n  persistent", 37, 72, 40),
        ("f32", "tma", "persistent", 5, 36, 20),
    ],
)
def test_products_with_a_bias(t: str, by: str, flags: str, m: int, n: int, k: int) -> None:
    found = lowered(CORES.format(t=t, by=by, flags=flags, eq="=", more=""), {"M": m, "N": n, "K": k})
    assert re.search(r"unpack Y\.out\d+ to Y\[m, n\] by tma", print_kernel(found))
    ptx, _ = run(found, given(found, RNG), replace(H100, sms=2), tolerance=1e-4)
    assert "st.global" not in ptx and "cp.async.bulk.tensor.2d.global.shared::cta" in ptx


@pytest.mark.slow
@pytest.mark.parametrize(
    "bn,m,n,panels", [(64, 390, 136, ""), (256, 300, 520, "stages 2"), (192, 140, 392, "stages 2")]
)
def test_products_on_tensor_cores_meet_no_bank_conflict(bn: int, m: int, n: int, panels: str) -> None:
    """One panel and several, an even and an odd number of them, with tiles cut at both ends."""
    found = lowered(TENSOR.format(bn=bn), {"M": m, "N": n, "K": 136})
    text = print_kernel(found)
    assert (f"step 64 {panels}:" in text and "by 2 groups" in text) == bool(panels)
    ptx, reports = run(found, given(found, RNG), replace(H100, sms=2))
    assert "stmatrix.sync.aligned.m8n8.x4" in ptx and "st.global" not in ptx
    assert "0 bank conflicts" in str(reports[0])


ADDED = """
op f(dY: bf16[M, N], X: bf16[M, K]{old}) -> {new}:
  dW[n, k] {eq} sum m: dY[m, n] * X[m, k]

schedule f on sm_90a:
  n -> grid.y({rows}) / cluster({half}) / warpgroup(64) / mma
  k -> grid.x({bn}) / mma
  m -> grid.z(128) / pipe(64, {stages}) / mma
  stage dY, X in shared at m by tma
  stage dW in shared at k by tma
  use wgmma for dW
  combine dW over m by partials
  producer warp
  persistent
"""


def weight_gradient(t: str, bn: int, half: int = 128, stages: int = 3, adds: bool = False) -> str:
    old, new, eq = (f", inout dW: {t}[N, K]", "", "+=") if adds else ("", f"dW: {t}[N, K]", "=")
    text = ADDED.format(rows=2 * half, half=half, bn=bn, stages=stages, old=old, new=new, eq=eq)
    return text.replace(") -> :", "):")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bn", "half", "m", "n", "k", "adds"),
    [
        (256, 128, 72, 264, 520, True),  # panels of 32 columns, tiles cut at both ends
        (192, 192, 128, 200, 392, False),  # three warpgroups
        (16, 64, 64, 64, 24, False),  # one panel of 16 columns
        (256, 64, 72, 8, 24, True),  # a corner of a tile
        (64, 128, 300, 136, 264, True),  # three parts, joined in a second launch
        (64, 128, 300, 136, 264, False),
    ],
)
def test_f32_results_on_tensor_cores_meet_no_bank_conflict(
    bn: int, half: int, m: int, n: int, k: int, adds: bool
) -> None:
    found = lowered(weight_gradient("f32", bn, half, adds=adds), {"M": m, "N": n, "K": k})
    ptx, reports = run(found, given(found, RNG), replace(H100, sms=3), tolerance=1e-4)
    assert "0 bank conflicts" in str(reports[0])
    parts = m > 128
    assert len(reports) == 1 + parts and ("st.global" in ptx) == parts, "parts leave by the copy engine as well"
    assert ("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add" in ptx) == (adds and not parts)


def test_narrow_results_are_added_to_what_is_read() -> None:
    """In f32, and so rounded once."""
    found = lowered(weight_gradient("bf16", 256, adds=True), {"M": 72, "N": 264, "K": 520})
    ptx, reports = run(found, given(found, RNG), replace(H100, sms=2))
    assert "st.global" not in ptx and "cp.reduce" not in ptx and "0 bank conflicts" in str(reports[0])


@pytest.mark.parametrize("line", [r"fence\.proxy\.async\.shared::cta;", r"cp\.async\.bulk\.wait_group\.read \d;"])
def test_sums_that_are_handed_over_too_early_are_found(line: str) -> None:
    found = lowered(weight_gradient("f32", 256, adds=True), {"M": 64, "N": 256, "K": 512})
    gpu = compile_kernel(found, replace(H100, sms=2))
    broken = replace(gpu, ptx=re.sub(line, "", gpu.ptx))
    assert broken != gpu
    with pytest.raises(KernelFault, match=r"missing|completion|race"):
        launch(found, broken, given(found, RNG))


def two_results(bn: int, stages: int, other: str) -> str:
    """TENSOR with a second result of type `other`."""
    text = TENSOR.format(bn=bn).replace("pipe(64, 3)", f"pipe(64, {stages})").replace("-> Y: bf16[M, N]", TWO)
    text = text.replace("  Y[m, n] = sum", "  a[m, n]: f32 = sum").replace(
        "\n\nsched", "\n  Y[m, n] = a[m, n]\n  Z[m, n] = 2.0 * a[m, n]\n\nsched"
    )
    return text.replace("stage Y in", "stage Y, Z in").replace("for Y", "for a").replace("Z: bf16", f"Z: {other}")


def test_memory_for_one_copy_of_a_panel() -> None:
    """A deeper ring leaves no room for two: each panel waits until the one before it has left."""
    found = lowered(two_results(256, 4, "f32"), {"M": 260, "N": 264, "K": 72})
    text = print_kernel(found)
    assert text.count("step 64 stages 1:") == 1 and text.count("step 32 stages 1:") == 1
    run(found, given(found, RNG), replace(H100, sms=2))


def test_tiles_of_two_results_are_awaited_together() -> None:
    """Once a turn, in front of the first, and at the end; barriers: before the turns, there, behind each tile."""
    text = CORES.format(t="f32", by="tma", flags="persistent", eq="=", more=", Z: f32[M, N]")
    text = text.replace("+ b[n]\n", "+ b[n]\n  Z[m, n] = acc[m, n] * 2.0\n").replace("stage Y in", "stage Y, Z in")
    found = lowered(text, {"M": 48, "N": 64, "K": 16})
    ptx, _ = run(found, given(found, RNG), replace(H100, sms=2))
    assert (ptx.count("wait_group.read"), ptx.count("bar.sync")) == (2, 4)


@pytest.mark.parametrize(
    "bn,stages,n,panels", [(256, 4, 264, 1), (256, 3, 520, 2), pytest.param(192, 3, 392, 2, marks=pytest.mark.slow)]
)
def test_results_leave_in_turn(bn: int, stages: int, n: int, panels: int) -> None:
    """Panels of two results, one loop, with a copy of each or two."""
    found = lowered(two_results(bn, stages, "bf16"), {"M": 300, "N": n, "K": 72})
    text = print_kernel(found)
    assert re.findall(r"panel .* step 64 stages (\d)", text) == [str(panels)]
    inputs = given(found, RNG)
    ptx, reports = run(found, inputs, replace(H100, sms=2))
    assert "0 bank conflicts" in str(reports[0])
    gpu = compile_kernel(found, replace(H100, sms=2))
    broken = replace(gpu, ptx=ptx.replace(f"cp.async.bulk.wait_group.read {2 * panels - 2};", ""))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault, match=r"missing|completion|race"):
        launch(found, broken, inputs)


def test_panels_that_are_not_awaited_are_found() -> None:
    found = lowered(TENSOR.format(bn=256), {"M": 256, "N": 1024, "K": 64})
    gpu = compile_kernel(found, replace(H100, sms=2))
    broken = replace(gpu, ptx=gpu.ptx.replace("cp.async.bulk.wait_group.read 0;", ""))
    assert broken != gpu
    with pytest.raises(KernelFault, match=r"missing|completion|race"):
        launch(found, broken, given(found, RNG))


@pytest.mark.parametrize(
    "kind,line",
    [("missing proxy fence", r"fence\.proxy\.async\.shared::cta;"), ("bulk", r"cp\.async\.bulk\.wait_group\.read 0;")],
)
def test_what_is_left_out_is_found(kind: str, line: str) -> None:
    """The tests above would notice a write that is not fenced, or not awaited before its tile is written again."""
    text = CORES.format(t="f32", by="tma", flags="persistent", eq="=", more="")
    found = lowered(text, {"M": 48, "N": 64, "K": 16})
    gpu = compile_kernel(found, replace(H100, sms=2))
    broken = replace(gpu, ptx=re.sub(line, "", gpu.ptx))
    assert broken != gpu
    with pytest.raises(KernelFault, match=r"missing|completion|race"):
        launch(found, broken, given(found, RNG))


def test_assembled_for_the_published_shape() -> None:
    found = lowered(TENSOR.format(bn=256), {"M": 4096, "N": 4096, "K": 4096})
    gpu = compile_kernel(found, H100)
    assembled = assemble(gpu.ptx, "sm_90a")
    (r,) = assembled.resources
    assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0 and not assembled.findings
    assert gpu.launches[0].shared_bytes <= H100.shared_per_block


@pytest.mark.parametrize(
    "change,n,message",
    [
        (("", ""), 33, "Y cannot be staged by tma: the stride of dimension 1 is 132 bytes"),
        (("sum k:", "sum k where k <= m:"), 32, "Y cannot be written through shared memory: it is scattered, guarded"),
    ],
)
def test_refused(change: tuple[str, str], n: int, message: str) -> None:
    text = CORES.format(t="f32", by="cp.async", flags="", eq="=", more="")
    text = text.replace("acc[m, n] =", "Y[m, n] =").replace("  Y[m, n] = acc[m, n] + b[n]\n", "") if change[0] else text
    text = text.replace("k -> pipe(16, 2) / vec(4)\n  stage X, W in shared at k by cp.async", "") if change[0] else text
    with pytest.raises(TcError) as e:
        lowered(text.replace(*change), {"M": 32, "N": n, "K": 32})
    assert message in e.value.message and e.value.hint
    assert "stage Y" in text.splitlines()[e.value.span.line - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["matmul", "linear", "linear_residual", "matmul_residual", "linear_gelu"])
def test_shipped_products_spill_nothing_where_columns_are_no_whole_tiles(name: str) -> None:
    module = load("models/ops/linear.tc")
    for n in (576, 1000):
        (found,) = lower(bound(module.ops[name], DType.BF16), module, {"M": 512, "N": n, "K": 512}, H100).kernels
        assembled = assemble(compile_kernel(found, H100).ptx, "sm_90a")
        assert not assembled.findings and all(r.spill_store_bytes == 0 for r in assembled.resources)


@pytest.mark.slow
@pytest.mark.parametrize("adds", [False, True])
def test_the_weight_gradient_of_gpt2_1558m_spills_nothing(adds: bool) -> None:
    """1600 columns are six tiles of 256 and a quarter: stores from registers tested every value, and spilled."""
    module = load("models/ops/linear.tc")
    backward = backward_of("linear", module)
    assert backward is not None
    op = held(bound(backward, DType.BF16), {"dW": DType.F32})
    op = accumulating(op, frozenset({"dW"})) if adds else op
    kernels = lower(op, module, {"M": 4096, "N": 4800, "K": 1600}, H100).kernels
    (found,) = (x for x in kernels if "dW" in x.writes)
    assembled = assemble(compile_kernel(found, H100).ptx, "sm_90a")
    assert not assembled.findings and all(r.spill_store_bytes == 0 for r in assembled.resources)


@pytest.mark.parametrize("m", [72, 128])
def test_warpgroups_deliver_their_own_rows_of_a_batch(m: int) -> None:
    text = """
op f(X: bf16[B, M, K], W: bf16[B, N, K]) -> Y: bf16[B, M, N]:
  Y[b, m, n] = sum k: X[b, m, k] * W[b, n, k]

schedule f on sm_90a:
  b -> grid(1)
  m -> grid(128) / warpgroup(64) / mma
  n -> grid(128) / mma
  k -> pipe(64, 2) / mma
  stage X, W in shared at k by tma
  stage Y in shared at n by tma
  use wgmma for Y
"""
    k = lowered(text, {"B": 3, "M": m, "N": 128, "K": 64})
    run(k, given(k, RNG), replace(H100, sms=2))
