"""A tiled bf16 product written in CUDA C++ with wgmma, compiled by nvcc, on the virtual GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, formats

N = 64
OUTPUTS = ", ".join(f'"+f"(d[{i}])' for i in range(N // 2))
REGISTERS = "{" + ", ".join(f"%{i}" for i in range(N // 2)) + "}"
SOURCE = f"""
#include <cuda_bf16.h>
#include <stdint.h>
__device__ __forceinline__ void multiply(float (&d)[{N // 2}], uint64_t a, uint64_t b, int add) {{
  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{N // 2 + 2}, 0; "
    "wgmma.mma_async.sync.aligned.m64n{N}k16.f32.bf16.bf16 {REGISTERS}, %{N // 2}, %{N // 2 + 1}, p, 1, 1, 0, 1; }}"
    : {OUTPUTS} : "l"(a), "l"(b), "r"(add));
}}
__device__ uint64_t descriptor(void* p, uint32_t leading, uint32_t stride) {{
  uint64_t a = (uint32_t)__cvta_generic_to_shared(p);
  return (a & 0x3FFFF) >> 4 | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | 1ull << 62;
}}
// C (M x N) = A (M x K) B (K x N): blocks of 64 x 64, steps of 64 along K, both tiles swizzled by hand.
extern "C" __global__ void __launch_bounds__(128)
product(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int M, int N, int K) {{
  extern __shared__ __align__(1024) unsigned char tiles[];
  unsigned char *a = tiles, *b = tiles + 8192;
  int t = threadIdx.x, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float d[{N // 2}];
  for (int k0 = 0; k0 < K; k0 += 64) {{
    for (int i = t; i < 512; i += 128) {{
      int r = i >> 3, c = i & 7, at = r * 128 + ((c ^ (r & 7)) << 4);
      *(uint4*)(a + at) = *(const uint4*)(A + (size_t)(m0 + r) * K + k0 + c * 8);
      *(uint4*)(b + at) = *(const uint4*)(B + (size_t)(k0 + r) * N + n0 + c * 8);
    }}
    FENCE
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; k++) multiply(d, descriptor(a + k * 32, 16, 1024), descriptor(b + k * 2048, 8192, 1024),
                                         k0 + k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    __syncthreads();
  }}
  int row = m0 + 16 * (t >> 5) + (t >> 2 & 7), column = n0 + 2 * (t & 3);
  for (int j = 0; j < {N // 8}; j++)
    for (int e = 0; e < 4; e++)
      C[(size_t)(row + 8 * (e >> 1)) * N + column + 8 * j + (e & 1)] = d[4 * j + e];
}}
"""
PROXY_FENCE = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");'


@pytest.mark.slow
@pytest.mark.parametrize("fenced", [True, False])
def test_product(nvcc: Callable[..., str], fenced: bool) -> None:
    text = nvcc(SOURCE.replace("FENCE", PROXY_FENCE if fenced else ""), "sm_90a")
    rng = np.random.default_rng(1)
    m, n, k = 128, 192, 256
    a, b = (formats.to16(rng.standard_normal(s).astype(np.float32), "bf16") for s in ((m, k), (k, n)))
    gpu = Device()
    out = gpu.allocate(4 * m * n)
    report = gpu.load(text).launch("product", (n // 64, m // 64), 128, [gpu.upload(a), gpu.upload(b), out, m, n, k],
                                   16384)  # fmt: skip
    assert report.kinds() == (set() if fenced else {"missing proxy fence"}), report
    want = formats.from16(a, "bf16") @ formats.from16(b, "bf16")
    assert np.abs(gpu.download(out, np.float32, m * n).reshape(m, n) - want).max() < 1e-4
