"""Products of two blocks together (tcgen05, `.cta_group::2`): each keeps half of the tile that both need."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.products.block_pairs import in_pairs
from tcomp.dsl.ast import DType
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.multicast import HALF
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx import support
from tests.tcomp.nvptx.test_tensor_memory import B200, agrees, text
from tests.test_ops_gpu import library

PAIR = "grid.y(256) / cluster(128) / warpgroup(128)"
DELIVERED = "persistent\n  stage Y in shared at n by tma"
FOUR = replace(B200, sms=4)


def pair(order: str = "along", rows: str = PAIR, lines: str = DELIVERED, **given: object) -> str:
    source = text(order, y="bf16", lines=lines, **{"columns": 128, **given})  # type: ignore[arg-type]
    return source.replace("grid.y(128) / warpgroup(128)", rows)


def lowered(source: str, m: int = 512, n: int = 256, k: int = 192) -> Kernel:
    return support.lowered(source, {"M": m, "N": n, "K": k}, FOUR)


@pytest.mark.parametrize(("order", "shape"), [("along", (64, 64)), ("mixed", (64, 64))])
def test_each_block_has_half_of_the_right_operand(order: str, shape: tuple[int, int]) -> None:
    """The other one's rows lie along the cluster."""
    kernel = lowered(pair(order))
    found = in_pairs(kernel, "sm_100a")
    tiles = {t.name.partition(".")[0]: t.shape for t in found.tiles}
    assert (tiles["X"], tiles["W"]) == ((128, 64), shape)
    assert found.gpu.cluster is not None and found.gpu.cluster.paired
    assert HALF in print_kernel(found)
    assert in_pairs(found, "sm_100a") == found


@pytest.mark.parametrize(
    "source",
    [pair(columns=48), pair(rows="grid.y(512) / cluster(128) / warpgroup(128)"), pair("across", columns=64),
     text(y="bf16")],
    ids=["48 columns", "four blocks", "half a panel", "no cluster"],
)  # fmt: skip
def test_else_blocks_multiply_alone(source: str) -> None:
    kernel = lowered(source)
    assert in_pairs(kernel, "sm_100a") is kernel
    assert "cta_group::2" not in compile_kernel(kernel, FOUR).ptx


def test_wgmma_has_no_pairs() -> None:
    source = pair().replace("sm_100a", "sm_90a").replace("use tcgen05", "use wgmma").replace("group(128)", "group(64)")
    kernel = support.lowered(source, {"M": 512, "N": 256, "K": 192}, H100)
    assert kernel.gpu.cluster is not None and in_pairs(kernel, "sm_90a") is kernel


@pytest.mark.parametrize(
    "source",
    [pair(), pair("across"), pair("mixed", columns=256), pair(x="e4m3", w="e5m2", columns=96, depth=128),
     pair(rows="grid.y(512) / cluster(256) / warpgroup(128)", columns=64),
     pair(rows="grid.y(256) / cluster(128) / warpgroup(128, 1)", lines=f"pingpong\n  {DELIVERED}")],
    ids=["along", "across", "mixed", "8 bits", "256 rows", "two sides"],
)  # fmt: skip
@pytest.mark.parametrize("m", [pytest.param(512, marks=pytest.mark.slow), 328])
def test_products(source: str, m: int) -> None:
    """Blocks take several tiles; 328 rows are an odd number of tiles of 128, the last one cut."""
    assert "cta_group::2" in compile_kernel(lowered(source, m), FOUR).ptx
    agrees(source, {"M": m, "N": 208, "K": 144}, FOUR, order=m % 3)


@pytest.mark.parametrize("how", ["turns", "partials"])
@pytest.mark.parametrize("m", [384, 456])
def test_parts_of_a_sum(how: str, m: int) -> None:
    """Of blocks that take several turns; the last part may be shorter."""
    source = f"""
op f(X: bf16[M, N], W: bf16[M, K]) -> Y: f32[N, K]:
  Y[n, k] = sum m: X[m, n] * W[m, k]

schedule f on sm_100a:
  n -> grid.y(256) / cluster(128) / warpgroup(128) / mma
  k -> grid.x(128) / mma
  m -> grid.z(256) / pipe(64, 2) / mma
  stage X, W in shared at m by tma
  stage Y in shared at k by tma
  use tcgen05 for Y
  combine Y over m by {how}
  producer warpgroup(40)
  persistent
"""
    agrees(source, {"M": m, "N": 392, "K": 136}, replace(B200, sms=8))


BESIDE = """
op f(X: bf16[M, N], W: bf16[M, K]) -> Y: f32[N, K], s: f32[N]:
  Y[n, k] = sum m: X[m, n] * W[m, k]
  s[n] = sum m: X[m, n]

schedule f on sm_100a:
  n -> {rows} / warpgroup(128) / mma
  k -> grid.x(128) / mma
  m -> grid.z({part}) / pipe(64, 3) / mma
  n of s -> warpgroup(128) / lane / vec(4)
  m of s -> lane.y(8) / unroll(2)
  stage X, W in shared at m by tma
  stage Y in shared at k by tma
  use tcgen05 for Y
  combine Y, s over m by {how}
  {along_k}
  producer warpgroup(40)
  persistent
"""


@pytest.mark.parametrize("how", ["turns", pytest.param("partials", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "rows",
    ["grid.y(256) / cluster(128)",
     *(pytest.param(r, marks=pytest.mark.slow) for r in ("grid.y(512) / cluster(128)", "grid.y(128)"))],
)  # fmt: skip
def test_threads_sum_the_tiles_that_are_multiplied(how: str, rows: str) -> None:
    """Of a pair of blocks each knows of its own tiles, and a thread of the second tells the first. (Blocks of four
    clusters share tiles, and multiply alone.)"""
    along_k = "combine s over k by partials" if how == "partials" else ""
    source = BESIDE.format(rows=rows, part=256, how=how, along_k=along_k)
    for name in ("Y", "s"):
        agrees(source, {"M": 328, "N": 264, "K": 136}, replace(B200, sms=6), result=name)


def test_of_two_products_only_one_may_have_sums_beside_it() -> None:
    """The second block's thread tells of the tiles that its own threads wait for; the copy engine, of the others."""
    source = """
op f(X: bf16[M, N], W: bf16[M, K], U: bf16[P, N], V: bf16[P, K]) -> Y: f32[N, K], s: f32[N], Z: f32[N, K]:
  Y[n, k] = sum m: X[m, n] * W[m, k]
  s[n] = sum m: X[m, n]
  Z[n, k] = sum p: U[p, n] * V[p, k]

schedule f on sm_100a:
  n -> grid.y(256) / cluster(128) / warpgroup(128) / mma
  k -> grid.x(128) / mma
  m, p -> pipe(64, 2) / mma
  n of s -> warpgroup(128) / lane / vec(4)
  m of s -> lane.y(8) / unroll(2)
  stage X, W in shared at m by tma
  stage U, V in shared at p by tma
  use tcgen05 for Y, Z
  fuse Y, Z at k
  producer warpgroup(40)
  persistent
"""
    agrees(source, {"M": 192, "N": 256, "K": 128, "P": 64}, replace(B200, sms=2), result="Z")


LEFT_OUT = {
    "the other block is not told that its tiles were read": (r"mov\.b16 blocks, 3;", "mov.b16 blocks, 1;", "deadlock"),
    "half of the bytes are announced": (r"@first mbarrier\.arrive\.expect_tx(.*), (%r\d+); }",
                                        r"shr.b32 \2, \2, 1; @first mbarrier.arrive.expect_tx\1, \2; }", "mbarrier"),
    "copies may not tell the other block": (r"::bytes\.cta_group::2", "::bytes", "mbarrier misuse"),
    "sums are loaded before they are there": ("tcgen05.fence::after_thread_sync;", "", "missing tcgen05.fence"),
    "sums are overwritten while they are loaded": ("tcgen05.fence::before_thread_sync;", "", "missing tcgen05.fence"),
    "columns are given back by neither": (r"tcgen05\.dealloc\.\S+ ", "//", "tensor memory misuse"),
}  # fmt: skip


def test_the_first_block_does_not_know_of_the_other_ones_tiles_unless_it_is_told() -> None:
    source = BESIDE.format(rows="grid.y(256) / cluster(128)", part=512, how="turns", along_k="")
    kernel = support.lowered(source, {"M": 512, "N": 256, "K": 128}, FOUR)
    gpu = compile_kernel(kernel, FOUR)
    told = "mbarrier.arrive.release.cluster.shared::cluster.b64"
    broken = replace(gpu, ptx=re.sub(rf"{told}.*;", "", gpu.ptx))
    assert gpu.ptx.count(told) == 1
    with pytest.raises(KernelFault, match="deadlock"):
        support.launch(kernel, broken, support.given(kernel, np.random.default_rng(1)), 100)


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_it_may_not_leave_out(what: str) -> None:
    pattern, other, kind = LEFT_OUT[what]
    machine = replace(B200, sms=2)
    kernel = support.lowered(pair(), {"M": 512, "N": 256, "K": 512}, machine)
    gpu = compile_kernel(kernel, machine)
    broken = replace(gpu, ptx=re.sub(pattern, other, gpu.ptx))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault, match=kind):
        support.launch(kernel, broken, support.given(kernel, np.random.default_rng(1)), 100)


def test_the_assembler_takes_it_without_spills() -> None:
    kernel = support.lowered(pair(columns=256), {"M": 4096, "N": 2048, "K": 1024}, B200)
    (used,) = assemble(compile_kernel(kernel, B200).ptx, "sm_100a").resources
    assert used.spill_store_bytes == used.spill_load_bytes == used.stack_bytes == 0


@pytest.mark.parametrize(("name", "m", "n"), [("linear_residual", 128, 38400), ("linear_residual.backward", 4096, 128)])
def test_layers_of_one_row_of_tiles_fit_as_well(name: str, m: int, n: int) -> None:
    """These have no cluster, so blocks keep whole tiles of both operands, in a ring of fewer copies."""
    module = library()
    op = module.ops[name] if name in module.ops else backward_of(name.removesuffix(".backward"), module)
    assert op is not None
    for kernel in lower(bound(op, DType.BF16), module, {"M": m, "N": n, "K": 256}, B200).kernels:
        (launch, *_) = compile_kernel(kernel, B200).launches
        assert launch.shared_bytes <= B200.shared_per_block
