#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cub/cub.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/latch>
#include <cuda/semaphore>
namespace cg = cooperative_groups;
using bar_t = cuda::barrier<cuda::thread_scope_block>;
extern "C" __global__ void cbar(const int* x, int* y, int n) {
  __shared__ bar_t bar;
  __shared__ int s[256];
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  for (int k = 0; k < n; k += 256) {
    cuda::memcpy_async(&s[threadIdx.x * 2], &x[k + threadIdx.x * 2], cuda::aligned_size_t<8>(8), bar);
    bar.arrive_and_wait();
    y[k + threadIdx.x * 2] = s[255 - threadIdx.x * 2];
    y[k + threadIdx.x * 2 + 1] = s[254 - threadIdx.x * 2];
    bar_t::arrival_token t = bar.arrive();
    bar.wait(std::move(t));
  }
}
extern "C" __global__ void dropping(int* y) {
  __shared__ bar_t bar;
  __shared__ int s[128];
  int t = threadIdx.x;
  if (t == 0) init(&bar, blockDim.x);
  __syncthreads();
  s[t] = t;
  for (int k = 0; k < 4; k++) {
    if (t >= 128 - 32 * k - 32 && k < 3 && t < 128 - 32 * k) { bar.arrive_and_drop(); return; }
    if (t >= 128 - 32 * k) return;
    bar.arrive_and_wait();
    y[t * 4 + k] = s[t ^ 1] + k;
  }
}
extern "C" __global__ void cgcopy(const float* x, float* y, int n) {
  extern __shared__ float sm[];
  auto b = cg::this_thread_block();
  int per = 128, st = 2;
  for (int i = 0; i < st && i * per < n; i++) cg::memcpy_async(b, sm + i * per, x + i * per, sizeof(float) * min(per, n - i * per));
  for (int i = 0; i * per < n; i++) {
    if ((i + 1) * per < n) cg::wait_prior<1>(b); else cg::wait(b);
    int m = min(per, n - i * per);
    if (b.thread_rank() < m) y[i * per + b.thread_rank()] = sm[(i % st) * per + m - 1 - b.thread_rank()];
    b.sync();
    if ((i + st) * per < n) cg::memcpy_async(b, sm + (i % st) * per, x + (i + st) * per, sizeof(float) * min(per, n - (i + st) * per));
  }
}
extern "C" __global__ void latches(int* y) {
  __shared__ cuda::latch<cuda::thread_scope_block>* lp;
  __shared__ __align__(16) char raw[64];
  __shared__ int s[64];
  if (threadIdx.x == 0) lp = new (raw) cuda::latch<cuda::thread_scope_block>(64);
  __syncthreads();
  if (threadIdx.x < 64) { s[threadIdx.x] = threadIdx.x * 3; lp->count_down(); }
  else { lp->wait(); y[threadIdx.x - 64] = s[127 - threadIdx.x]; }
}
extern "C" __global__ void sema(int* sem, int* y) {
  __shared__ __align__(16) char raw[64];
  __shared__ cuda::counting_semaphore<cuda::thread_scope_block, 2>* p;
  __shared__ cuda::atomic<int, cuda::thread_scope_block> inside, most;
  if (threadIdx.x == 0) { p = new (raw) cuda::counting_semaphore<cuda::thread_scope_block, 2>(2); inside = 0; most = 0; }
  __syncthreads();
  p->acquire();
  int k = inside.fetch_add(1) + 1;
  most.fetch_max(k);
  inside.fetch_sub(1);
  p->release();
  __syncthreads();
  y[threadIdx.x] = most.load() <= 2;
}
#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)
extern "C" __global__ void ring(int* y) {
  auto c = cg::this_cluster();
  __shared__ int s[32];
  s[threadIdx.x] = c.block_rank() * 100 + threadIdx.x;
  c.sync();
  int* r = c.map_shared_rank(s, (c.block_rank() + 1) % c.num_blocks());
  y[blockIdx.x * 32 + threadIdx.x] = r[31 - threadIdx.x] + c.dim_blocks().x * 10000;
  c.barrier_arrive();
  c.barrier_wait();
}
#endif
extern "C" __global__ void cubs(const int* x, int* sums, int* scan, int* sorted, int* hist, int n) {
  using R = cub::BlockReduce<int, 128>;
  using S = cub::BlockScan<int, 128>;
  using Q = cub::BlockRadixSort<int, 128, 4>;
  using L = cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
  using H = cub::BlockHistogram<unsigned char, 128, 4, 16>;
  __shared__ union { R::TempStorage r; S::TempStorage s; Q::TempStorage q; L::TempStorage l; H::TempStorage h; } tmp;
  __shared__ int hs[16];
  int v[4], o[4];
  L(tmp.l).Load(x + blockIdx.x * 512, v);
  __syncthreads();
  int total = R(tmp.r).Sum(v);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
  __syncthreads();
  S(tmp.s).ExclusiveSum(v, o);
  for (int k = 0; k < 4; k++) scan[blockIdx.x * 512 + threadIdx.x * 4 + k] = o[k];
  __syncthreads();
  unsigned char b[4];
  for (int k = 0; k < 4; k++) b[k] = v[k] & 15;
  H(tmp.h).Histogram(b, hs);
  __syncthreads();
  if (threadIdx.x < 16) hist[blockIdx.x * 16 + threadIdx.x] = hs[threadIdx.x];
  __syncthreads();
  Q(tmp.q).Sort(v);
  for (int k = 0; k < 4; k++) sorted[blockIdx.x * 512 + threadIdx.x * 4 + k] = v[k];
}
