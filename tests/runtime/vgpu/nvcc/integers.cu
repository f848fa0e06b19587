#include <cstdint>
extern "C" {
__global__ void division(const long long* a, const long long* b, long long* q, long long* r, unsigned long long* uq,
                         unsigned long long* ur, int* iq, unsigned* uir, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  q[i] = a[i] / b[i];
  r[i] = a[i] % b[i];
  uq[i] = (unsigned long long)a[i] / (unsigned long long)b[i];
  ur[i] = (unsigned long long)a[i] % (unsigned long long)b[i];
  int ib = (int)b[i] | 1;
  iq[i] = (int)a[i] / ib;
  uir[i] = (unsigned)a[i] % (unsigned)ib;
}
__global__ void constants(const long long* a, long long* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long v = a[i];
  out[i] = v / 1000003 + v % 97 + (int)v / 13 + (unsigned)v % 1000u + (short)v / 3 + (unsigned char)v % 10;
}
__global__ void bits(const unsigned* x, const unsigned long long* w, int* out) {
  int t = threadIdx.x;
  unsigned v = x[t];
  unsigned long long u = w[t];
  int* o = out + t * 16;
  o[0] = __popc(v);
  o[1] = __clz(v);
  o[2] = __brev(v);
  o[3] = __ffs(v);
  o[4] = __popcll(u);
  o[5] = __clzll(u);
  o[6] = (int)(__brevll(u) >> 7);
  o[7] = __ffsll(u);
  o[8] = __funnelshift_l(v, (unsigned)u, t);
  o[9] = __funnelshift_rc(v, (unsigned)u, t + 5);
  o[10] = __byte_perm(v, (unsigned)u, 0x6142 + t);
  o[11] = __mulhi((int)v, (int)u);
  o[12] = __umulhi(v, (unsigned)u);
  o[13] = (int)(__mul64hi((long long)u, (long long)u ^ v) >> 3);
  o[14] = __sad((int)v, (int)u, 5u);
  o[15] = __usad(v, (unsigned)u, 5u) + __rhadd((int)v, (int)u) + __hadd((int)v, (int)u);
}
__global__ void wide(const unsigned long long* a, const unsigned long long* b, unsigned long long* out, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  unsigned __int128 x = (unsigned __int128)a[i] * b[i] + a[i];
  x = (x << 13) ^ (x >> 17);
  __int128 s = (__int128)x - ((__int128)b[i] << 64);
  out[4 * i] = (unsigned long long)x;
  out[4 * i + 1] = (unsigned long long)(x >> 64);
  out[4 * i + 2] = (unsigned long long)(x / (b[i] | 1));
  out[4 * i + 3] = (unsigned long long)(s % (__int128)(a[i] | 1));
}
__global__ void simd(const unsigned* a, const unsigned* b, unsigned* out) {
  int t = threadIdx.x;
  unsigned x = a[t], y = b[t];
  unsigned* o = out + 16 * t;
  o[0] = __vadd4(x, y);
  o[1] = __vsub2(x, y);
  o[2] = __vaddss4(x, y);
  o[3] = __vabsdiffu4(x, y);
  o[4] = __vmaxu4(x, y);
  o[5] = __vmins2(x, y);
  o[6] = __vcmpgtu4(x, y);
  o[7] = __vavgu4(x, y);
  o[8] = __vsads4(x, y);
  o[9] = __vseteq2(x, y);
  o[10] = __dp4a((int)x, (int)y, 7);
  o[11] = __dp4a(x, y, 7u);
  o[12] = __dp2a_lo((int)x, (int)y, 1);
  o[13] = __dp2a_hi(x, y, 1u);
  o[14] = __vaddus2(x, y);
  o[15] = __viaddmax_s32_relu((int)x, (int)y, 3);
}
__global__ void shifts(const int* x, const int* s, int* out, long long* wide) {
  int t = threadIdx.x;
  int v = x[t], k = s[t];
  out[4 * t] = v << (k & 31);
  out[4 * t + 1] = v >> (k & 31);
  out[4 * t + 2] = (unsigned)v >> (k & 31);
  out[4 * t + 3] = (short)(v << 3) >> 2;
  wide[2 * t] = (long long)v << (k & 63);
  wide[2 * t + 1] = ((long long)v << 20) >> (k & 63);
}
__global__ void small(const signed char* a, const unsigned short* b, signed char* o, unsigned short* p, bool* q,
                      int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  o[i] = a[i] * 3 - (b[i] >> 4);
  p[i] = b[i] * b[i] + a[i];
  q[i] = (a[i] > 0) ^ (b[i] & 1);
}
__global__ void generators(unsigned* out, int n) {  // PCG and xorshift and a 64-bit LCG
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  unsigned long long s = i * 6364136223846793005ULL + 1442695040888963407ULL;
  unsigned acc = 0;
  for (int k = 0; k < 10; k++) {
    s = s * 6364136223846793005ULL + 1442695040888963407ULL;
    unsigned x = (unsigned)(((s >> 18) ^ s) >> 27), r = s >> 59;
    acc ^= (x >> r) | (x << ((-r) & 31));
    acc ^= acc << 13;
    acc ^= acc >> 17;
    acc ^= acc << 5;
  }
  out[i] = acc;
}
__global__ void extended(const unsigned* a, const unsigned* b,
                         unsigned* out) {  // 128-bit add and subtract with carries
  int t = threadIdx.x;
  unsigned r0, r1, r2, r3;
  asm("add.cc.u32 %0, %4, %8; addc.cc.u32 %1, %5, %9; addc.cc.u32 %2, %6, %10; addc.u32 %3, %7, %11;"
      : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
      : "r"(a[4 * t]), "r"(a[4 * t + 1]), "r"(a[4 * t + 2]), "r"(a[4 * t + 3]), "r"(b[4 * t]), "r"(b[4 * t + 1]),
        "r"(b[4 * t + 2]), "r"(b[4 * t + 3]));
  out[8 * t] = r0;
  out[8 * t + 1] = r1;
  out[8 * t + 2] = r2;
  out[8 * t + 3] = r3;
  asm("sub.cc.u32 %0, %4, %8; subc.cc.u32 %1, %5, %9; subc.cc.u32 %2, %6, %10; subc.u32 %3, %7, %11;"
      : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
      : "r"(a[4 * t]), "r"(a[4 * t + 1]), "r"(a[4 * t + 2]), "r"(a[4 * t + 3]), "r"(b[4 * t]), "r"(b[4 * t + 1]),
        "r"(b[4 * t + 2]), "r"(b[4 * t + 3]));
  out[8 * t + 4] = r0;
  out[8 * t + 5] = r1;
  out[8 * t + 6] = r2;
  out[8 * t + 7] = r3;
}
}
