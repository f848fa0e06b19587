#include <cuda_bf16.h>
#include <mma.h>
using namespace nvcuda;
template <class T, class A, int M, int N, int K>
__device__ void product(const T* a, const T* b, A* c, int m, int n, int k) {
  wmma::fragment<wmma::matrix_a, M, N, K, T, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, M, N, K, T, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, M, N, K, A> fc;
  wmma::fill_fragment(fc, A(0));
  int r = blockIdx.y * M, s = blockIdx.x * N;
  for (int i = 0; i < k; i += K) {
    wmma::load_matrix_sync(fa, a + r * k + i, k);
    wmma::load_matrix_sync(fb, b + s * k + i, k);
    wmma::mma_sync(fc, fa, fb, fc);
  }
  for (int e = 0; e < fc.num_elements; e++) fc.x[e] = fc.x[e] * A(2);
  wmma::store_matrix_sync(c + r * n + s, fc, n, wmma::mem_row_major);
}
extern "C" {
__global__ void wf16(const half* a, const half* b, float* c, int m, int n, int k) {
  product<half, float, 16, 16, 16>(a, b, c, m, n, k);
}
__global__ void wf16h(const half* a, const half* b, half* c, int m, int n, int k) {
  product<half, half, 32, 8, 16>(a, b, c, m, n, k);
}
__global__ void wbf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
  product<__nv_bfloat16, float, 8, 32, 16>(a, b, c, m, n, k);
}
__global__ void ws8(const signed char* a, const signed char* b, int* c, int m, int n, int k) {
  product<signed char, int, 16, 16, 16>(a, b, c, m, n, k);
}
__global__ void wf64(const double* a, const double* b, double* c, int m, int n, int k) {
  product<double, double, 8, 8, 4>(a, b, c, m, n, k);
}
__global__ void wtf32(const float* a, const float* b, float* c, int m, int n, int k) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> fc;
  int r = blockIdx.y * 16, s = blockIdx.x * 16;
  wmma::load_matrix_sync(fc, c + r * n + s, n, wmma::mem_row_major);
  for (int i = 0; i < k; i += 8) {
    wmma::load_matrix_sync(fa, a + r * k + i, k);
    wmma::load_matrix_sync(fb, b + i * n + s, n);
    for (int e = 0; e < fa.num_elements; e++) fa.x[e] = wmma::__float_to_tf32(fa.x[e]);
    for (int e = 0; e < fb.num_elements; e++) fb.x[e] = wmma::__float_to_tf32(fb.x[e]);
    wmma::mma_sync(fc, fa, fb, fc);
  }
  wmma::store_matrix_sync(c + r * n + s, fc, n, wmma::mem_row_major);
}
// shared-memory tiles, ldmatrix, mma.sync m16n8k16: C[32x32] per block of 4 warps
__global__ void ldmma(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int n, int k) {
  __shared__ __align__(16) __nv_bfloat16 sa[32][40], sb[32][40];
  int t = threadIdx.x, w = t / 32, l = t % 32, r0 = blockIdx.y * 32, c0 = blockIdx.x * 32, wr = w / 2 * 16,
      wc = w % 2 * 16;
  float acc[2][4] = {};
  for (int kk = 0; kk < k; kk += 32) {
    int r = t / 4, c = t % 4 * 8;
    *(uint4*)&sa[r][c] = *(const uint4*)(A + (r0 + r) * k + kk + c);
    *(uint4*)&sb[r][c] = *(const uint4*)(B + (kk + r) * n + c0 + c);
    __syncthreads();
    for (int s = 0; s < 32; s += 16) {
      unsigned a[4], b[4];
      unsigned pa = __cvta_generic_to_shared(&sa[wr + l % 16][s + l / 16 * 8]),
               pb = __cvta_generic_to_shared(&sb[s + l % 16][wc + l / 16 * 8]);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                   : "r"(pa));
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                   : "r"(pb));
      for (int j = 0; j < 2; j++)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[2 * j]), "r"(b[2 * j + 1]));
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; j++)
    for (int h = 0; h < 2; h++)
      *(float2*)(C + (r0 + wr + h * 8 + l / 4) * n + c0 + wc + j * 8 + l % 4 * 2) =
          make_float2(acc[j][2 * h], acc[j][2 * h + 1]);
}
}
