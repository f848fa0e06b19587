"""Clusters: blocks side by side fetch parts of the tiles that all of them read and deliver them to each other."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import Cluster
from tcomp.ir.print import print_kernel
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tests.tcomp.nvptx.support import given, launch, lowered, run

RNG = np.random.default_rng(6)
TEXT = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y({rows}) / cluster(16) / warp.y(16) / lane.y(4)
  n -> grid.x(32) / warp.x(16) / lane.x / vec(2)
  k -> pipe(64, 2) / vec(4)
  stage X, W in shared at k by {by}
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
  use wgmma for Y
  producer warpgroup(40)
  persistent
  raster(2)
"""


@pytest.mark.parametrize(
    "rows,flags,m,n,k",
    [(32, "", 32, 32, 96), (32, "producer warp", 45, 40, 104), (64, "producer warp\n  persistent", 112, 32, 128)],
)
def test_products(rows: int, flags: str, m: int, n: int, k: int) -> None:
    """Also where the tiles along the cluster are no whole clusters: what is beyond writes nothing."""
    found = lowered(TEXT.format(rows=rows, by="tma", flags=flags), {"M": m, "N": n, "K": k})
    assert found.gpu.cluster == Cluster("m.0", rows // 16)
    assert f"clusters of {rows // 16} blocks along m.0" in print_kernel(found)
    ptx, reports = run(found, given(found, RNG), replace(H100, sms=5), tolerance=1e-4)
    assert "multicast::cluster" in ptx and f".reqnctapercluster {rows // 16}, 1, 1" in ptx
    assert reports[0].grid[0] % (rows // 16) == 0


@pytest.mark.parametrize("m", [390, 300])
def test_products_on_tensor_cores(m: int) -> None:
    """Also of three tiles, where a block that only makes its cluster whole multiplies zeros and writes nothing: its
    accumulators are not waited for under a condition."""
    found = lowered(TENSOR.format(bn=64), {"M": m, "N": 72, "K": 136})
    run(found, given(found, RNG), replace(H100, sms=4))
    assert not [f for f in assemble(compile_kernel(found, H100).ptx, "sm_90a").findings if f.code != "C7504"]
    (shape,) = compile_kernel(found, H100).launches
    assert shape.cluster == 2 and [m.map.box for m in shape.maps] == [(64, 128), (64, 32)]


def test_operands_across_k_on_tensor_cores() -> None:
    """Their descriptors hold how far panels are apart beside the address, which in a cluster has the block's number in
    its upper bits: none of those may come into the descriptor."""
    text = TENSOR.format(bn=128).replace("W: bf16[N, K]", "W: bf16[K, N]").replace("W[n, k]", "W[k, n]")
    found = lowered(text.replace("pipe(64, 3)", "pipe(64, 2)"), {"M": 300, "N": 136, "K": 136})
    ptx, _ = run(found, given(found, RNG), replace(H100, sms=4))
    assert ".reqnctapercluster 2, 1, 1" in ptx


def test_a_peer_that_is_not_waited_for_is_found() -> None:
    """The tests above would notice: here all readers tell block 0 that they are done, and none block 1."""
    found = lowered(TEXT.format(rows=32, by="tma", flags="producer warp"), {"M": 32, "N": 32, "K": 256})
    gpu = compile_kernel(found, H100)
    astray = re.sub(r"(mapa\.shared::cluster\.u32 %r\d+, %r\d+), %r\d+;", r"\1, 0;", gpu.ptx)
    assert astray != gpu.ptx
    with pytest.raises(KernelFault, match=r"race|misuse|completion|deadlock"):
        launch(found, replace(gpu, ptx=astray), given(found, RNG))


def test_assembled_for_the_published_shape() -> None:
    """The 4096 cubed product of 128 x 256 tiles: no spill, no remark; half of W's tile from each block."""
    found = lowered(TENSOR.format(bn=256).replace("raster(2)", "raster(8)"), {"M": 4096, "N": 4096, "K": 4096})
    gpu = compile_kernel(found, H100)
    assert gpu.launches[0].blocks == 132 and gpu.launches[0].maps[1].map.box == (64, 128)
    assembled = assemble(gpu.ptx, "sm_90a")
    (r,) = assembled.resources
    assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0
    assert not [m for m in assembled.findings if m.code != "C7504"]


def test_nothing_to_share_in_one_turn_is_no_fault() -> None:
    """K of one tile leaves no ring: the blocks fetch for themselves."""
    found = lowered(TEXT.format(rows=32, by="tma", flags=""), {"M": 32, "N": 32, "K": 40})
    run(found, given(found, RNG), tolerance=1e-4)


def test_a_tile_that_does_not_divide_is_not_shared() -> None:
    """Half of eight rows is no whole swizzle pattern: the blocks are then no cluster."""
    found = lowered(TENSOR.format(bn=8), {"M": 390, "N": 8, "K": 64})
    assert found.gpu.cluster is None
    assert lowered(TENSOR.format(bn=16), {"M": 390, "N": 16, "K": 64}).gpu.cluster is not None
    run(found, given(found, RNG), replace(H100, sms=4))


def test_one_tile_along_the_cluster_is_no_cluster() -> None:
    assert lowered(TEXT.format(rows=32, by="tma", flags=""), {"M": 16, "N": 64, "K": 64}).gpu.cluster is None


@pytest.mark.parametrize(
    "rows,by,change,message",
    [
        (32, "cp.async", ("", ""), "would share nothing"),
        (24, "tma", ("", ""), "needs a grid tile around it, of 2 to 8 times 16"),
        (32, "tma", ("grid.x(32)", "grid.x(64) / cluster(32)"), "a kernel has clusters along one loop"),
    ],
)
def test_refused(rows: int, by: str, change: tuple[str, str], message: str) -> None:
    text = TEXT.format(rows=rows, by=by, flags="").replace(*change)
    with pytest.raises(TcError) as e:
        lowered(text, {"M": 64, "N": 64, "K": 64})
    assert message in e.value.message and e.value.hint and e.value.span.line in (6, 7)
