"""nvcc's PTX of Hopper kernels: a warp-specialised wgmma GEMM with tensor copies, and clusters in CUDA C++."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device
from tcomp.runtime.vgpu.tensor_map import encode_tiled

GEMM = (Path(__file__).parent / "tma_gemm.cu").read_text()
Compile = Callable[..., str]


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Exact for the small integers used here."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def gemm(
    nvcc: Compile, m: int, n: int, k: int, change: tuple[str, str] = ("", "")
) -> tuple[Any, np.ndarray, np.ndarray]:
    assert change[0] in GEMM
    text = GEMM.replace(*change) if change[0] else GEMM
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-2, 3, s).astype(np.float32) for s in ((m, k), (n, k)))
    gpu = Device()
    pa, pb, pc = gpu.upload(to_bf16(a)), gpu.upload(to_bf16(b)), gpu.upload(np.zeros((m, n), np.uint16))
    maps = [
        encode_tiled(9, 2, pa, (k, m), (2 * k,), (64, 128), (1, 1), 0, 3),
        encode_tiled(9, 2, pb, (k, n), (2 * k,), (64, 128), (1, 1), 0, 3),
        encode_tiled(9, 2, pc, (n, m), (2 * n,), (128, 64), (1, 1)),
    ]
    grid = (-(-n // 128), -(-m // 128))
    report = gpu.load(nvcc(text, "sm_90a")).launch("gemm", grid, 384, [k, *maps], 131072)
    return report, from_bf16(gpu.download(pc, np.uint16, m * n)).reshape(m, n), a @ b.T


def test_a_warp_specialised_gemm(nvcc: Compile) -> None:
    report, c, want = gemm(nvcc, 200, 264, 328)
    assert report.ok, report
    assert (c == want).all()


@pytest.mark.parametrize(("kind", "change"), [
    ("missing proxy fence", ('asm volatile("fence.proxy.async.shared::cta;" ::: "memory");', "")),
    ("deadlock", ("if (threadIdx.x % 128 == 0) arrive(empty + stage);", "")),
    ("shared memory race", ('asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");', "")),
    ("missing bulk wait", ('asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");', "")),
    ("mbarrier misuse", ("init(empty + s, 2)", "init(empty + s, 1)")),
    ("read before completion", ("    wait(full + stage, phase);", "")),
    ("deadlock", ("phase ^ 1);", "phase);")),
])  # fmt: skip
def test_a_fault_in_it_is_found(nvcc: Compile, kind: str, change: tuple[str, str]) -> None:
    report, _, _ = gemm(nvcc, 128, 128, 384, change)
    assert kind in report.kinds(), report


CLUSTER = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(4, 1, 1) histogram(const int *x, int *out, int n) {
  __shared__ int bins[64];
  auto cluster = cg::this_cluster();
  for (int i = threadIdx.x; i < 64; i += blockDim.x) bins[i] = 0;
  cluster.sync();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    int bin = x[i] & 255;
    atomicAdd(cluster.map_shared_rank(bins, bin / 64) + bin % 64, 1);
  }
  cluster.sync();
  for (int i = threadIdx.x; i < 64; i += blockDim.x) atomicAdd(out + cluster.block_rank() * 64 + i, bins[i]);
}
"""


def test_a_histogram_in_distributed_shared_memory(nvcc: Compile) -> None:
    x = np.random.default_rng(1).integers(0, 256, 5000).astype(np.int32)
    gpu = Device()
    p, out = gpu.upload(x), gpu.upload(np.zeros(256, np.int32))
    report = gpu.load(nvcc(CLUSTER, "sm_90")).launch("histogram", 8, 96, [p, out, len(x)])
    assert report.ok, report
    assert (gpu.download(out, np.int32, 256) == np.bincount(x, minlength=256)).all()


BARRIER = """
#include <cuda/barrier>
#include <cuda/ptx>
#pragma nv_diag_suppress static_var_with_dynamic_init
using barrier = cuda::barrier<cuda::thread_scope_block>;
extern "C" __global__ void scale(float *x, float f) {
  __shared__ alignas(128) float tile[256];
  __shared__ barrier bar;
  if (threadIdx.x == 0) { init(&bar, blockDim.x); cuda::device::experimental::fence_proxy_async_shared_cta(); }
  __syncthreads();
  barrier::arrival_token token;
  float *mine = x + blockIdx.x * 256;
  if (threadIdx.x == 0) {
    cuda::device::memcpy_async_tx(tile, mine, cuda::aligned_size_t<16>(sizeof(tile)), bar);
    token = cuda::device::barrier_arrive_tx(bar, 1, sizeof(tile));
  } else token = bar.arrive();
  bar.wait(std::move(token));
  for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] *= f;
  cuda::ptx::fence_proxy_async(cuda::ptx::space_shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    cuda::ptx::cp_async_bulk(cuda::ptx::space_global, cuda::ptx::space_shared, mine, tile, sizeof(tile));
    cuda::ptx::cp_async_bulk_commit_group();
    cuda::ptx::cp_async_bulk_wait_group_read(cuda::ptx::n32_t<0>());
  }
}
"""


def test_the_library_barrier_and_bulk_copies(nvcc: Compile) -> None:
    x = np.arange(1024, dtype=np.float32)
    gpu = Device()
    p = gpu.upload(x)
    report = gpu.load(nvcc(BARRIER, "sm_90")).launch("scale", 4, 64, [p, 3.0])
    assert report.ok, report
    assert (gpu.download(p, np.float32, 1024) == x * 3).all()
