// C = A B^T in bf16 with f32 accumulation, in the Hopper manner: warpgroup 0 produces with tensor copies into a
// ring of stages, warpgroups 1 and 2 multiply 64 x 128 each by wgmma and store through shared memory.
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
constexpr int BM = 128, BN = 128, BK = 64, STAGES = 3;

__device__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ uint64_t descriptor(const bf16 *p) {  // K-major, 128-byte swizzle
  uint64_t a = address(p);
  return ((a & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ void init(uint64_t *bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(bar)), "r"(count));
}

__device__ void wait(uint64_t *bar, int parity) {
  asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\n"
               "bra WAIT;\nDONE:\n}\n" ::"r"(address(bar)), "r"(parity) : "memory");
}

__device__ void expect(uint64_t *bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address(bar)), "r"(bytes)
               : "memory");
}

__device__ void arrive(uint64_t *bar) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address(bar)) : "memory");
}

__device__ void load(bf16 *to, const void *map, uint64_t *bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
               "[%2];" ::"r"(address(to)), "l"(map), "r"(address(bar)), "r"(x), "r"(y) : "memory");
}

__device__ void store(const void *map, const bf16 *from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(address(from)), "r"(x), "r"(y) : "memory");
}

#define D4(n) "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3])
#define D16(n) D4(n), D4(n + 4), D4(n + 8), D4(n + 12)
__device__ void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
               "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
               "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
               "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"
               : D16(0), D16(16), D16(32), D16(48) : "l"(a), "l"(b));
}

extern "C" __global__ void __launch_bounds__(384)
gemm(int K, const __grid_constant__ CUtensorMap A, const __grid_constant__ CUtensorMap B,
     const __grid_constant__ CUtensorMap C) {
  extern __shared__ __align__(1024) unsigned char raw[];
  bf16 *a = (bf16 *)raw, *b = a + STAGES * BM * BK, *c = b + STAGES * BN * BK;
  __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES];
  int group = threadIdx.x / 128, row = blockIdx.y * BM, column = blockIdx.x * BN;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) init(full + s, 1), init(empty + s, 2);
    asm volatile("fence.mbarrier_init.release.cluster;");
  }
  __syncthreads();
  int stage = 0, phase = 0;
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      for (int k = 0; k < K; k += BK) {
        wait(empty + stage, phase ^ 1);
        expect(full + stage, (BM + BN) * BK * 2);
        load(a + stage * BM * BK, &A, full + stage, k, row);
        load(b + stage * BN * BK, &B, full + stage, k, column);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  float d[64];
  for (int i = 0; i < 64; i++) d[i] = 0;
  for (int k = 0; k < K; k += BK) {
    wait(full + stage, phase);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    for (int kk = 0; kk < BK; kk += 16)
      multiply(d, descriptor(a + stage * BM * BK + (group - 1) * 64 * BK + kk), descriptor(b + stage * BN * BK + kk));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    if (threadIdx.x % 128 == 0) arrive(empty + stage);
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
  int t = threadIdx.x % 128, lane = t % 32, r = 16 * (t / 32) + lane / 4;
  bf16 *out = c + (group - 1) * 64 * BN;
  for (int j = 0; j < 16; j++)
    for (int h = 0; h < 2; h++)
      *(__nv_bfloat162 *)(out + (r + 8 * h) * BN + 8 * j + 2 * (lane % 4)) =
          __floats2bfloat162_rn(d[4 * j + 2 * h], d[4 * j + 2 * h + 1]);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
  if (t == 0) {
    store(&C, out, column, row + 64 * (group - 1));
    asm volatile("cp.async.bulk.commit_group;");
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}
