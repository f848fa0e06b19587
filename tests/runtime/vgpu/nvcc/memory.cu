#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda_pipeline.h>

#include <cstdint>
#include <cuda/pipeline>
namespace cg = cooperative_groups;
__constant__ float weights[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16.5f};
__constant__ struct {
  int a;
  double b;
  short c[3];
} mixed = {7, 2.25, {1, -2, 3}};
__device__ int counters[4] = {1, 2, 3};
__device__ const char text[] = "hello";
__device__ const char* const words[] = {"zero", "one", "two"};
__managed__ int shared_with_host = 5;
struct __align__(16) Particle {
  float3 p;
  float m;
  double e;
};
struct Odd {
  char a;
  short b;
  char c[3];
};
extern "C" {
__global__ void filter(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float s = 0;
  for (int k = 0; k < 16; k++) s += weights[(k + i) & 15] * (i + k < n ? x[i + k] : 0.f);
  y[i] = s + mixed.a + mixed.b + mixed.c[i % 3];
}
__global__ void strings(char* out, int* c) {
  out[threadIdx.x] = threadIdx.x < 5 ? text[threadIdx.x] : words[threadIdx.x % 3][0];
  if (threadIdx.x < 4) c[threadIdx.x] = atomicAdd(counters + threadIdx.x, 10) + shared_with_host;
}
__global__ void vectors(const float4* a, const int2* b, const double2* c, const uchar4* d, const short2* e, float4* o,
                        int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float4 v = __ldg(a + i);
  int2 w = __ldg(b + i);
  double2 u = __ldcg(c + i);
  uchar4 q = __ldcs(d + i);
  short2 s = __ldca(e + i);
  float4 r = make_float4(v.w + w.x, v.z + (float)u.y, v.y + q.w, v.x + s.y);
  __stcs(o + i, r);
}
__global__ void hints(const float* a, float* b, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  float v = __ldlu(a + i) + __ldcv(a + i) + __ldca(a + i);
  asm volatile("prefetch.global.L2 [%0];" ::"l"(a + i));
  unsigned long long pol;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(pol));
  float z;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(z) : "l"(a + i), "l"(pol));
  float y;
  asm volatile("ld.global.nc.L1::evict_last.L2::128B.f32 %0, [%1];" : "=f"(y) : "l"(a + i));
  __stwt(b + i, v + z + y);
  __stcg(b + n + i, v);
}
__global__ void structs(Particle* p, const Odd* o, int* sums, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  Particle q = p[i];
  q.p.x += q.m;
  q.p.z -= q.p.y;
  q.e *= 2;
  p[i] = q;
  Odd z = o[i];
  sums[i] = z.a + z.b * 10 + z.c[0] + z.c[2] * 3;
}
__global__ void locals(const int* x, int* out, int n, int k) {
  int i = threadIdx.x;
  if (i >= n) return;
  int t[33];
  char c[20];
  for (int j = 0; j < 33; j++) t[j] = x[(i * 7 + j) % n];
  for (int j = 0; j < 20; j++) c[j] = (char)(i + j);
  for (int j = 0; j < k; j++) {
    int a = (i + j * j) % 33, b = (j * 5) % 33;
    int s = t[a];
    t[a] = t[b];
    t[b] = s;
    c[a % 20] ^= c[b % 20];
  }
  int s = 0;
  for (int j = 0; j < 33; j++) s = s * 31 + t[j];
  for (int j = 0; j < 20; j++) s += c[j] * j;
  out[i] = s;
}
__global__ void dynamic(const float* x, float* y, int n) {
  extern __shared__ __align__(16) unsigned char raw[];
  float* f = (float*)raw;
  double* d = (double*)(raw + n * 4);
  int t = threadIdx.x;
  for (int i = t; i < n; i += blockDim.x) {
    f[i] = x[i];
    d[i] = x[i] * 2.0;
  }
  __syncthreads();
  for (int i = t; i < n; i += blockDim.x) y[i] = f[n - 1 - i] + (float)d[(i + 1) % n];
}
__device__ __noinline__ float generic_sum(const float* p, int n, int stride) {
  float s = 0;
  for (int i = 0; i < n; i++) s += p[i * stride];
  return s;
}
__global__ void generic(const float* x, float* y) {
  __shared__ float s[64];
  float l[8];
  int t = threadIdx.x;
  s[t] = x[t];
  for (int k = 0; k < 8; k++) l[(k * 3 + t) & 7] = x[(t + k) & 63];
  __syncthreads();
  const float* p = t % 3 == 0 ? x : t % 3 == 1 ? s : l;
  y[t] = generic_sum(p, 8, 1) + (__isShared(p) ? 1000 : 0) + (__isLocal(p) ? 2000 : 0) + (__isGlobal(p) ? 4000 : 0);
}
__global__ void pipelined(const float4* x, float4* y, int n) {
  __shared__ float4 s[3][64];
  int t = threadIdx.x;
  for (int k = 0; k < 2; k++) {
    if (k * 64 + t < n) __pipeline_memcpy_async(&s[k][t], x + k * 64 + t, 16);
    __pipeline_commit();
  }
  for (int k = 0; k * 64 < n; k++) {
    int f = k + 2;
    if (f * 64 + t < n) __pipeline_memcpy_async(&s[f % 3][t], x + f * 64 + t, 16);
    __pipeline_commit();
    __pipeline_wait_prior(2);
    __syncthreads();
    if (k * 64 + t < n) {
      float4 v = s[k % 3][t];
      float4 w = s[k % 3][k * 64 + (t ^ 1) < n ? t ^ 1 : t];
      y[k * 64 + t] = make_float4(v.x + w.w, v.y, v.z * 2, v.w - w.x);
    }
    __syncthreads();
  }
}
__global__ void cudapipe(const int* x, int* y, int n) {
  constexpr int S = 2;
  __shared__ int s[S][128];
  auto block = cg::this_thread_block();
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, S> st;
  auto pipe = cuda::make_pipeline(block, &st);
  int tiles = n / 128;
  for (int c = 0, f = 0; c < tiles; c++) {
    for (; f < tiles && f < c + S; f++) {
      pipe.producer_acquire();
      cuda::memcpy_async(block, s[f % S], x + f * 128, cuda::aligned_size_t<4>(512), pipe);
      pipe.producer_commit();
    }
    pipe.consumer_wait();
    y[c * 128 + threadIdx.x] = s[c % S][127 - threadIdx.x] * 2;
    pipe.consumer_release();
  }
}
__global__ void threadpipe(const int* x, int* y, int n) {
  __shared__ int s[2][128];
  auto pipe = cuda::make_pipeline();
  int t = threadIdx.x;
  for (int c = 0; c * 128 < n; c++) {
    pipe.producer_acquire();
    cuda::memcpy_async(&s[c & 1][t], x + c * 128 + t, sizeof(int), pipe);
    pipe.producer_commit();
    pipe.consumer_wait();
    __syncthreads();
    y[c * 128 + t] = s[c & 1][t ^ 3];
    pipe.consumer_release();
    __syncthreads();
  }
}
__global__ void groupcopy(const int* x, int* y, int n) {
  extern __shared__ int sm[];
  auto block = cg::this_thread_block();
  cg::memcpy_async(block, sm, x, sizeof(int) * n);
  cg::wait(block);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = sm[n - 1 - i];
}
__global__ void bytes(const unsigned char* a, unsigned char* b, int n) {
  __shared__ unsigned char s[256];
  __shared__ unsigned short h[256];
  int t = threadIdx.x;
  for (int base = 0; base < n; base += 256) {
    int i = base + t;
    if (i < n) {
      s[t] = a[i];
      h[t] = a[i] * 257;
    }
    __syncthreads();
    if (i < n) b[i] = s[min(n - base, 256) - 1 - t] ^ (unsigned char)(h[t] >> 3);
    __syncthreads();
  }
}
__global__ void moved(const unsigned char* a, unsigned char* b) {
  struct S {
    unsigned char v[37];
  } s;
  memcpy(&s, a + threadIdx.x * 37, 37);
  unsigned v;
  memcpy(&v, s.v + 5, 4);
  s.v[0] += v & 3;
  memset(s.v + 30, 7, 4);
  memcpy(b + threadIdx.x * 37, &s, 37);
}
}
__global__ void __launch_bounds__(64, 2)
    fixedparams(const __grid_constant__ Particle p, const __grid_constant__ struct Odd o, float* out) {
  const Particle* q = &p;
  const float* f = &q->p.x;
  out[threadIdx.x] = f[threadIdx.x % 4] + o.c[threadIdx.x % 3] + (float)p.e;
}
