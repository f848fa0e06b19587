"""PTX that nvcc makes from CUDA C++ runs on the virtual GPU without a finding and agrees with NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tcomp.runtime.vgpu import Device

CUDA = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" {
__global__ void add(const float* a, const float* b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) c[i] = a[i] + b[i]; }
__global__ void sum(const float* x, float* out, int n) {
  __shared__ float part[32]; float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
  for (int d = 16; d; d /= 2) v += __shfl_down_sync(~0u, v, d);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) { v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x == 0) atomicAdd(out, v); } }
__global__ void collatz(const int* x, int* steps, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
  int v = x[i], s = 0; while (v != 1) { v = v % 2 ? 3 * v + 1 : v / 2; if (++s > 500) break; } steps[i] = s; }
__global__ void histogram(const unsigned char* x, unsigned* h, int n) {
  __shared__ unsigned local[256]; local[threadIdx.x] = 0; __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[x[i]], 1u);
  __syncthreads(); atomicAdd(&h[threadIdx.x], local[threadIdx.x]); }
__device__ float block_reduce(float v, bool is_max, float* s) {
  for (int d = 16; d; d /= 2) { float o = __shfl_xor_sync(~0u, v, d); v = is_max ? fmaxf(v, o) : v + o; }
  __syncthreads(); if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v; __syncthreads();
  v = s[0]; for (int w = 1; w < blockDim.x / 32; w++) v = is_max ? fmaxf(v, s[w]) : v + s[w];
  return v; }
__global__ void softmax(const float* x, float* y, int n) {
  __shared__ float s[32]; const float* row = x + blockIdx.x * n; float m = -1e30f, t = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) m = fmaxf(m, row[i]);
  m = block_reduce(m, true, s);
  for (int i = threadIdx.x; i < n; i += blockDim.x) t += expf(row[i] - m);
  t = block_reduce(t, false, s);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[blockIdx.x * n + i] = expf(row[i] - m) / t; }
__global__ void layernorm(const float* x, const float* g, const float* b, float* y, int n) {
  __shared__ float s[32]; const float* row = x + blockIdx.x * n; float t = 0, v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) t += row[i];
  float mean = block_reduce(t, false, s) / n;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += (row[i] - mean) * (row[i] - mean);
  float r = rsqrtf(block_reduce(v, false, s) / n + 1e-5f);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[blockIdx.x * n + i] = (row[i] - mean) * r * g[i] + b[i]; }
__global__ void matmul(const float* A, const float* B, float* C, int n) {
  __shared__ float a[16][17], b[16][17]; int x = threadIdx.x, y = threadIdx.y; float acc = 0;
  int r = blockIdx.y * 16 + y, c = blockIdx.x * 16 + x;
  for (int k = 0; k < n; k += 16) {
    a[y][x] = r < n && k + x < n ? A[r * n + k + x] : 0; b[y][x] = k + y < n && c < n ? B[(k + y) * n + c] : 0;
    __syncthreads(); for (int j = 0; j < 16; j++) acc += a[y][j] * b[j][x]; __syncthreads(); }
  if (r < n && c < n) C[r * n + c] = acc; }
__device__ __noinline__ float poly(const float* c, int n, float x) {
  float s = 0; for (int i = 0; i < n; i++) s = s * x + c[i]; return s; }
__global__ void stack(float* out, const float* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x; float t[8];
  for (int j = 0; j < 8; j++) t[j] = in[(i + j) % n]; if (i < n) out[i] = poly(t, i % 8, in[i]); }
__global__ void halves(const __half2* x, const __nv_bfloat162* y, __half2* hx, __nv_bfloat162* hy, int n) {
  int i = threadIdx.x;
  if (i < n) { hx[i] = __hfma2(x[i], x[i], x[i]); hy[i] = __hadd2(y[i], __float2bfloat162_rn(0.5f)); } }
}
"""
RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(nvcc: Callable[..., str], kernel: str, grid, block, arrays, scalars=(), arch: str = "sm_80"):  # type: ignore[no-untyped-def]
    gpu = Device()
    addresses = [gpu.upload(a) for a in arrays]
    gpu.load(nvcc(CUDA, arch)).launch(kernel, grid, block, [*addresses, *scalars]).check()
    return [gpu.download(p, a.dtype, a.size).reshape(a.shape) for p, a in zip(addresses, arrays, strict=True)]


def test_vector_add(nvcc: Callable[..., str]) -> None:
    a, b = normal(1000), normal(1000)
    out = run(nvcc, "add", 4, 256, [a, b, np.zeros(1000, np.float32)], [1000])[2]
    assert np.array_equal(out, a + b)


def test_sum_with_shuffles(nvcc: Callable[..., str]) -> None:
    x = normal(10007)
    out = run(nvcc, "sum", 5, 256, [x, np.zeros(1, np.float32)], [10007])[1]
    assert abs(out[0] - x.astype(np.float64).sum()) < 1e-3


def test_divergent_loop(nvcc: Callable[..., str]) -> None:
    def steps(v: int) -> int:
        n = 0
        while v != 1:
            v = 3 * v + 1 if v % 2 else v // 2
            n += 1
        return n

    x = np.arange(1, 301, dtype=np.int32)
    out = run(nvcc, "collatz", 3, 128, [x, np.zeros_like(x)], [300])[1]
    assert out.tolist() == [steps(int(v)) for v in x]


def test_histogram_with_atomics(nvcc: Callable[..., str]) -> None:
    x = RNG.integers(0, 256, 20000).astype(np.uint8)
    out = run(nvcc, "histogram", 4, 256, [x, np.zeros(256, np.uint32)], [20000])[1]
    assert np.array_equal(out, np.bincount(x, minlength=256))


def test_softmax(nvcc: Callable[..., str]) -> None:
    x = normal(6, 333)
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    out = run(nvcc, "softmax", 6, 128, [x, np.zeros_like(x)], [333])[1]
    assert np.allclose(out, e / e.sum(axis=1, keepdims=True), rtol=1e-5)


def test_layernorm(nvcc: Callable[..., str]) -> None:
    x, g, b = normal(5, 200), normal(200), normal(200)
    out = run(nvcc, "layernorm", 5, 64, [x, g, b, np.zeros_like(x)], [200])[3]
    want = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * g + b
    assert np.allclose(out, want, rtol=1e-4, atol=1e-5)


def test_tiled_matmul(nvcc: Callable[..., str]) -> None:
    a, b = normal(50, 50), normal(50, 50)
    out = run(nvcc, "matmul", (4, 4), (16, 16), [a, b, np.zeros_like(a)], [50])[2]
    assert np.allclose(out, a @ b, rtol=1e-4, atol=1e-4)


def test_device_function_with_a_stack_array(nvcc: Callable[..., str]) -> None:
    x = normal(300)
    out = run(nvcc, "stack", 3, 128, [np.zeros_like(x), x], [300])[0]
    want = np.zeros(300)
    for i in range(300):
        for j in range(i % 8):
            want[i] = want[i] * x[i] + x[(i + j) % 300]
    assert np.allclose(out, want, rtol=1e-4, atol=1e-4)


def test_packed_halves(nvcc: Callable[..., str]) -> None:
    x = normal(64).astype(np.float16)
    y = (normal(64).view(np.uint32) >> 16).astype(np.uint16)
    out = run(nvcc, "halves", 1, 32, [x, y, np.zeros_like(x), np.zeros_like(y)], [32])
    assert np.array_equal(out[2], (x.astype(np.float64) ** 2 + x).astype(np.float16))
    exact = (y.astype(np.uint32) << 16).view(np.float32) + np.float32(0.5)
    got = (out[3].astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(got - exact) <= np.abs(exact) * 2**-8)
