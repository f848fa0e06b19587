#include <cuda_fp16.h>
// 4 warps: warp 0 produces by cp.async, 3 consumers, ring of 3 named full barriers and 3 empty ones
extern "C" __global__ void spec(const float* x, float* y, int tiles) {
  __shared__ __align__(16) float s[3][96];
  int w = threadIdx.x / 32, l = threadIdx.x % 32;
  if (w == 0) {
    for (int t = 0; t < tiles; t++) {
      int b = t % 3;
      if (t >= 3) asm volatile("bar.sync %0, 128;" ::"r"(4 + b) : "memory");
      for (int k = l; k < 24; k += 32) {
        unsigned d = (unsigned)__cvta_generic_to_shared(&s[b][k * 4]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(d), "l"(x + t * 96 + k * 4) : "memory");
      }
      asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
      __threadfence_block();
      asm volatile("bar.arrive %0, 128;" ::"r"(1 + b) : "memory");
    }
  } else {
    for (int t = 0; t < tiles; t++) {
      int b = t % 3;
      asm volatile("bar.sync %0, 128;" ::"r"(1 + b) : "memory");
      y[t * 96 + (w - 1) * 32 + l] = s[b][95 - ((w - 1) * 32 + l)] * 2.f;
      if (t + 3 < tiles) asm volatile("bar.arrive %0, 128;" ::"r"(4 + b) : "memory");
    }
  }
}
extern "C" __global__ void lookback(const int* x, int* y, int* flag, int* agg, int* pre, int* ticket, int n) {
  __shared__ int s[128], part, base;
  if (threadIdx.x == 0) part = atomicAdd(ticket, 1);
  __syncthreads();
  int b = part, t = threadIdx.x, i = b * 128 + t;
  s[t] = i < n ? x[i] : 0;
  __syncthreads();
  for (int d = 1; d < 128; d <<= 1) {
    int v = t >= d ? s[t - d] : 0;
    __syncthreads();
    s[t] += v;
    __syncthreads();
  }
  if (t == 0) {
    int total = s[127];
    if (b == 0) { *(volatile int*)(pre) = total; __threadfence(); *(volatile int*)(flag) = 2; base = 0; }
    else {
      *(volatile int*)(agg + b) = total;
      __threadfence();
      *(volatile int*)(flag + b) = 1;
      int sum = 0;
      for (int k = b - 1; k >= 0; k--) {
        int f;
        while ((f = *(volatile int*)(flag + k)) == 0);
        __threadfence();
        if (f == 2) { sum += *(volatile int*)(pre + k); break; }
        sum += *(volatile int*)(agg + k);
      }
      base = sum;
      *(volatile int*)(pre + b) = sum + total;
      __threadfence();
      *(volatile int*)(flag + b) = 2;
    }
  }
  __syncthreads();
  if (i < n) y[i] = base + s[t];
}
__device__ __noinline__ float poly(const float* c, int n, float x) {
  float stack[12];
  for (int i = 0; i < n; i++) stack[(i * 5) % n] = c[i] * x;
  float r = 0;
  for (int i = 0; i < n; i++) r = r * x + stack[i];
  return r;
}
__constant__ float coef[8] = {1, -2, 3, -4, 5, -6, 7, -8};
extern "C" __global__ void stacky(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  float c[11];
  for (int k = 0; k < 11; k++) c[k] = coef[(k + i) & 7];
  if (i < n) y[i] = poly(c, 11, x[i]) + poly(c + 3, 7, x[i]);
}
extern "C" __global__ void __launch_bounds__(256) sgemm(const float* A, const float* B, float* C, int M, int N, int K) {
  __shared__ float As[8][64 + 4], Bs[8][64];
  int t = threadIdx.x, tx = t % 16, ty = t / 16;
  const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float acc[4][4] = {};
  for (int k0 = 0; k0 < K; k0 += 8) {
    if (t < 128) {
      float4 v = *(const float4*)(A + (m0 + t / 2) * K + k0 + (t & 1) * 4);
      As[(t & 1) * 4 + 0][t / 2] = v.x; As[(t & 1) * 4 + 1][t / 2] = v.y; As[(t & 1) * 4 + 2][t / 2] = v.z; As[(t & 1) * 4 + 3][t / 2] = v.w;
    } else {
      int u = t - 128;
      *(float4*)&Bs[u / 16][(u % 16) * 4] = *(const float4*)(B + (k0 + u / 16) * N + n0 + (u % 16) * 4);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 8; k++) {
      float4 a = *(float4*)&As[k][ty * 4], b = *(float4*)&Bs[k][tx * 4];
      float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
      for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) acc[i][j] += av[i] * bv[j];
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) *(float4*)(C + (m0 + ty * 4 + i) * N + n0 + tx * 4) = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
}
extern "C" __global__ void shuf(const double* x, double* y, const short* h, int* o) {
  int t = threadIdx.x;
  double v = x[t];
  for (int d = 8; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d, 16);
  y[t] = v + __shfl_up_sync(~0u, x[t], 3, 8) * 2 + __shfl_down_sync(~0u, x[t], 5) + __shfl_sync(~0u, x[t], t + 7, 4);
  half2 q = __halves2half2(__float2half(h[t]), __float2half(-h[t]));
  half2 p = __shfl_xor_sync(~0u, q, 1);
  o[t] = (int)__half2float(__low2half(p)) * 3 + (int)__half2float(__high2half(q));
  int pred;
  unsigned m = __match_any_sync(~0u, h[t] & 3);
  unsigned all = __match_all_sync(m, h[t] & 3, &pred);
  o[t] += pred * 1000 + __popc(all) + (int)__reduce_max_sync(m, (int)h[t]) + (__any_sync(m, h[t] > 5) ? 7 : 0) + (__uni_sync(m, t == 3) ? 9 : 0);
}
