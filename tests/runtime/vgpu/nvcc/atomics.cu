#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cuda/atomic>
extern "C" {
__device__ float atomicMaxFloat(float* p, float v) {
  int* a = (int*)p;
  int old = *a, seen;
  do {
    seen = old;
    if (__int_as_float(seen) >= v) break;
    old = atomicCAS(a, seen, __float_as_int(v));
  } while (old != seen);
  return __int_as_float(old);
}
__global__ void casmax(const float* x, float* m, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicMaxFloat(m + i % 5, x[i]);
}
__global__ void every(int* a, unsigned* u, unsigned long long* w, float* f, double* d, const int* x) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  int v = x[t];
  atomicAdd(a, v);
  atomicSub(a + 1, v);
  atomicMin(a + 2, v);
  atomicMax(a + 3, v);
  atomicAnd(a + 4, v);
  atomicOr(a + 5, v);
  atomicXor(a + 6, v);
  atomicInc(u, 10);
  atomicDec(u + 1, 7);
  atomicMin(u + 2, (unsigned)v);
  atomicMax(u + 3, (unsigned)v);
  atomicAdd(w, (unsigned long long)v);
  atomicMax(w + 1, (unsigned long long)v << 33);
  atomicExch(w + 2, 5ull);
  atomicAdd(f, 0.5f);
  atomicAdd(d, 0.25);
  atomicCAS(a + 7, 0, 42);
}
__global__ void halves(__half* h, __half2* h2, __nv_bfloat16* b, __nv_bfloat162* b2) {
  atomicAdd(h, __float2half(0.5f));
  atomicAdd(h2, __floats2half2_rn(1.f, 2.f));
  atomicAdd(b, __float2bfloat16(1.f));
  atomicAdd(b2, __floats2bfloat162_rn(1.f, 2.f));
}
// one lock, taken by one thread of each warp
__global__ void locked(int* lock, int* value) {
  for (int k = 0; k < 32; k++)
    if (threadIdx.x % 32 == k) {
      while (atomicCAS(lock, 0, 1) != 0);
      __threadfence();
      *(volatile int*)value += 1;
      __threadfence();
      atomicExch(lock, 0);
    }
}
__device__ unsigned arrived;
__global__ void last_block(const float* x, float* part, float* out, int n) {
  __shared__ float s[128];
  __shared__ bool last;
  float v = 0;
  int t = threadIdx.x;
  for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) v += x[i];
  s[t] = v;
  __syncthreads();
  for (int k = 64; k; k >>= 1) {
    if (t < k) s[t] += s[t + k];
    __syncthreads();
  }
  if (t == 0) {
    part[blockIdx.x] = s[0];
    __threadfence();
    last = atomicInc(&arrived, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last) {
    v = 0;
    for (int i = t; i < gridDim.x; i += blockDim.x) v += ((volatile float*)part)[i];
    s[t] = v;
    __syncthreads();
    for (int k = 64; k; k >>= 1) {
      if (t < k) s[t] += s[t + k];
      __syncthreads();
    }
    if (t == 0) *out = s[0];
  }
}
__global__ void histogram(const unsigned char* x, unsigned* h, int n, int bins) {
  extern __shared__ unsigned local[];
  for (int b = threadIdx.x; b < bins; b += blockDim.x) local[b] = 0;
  __syncthreads();
  const uchar4* x4 = (const uchar4*)x;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
    uchar4 v = x4[i];
    atomicAdd(local + v.x % bins, 1);
    atomicAdd(local + v.y % bins, 1);
    atomicAdd(local + v.z % bins, 1);
    atomicAdd(local + v.w % bins, 1);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x)
    if (local[b]) atomicAdd(h + b, local[b]);
}
}
__device__ cuda::atomic<int, cuda::thread_scope_device> counter{0};
extern "C" __global__ void libcu(int* out, unsigned* words) {
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> r(words[0]);
  r.fetch_add(2, cuda::memory_order_relaxed);
  cuda::atomic_ref<unsigned, cuda::thread_scope_block> b(words[1]);
  b.fetch_max(t);
  out[t] = counter.fetch_add(1, cuda::memory_order_acq_rel) >= 0;
  unsigned e = words[2] * 0 + t;
  r.compare_exchange_weak(e, e);
  (void)r.load(cuda::memory_order_acquire);
  cuda::atomic_thread_fence(cuda::memory_order_seq_cst, cuda::thread_scope_device);
}
// message passing between blocks: block 0 produces, block 1 waits for its flag
extern "C" __global__ void message(int* data, int* flag, int* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x * 3;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicExch(flag, 1);
    }
  } else {
    if (threadIdx.x == 0)
      while (atomicAdd(flag, 0) == 0);
    __syncthreads();
    __threadfence();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
extern "C" __global__ void released(int* data, int* flag, int* out) {
  cuda::atomic_ref<int, cuda::thread_scope_device> f(*flag);
  if (blockIdx.x == 1) {
    data[threadIdx.x] = threadIdx.x * 3;
    __syncthreads();
    if (threadIdx.x == 0) f.store(1, cuda::memory_order_release);
  } else {
    if (threadIdx.x == 0)
      while (f.load(cuda::memory_order_acquire) == 0) __nanosleep(20);
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
extern "C" __global__ void unfenced(int* data, int* flag, int* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x * 3;
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(flag, 1);
  } else {
    if (threadIdx.x == 0)
      while (atomicAdd(flag, 0) == 0);
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
