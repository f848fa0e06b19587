#include <cstdint>
extern "C" {
// sum of each warp's 32 values by each of the shuffles
__global__ void shuffles(const float* x, float* down, float* bfly, float* scan, int* rotate, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
  float v = i < n ? x[i] : 0.f, d = v, b = v, s = v;
  for (int k = 16; k; k >>= 1) {
    d += __shfl_down_sync(~0u, d, k);
    b += __shfl_xor_sync(~0u, b, k);
  }
  for (int k = 1; k < 32; k <<= 1) {
    float o = __shfl_up_sync(~0u, s, k);
    if (lane >= k) s += o;
  }
  int r = __shfl_sync(~0u, i, lane * 5 + 3);
  if (lane == 0 && i < n) {
    down[i / 32] = d;
    bfly[i / 32] = b;
  }
  if (i < n) {
    scan[i] = s;
    rotate[i] = r;
  }
}
// segments of 8 lanes; 64-bit values; a half-warp only
__global__ void segments(const double* x, double* sums, unsigned long long* tops) {
  int t = threadIdx.x;
  double v = x[t];
  for (int k = 4; k; k >>= 1) v += __shfl_down_sync(~0u, v, k, 8);
  sums[t] = __shfl_sync(~0u, v, 0, 8);
  unsigned long long u = (unsigned long long)t << 40 | t;
  if ((t & 31) < 16) {
    for (int k = 8; k; k >>= 1) {
      auto o = __shfl_xor_sync(0xffff, u, k);
      u = o > u ? o : u;
    }
  }
  tops[t] = u;
}
__global__ void votes(const int* x, unsigned* ballot, int* any, int* all, unsigned* same, int* every, int* uni) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  int v = x[t];
  ballot[t] = __ballot_sync(~0u, v > 3);
  any[t] = __any_sync(~0u, v == 5);
  all[t] = __all_sync(~0u, v >= 0);
  uni[t] = __uni_sync(~0u, v > 100);
  same[t] = __match_any_sync(~0u, v);
  int p;
  unsigned m = __match_all_sync(~0u, v / 100, &p);
  every[t] = p ? (int)m : -7;
}
__global__ void reduxes(const int* x, int* add, unsigned* umax, int* smin, unsigned* bor, unsigned* band,
                        unsigned* bxor) {
  int t = threadIdx.x;
  int v = x[t];
  if (t % 3) {
    unsigned m = __activemask();
    m = __match_any_sync(m, t % 3);
    add[t] = __reduce_add_sync(m, v);
    umax[t] = __reduce_max_sync(m, (unsigned)v);
    smin[t] = __reduce_min_sync(m, v);
    bor[t] = __reduce_or_sync(m, v);
    band[t] = __reduce_and_sync(m, v);
    bxor[t] = __reduce_xor_sync(m, v);
  }
}
// warp-aggregated append: who passes the filter gets a place
__global__ void compact(const int* x, int n, int* out, int* count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  bool keep = i < n && (x[i] & 1);
  unsigned m = __ballot_sync(~0u, keep);
  int lane = threadIdx.x & 31, base = 0, leader = __ffs(m) - 1;
  if (m) {
    if (lane == leader) base = atomicAdd(count, __popc(m));
    base = __shfl_sync(~0u, base, leader);
    unsigned lt;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lt));
    if (keep) out[base + __popc(m & lt)] = x[i];
  }
}
#if __CUDA_ARCH__ >= 900
__global__ void elected(int* out) {
  unsigned p, r;
  asm volatile("{ .reg .pred p; elect.sync %0|p, 0xffffffff; selp.u32 %1, 1, 0, p; }" : "=r"(r), "=r"(p));
  out[threadIdx.x] = p * 100 + r;
}
#endif
}
