#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
namespace cg = cooperative_groups;
extern "C" {
__global__ void scan(const int* x, int* y, int* sums, int n) {
  extern __shared__ int s[];
  int t = threadIdx.x, base = blockIdx.x * 2 * blockDim.x, m = 2 * blockDim.x;
  s[2 * t] = base + 2 * t < n ? x[base + 2 * t] : 0;
  s[2 * t + 1] = base + 2 * t + 1 < n ? x[base + 2 * t + 1] : 0;
  int off = 1;
  for (int d = m >> 1; d; d >>= 1) {
    __syncthreads();
    if (t < d) s[off * (2 * t + 2) - 1] += s[off * (2 * t + 1) - 1];
    off <<= 1;
  }
  if (t == 0) {
    if (sums) sums[blockIdx.x] = s[m - 1];
    s[m - 1] = 0;
  }
  for (int d = 1; d < m; d <<= 1) {
    off >>= 1;
    __syncthreads();
    if (t < d) {
      int a = off * (2 * t + 1) - 1, b = off * (2 * t + 2) - 1, v = s[a];
      s[a] = s[b];
      s[b] += v;
    }
  }
  __syncthreads();
  if (base + 2 * t < n) y[base + 2 * t] = s[2 * t];
  if (base + 2 * t + 1 < n) y[base + 2 * t + 1] = s[2 * t + 1];
}
__global__ void bitonic(float* x, int n) {
  __shared__ float s[512];
  int t = threadIdx.x;
  for (int i = t; i < 512; i += blockDim.x) s[i] = i < n ? x[i] : __int_as_float(0x7f800000);
  __syncthreads();
  for (int k = 2; k <= 512; k <<= 1)
    for (int j = k >> 1; j; j >>= 1) {
      for (int i = t; i < 512; i += blockDim.x) {
        int o = i ^ j;
        if (o > i) {
          bool up = !(i & k);
          float a = s[i], b = s[o];
          if ((a > b) == up) {
            s[i] = b;
            s[o] = a;
          }
        }
      }
      __syncthreads();
    }
  for (int i = t; i < n; i += blockDim.x) x[i] = s[i];
}
__global__ void radix(unsigned* x, int n) {
  __shared__ unsigned a[256], b[256];
  __shared__ int pre[256], zeros;
  int t = threadIdx.x;
  a[t] = t < n ? x[t] : ~0u;
  __syncthreads();
  unsigned *from = a, *to = b;
  for (int bit = 0; bit < 32; bit++) {
    unsigned v = from[t];
    int z = !((v >> bit) & 1);
    pre[t] = z;
    __syncthreads();
    for (int d = 1; d < 256; d <<= 1) {
      int o = t >= d ? pre[t - d] : 0;
      __syncthreads();
      pre[t] += o;
      __syncthreads();
    }
    if (t == 255) zeros = pre[255];
    __syncthreads();
    int pos = z ? pre[t] - 1 : zeros + t - pre[t];
    to[pos] = v;
    __syncthreads();
    unsigned* s = from;
    from = to;
    to = s;
  }
  if (t < n) x[t] = from[t];
}
__global__ void transpose(const float* x, float* y, int r, int c) {
  __shared__ float s[32][33];
  int i = blockIdx.x * 32 + threadIdx.x, j = blockIdx.y * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    if (i < c && j + k < r) s[threadIdx.y + k][threadIdx.x] = x[(j + k) * c + i];
  __syncthreads();
  i = blockIdx.y * 32 + threadIdx.x;
  j = blockIdx.x * 32 + threadIdx.y;
  for (int k = 0; k < 32; k += 8)
    if (i < r && j + k < c) y[(j + k) * r + i] = s[threadIdx.x][threadIdx.y + k];
}
__global__ void stencil(const float* x, float* y, int n) {
  __shared__ float s[128 + 6];
  int t = threadIdx.x, i = blockIdx.x * 128 + t;
  s[t + 3] = i < n ? x[i] : 0;
  if (t < 3) {
    s[t] = i >= 3 ? x[i - 3] : 0;
    s[t + 131] = i + 128 < n ? x[i + 128] : 0;
  }
  __syncthreads();
  if (i < n) {
    float a = 0;
    for (int k = -3; k <= 3; k++) a += s[t + 3 + k] * (4 - abs(k));
    y[i] = a;
  }
}
__global__ void groups(const int* x, int* tile_sum, int* excl, int* coal, int* part, int n) {
  auto block = cg::this_thread_block();
  auto tile = cg::tiled_partition<8>(block);
  int i = block.group_index().x * block.size() + block.thread_rank();
  int v = i < n ? x[i] : 0;
  tile_sum[i] = cg::reduce(tile, v, cg::plus<int>());
  excl[i] = cg::exclusive_scan(tile, v, cg::plus<int>());
  coal[i] = -1;
  if (v & 1) {
    auto g = cg::coalesced_threads();
    coal[i] = g.size() * 100 + g.thread_rank();
    g.sync();
  }
  auto lp = cg::labeled_partition(tile, v % 3);
  part[i] = cg::reduce(lp, v, cg::greater<int>()) * 10 + lp.size();
  auto bp = cg::binary_partition(cg::tiled_partition<32>(block), v > 5);
  part[i] += bp.size() * 1000;
  block.sync();
}
__global__ void tiledreduce(const float* x, float* out, int n) {
  auto block = cg::this_thread_block();
  auto warp = cg::tiled_partition<32>(block);
  __shared__ float s[32];
  float v = 0;
  for (int i = cg::this_grid().thread_rank(); i < n; i += cg::this_grid().size()) v += x[i];
  v = cg::reduce(warp, v, cg::plus<float>());
  if (warp.thread_rank() == 0) s[warp.meta_group_rank()] = v;
  block.sync();
  if (warp.meta_group_rank() == 0) {
    v = warp.thread_rank() < warp.meta_group_size() ? s[warp.thread_rank()] : 0.f;
    v = cg::reduce(warp, v, cg::plus<float>());
    if (warp.thread_rank() == 0) atomicAdd(out, v);
  }
}
__global__ void gridsync(int* x, int* y) {
  auto grid = cg::this_grid();
  int i = grid.thread_rank();
  x[i] = i;
  grid.sync();
  y[i] = x[(i + blockDim.x) % grid.size()];
}
__global__ void named(int* out) {
  __shared__ int s[64];
  int t = threadIdx.x;
  if (t < 64) {
    s[t] = t;
    asm volatile("bar.sync 1, 64;" ::: "memory");
    out[t] = s[63 - t];
  } else {
    asm volatile("bar.sync 2, 64;");
    out[t] = -t;
  }
}
__global__ void counted(const int* x, int* out) {
  int t = threadIdx.x;
  int c = __syncthreads_count(x[t] > 3), a = __syncthreads_and(x[t] >= 0), o = __syncthreads_or(x[t] == 99);
  out[t] = c * 100 + a * 10 + o;
}
__global__ void producer(const int* x, int* y, int n) {
  __shared__ int s[2][32];
  int w = threadIdx.x / 32, l = threadIdx.x % 32;
  for (int k = 0; k < n; k++) {
    int b = k & 1;
    if (w == 0) {
      if (k >= 2) asm volatile("bar.sync %0, 64;" ::"r"(3 + b) : "memory");
      s[b][l] = x[k * 32 + l];
      __threadfence_block();
      asm volatile("bar.arrive %0, 64;" ::"r"(1 + b) : "memory");
    } else {
      asm volatile("bar.sync %0, 64;" ::"r"(1 + b) : "memory");
      y[k * 32 + l] = s[b][31 - l] + 1;
      if (k + 2 < n) asm volatile("bar.arrive %0, 64;" ::"r"(3 + b) : "memory");
    }
  }
}
}
// warp 0 fills, fences and raises a flag; warp 1 waits for the flag
template <bool FENCE>
__device__ void pass(int* out) {
  __shared__ int data[32];
  __shared__ volatile int flag;
  int t = threadIdx.x;
  if (t == 0) flag = 0;
  __syncthreads();
  if (t < 32) {
    data[t] = t * 7;
    if (FENCE) __threadfence_block();
    __syncwarp();
    if (t == 0) flag = 1;
  } else {
    while (flag == 0);
    if (FENCE) __threadfence_block();
    out[t - 32] = data[63 - t];
  }
}
extern "C" __global__ void flagged(int* out) { pass<true>(out); }
extern "C" __global__ void unflagged(int* out) { pass<false>(out); }
