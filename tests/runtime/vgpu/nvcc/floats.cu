#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
extern "C" {
#define UNARY(X)                                                                                                     \
  X(sin)                                                                                                             \
  X(cos) X(tan) X(exp) X(exp2) X(exp10) X(expm1) X(log) X(log2) X(log10) X(log1p) X(sqrt) X(rsqrt) X(cbrt) X(sinh)   \
      X(cosh) X(tanh) X(asinh) X(atan) X(erf) X(erfc) X(lgamma) X(tgamma) X(floor) X(ceil) X(trunc) X(rint) X(round) \
          X(fabs) X(erfinv) X(normcdf) X(j0) X(sinpi) X(cospi)
__global__ void doubles(const double* x, double* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  double v = x[i];
  int k = 0;
#define ONE(f) out[(k++) * n + i] = f(v);
  UNARY(ONE)
}
__global__ void singles(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  int k = 0;
#define ONEF(g) out[(k++) * n + i] = g##f(v);
  UNARY(ONEF)
}
__global__ void binary(const double* x, const double* y, double* out, const float* xf, const float* yf, float* outf,
                       int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = pow(x[i], y[i]);
  out[n + i] = fmod(x[i], y[i]);
  out[2 * n + i] = atan2(x[i], y[i]);
  out[3 * n + i] = hypot(x[i], y[i]);
  out[4 * n + i] = remainder(x[i], y[i]);
  out[5 * n + i] = x[i] / y[i];
  out[6 * n + i] = fma(x[i], y[i], x[i]);
  out[7 * n + i] = fmin(x[i], y[i]) - fmax(x[i], y[i]);
  int e;
  out[8 * n + i] = frexp(x[i], &e) + e;
  out[9 * n + i] = ldexp(x[i], (int)y[i]);
  double ip;
  out[10 * n + i] = modf(x[i], &ip) + ip;
  out[11 * n + i] = copysign(x[i], y[i]);
  out[12 * n + i] = nextafter(x[i], y[i]);
  out[13 * n + i] = fdim(x[i], y[i]);
  outf[i] = powf(xf[i], yf[i]);
  outf[n + i] = fmodf(xf[i], yf[i]);
  outf[2 * n + i] = atan2f(xf[i], yf[i]);
  outf[3 * n + i] = hypotf(xf[i], yf[i]);
  outf[4 * n + i] = remainderf(xf[i], yf[i]);
  outf[5 * n + i] = xf[i] / yf[i];
  outf[6 * n + i] = fmaf(xf[i], yf[i], xf[i]);
  outf[7 * n + i] = fminf(xf[i], yf[i]) - fmaxf(xf[i], yf[i]);
  outf[8 * n + i] = frexpf(xf[i], &e) + e;
  outf[9 * n + i] = ldexpf(xf[i], (int)yf[i]);
  float ipf;
  outf[10 * n + i] = modff(xf[i], &ipf) + ipf;
  outf[11 * n + i] = copysignf(xf[i], yf[i]);
  outf[12 * n + i] = nextafterf(xf[i], yf[i]);
  outf[13 * n + i] = fdimf(xf[i], yf[i]);
}
__global__ void rounding(const float* a, const float* b, float* o, const double* c, const double* d, double* p, int* q,
                         long long* w, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  float x = a[i], y = b[i];
  double u = c[i], v = d[i];
  o[i] = __fadd_ru(x, y);
  o[n + i] = __fadd_rd(x, y);
  o[2 * n + i] = __fmul_rz(x, y);
  o[3 * n + i] = __fmaf_ru(x, y, x);
  o[4 * n + i] = __fdiv_rd(x, y);
  o[5 * n + i] = __fsqrt_rz(fabsf(x));
  o[6 * n + i] = __frcp_ru(y);
  o[7 * n + i] = __saturatef(x);
  o[8 * n + i] = __double2float_rd(u);
  o[9 * n + i] = __int2float_rz(q[i]);
  o[10 * n + i] = __fsub_rz(x, y);
  p[i] = __dadd_ru(u, v);
  p[n + i] = __dmul_rd(u, v);
  p[2 * n + i] = __fma_rz(u, v, u);
  p[3 * n + i] = __ddiv_ru(u, v);
  p[4 * n + i] = __dsqrt_rd(fabs(u));
  p[5 * n + i] = __ll2double_rd(w[i]);
  p[6 * n + i] = __drcp_rz(v);
  q[n + i] = __float2int_rn(x);
  q[2 * n + i] = __float2int_rd(x);
  q[3 * n + i] = __float2uint_ru(fabsf(x));
  q[4 * n + i] = __double2int_rz(u);
  q[5 * n + i] = (int)x;
  q[6 * n + i] = __float_as_int(x) ^ __double2hiint(u) ^ __double2loint(v);
  q[7 * n + i] = isnan(x) + 2 * isinf(y) + 4 * isfinite(u) + 8 * signbit(v);
  w[n + i] = __double2ll_rn(u);
  w[2 * n + i] = __float2ll_ru(x);
  w[3 * n + i] = (long long)__double2ull_rd(fabs(u));
}
__global__ void fast(const float* x, float* o, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  o[i] = __sinf(v);
  o[n + i] = __cosf(v);
  o[2 * n + i] = __expf(v);
  o[3 * n + i] = __logf(fabsf(v));
  o[4 * n + i] = __powf(fabsf(v), 1.5f);
  o[5 * n + i] = __fdividef(v, v + 7);
  o[6 * n + i] = __tanf(v);
  o[7 * n + i] = __exp10f(v);
  o[8 * n + i] = __log2f(fabsf(v));
  o[9 * n + i] = __frsqrt_rn(fabsf(v));
  o[10 * n + i] = rnormf(1, &v);
  float s, c;
  sincosf(v * 1000.f, &s, &c);
  o[11 * n + i] = s * 2 + c;
  o[12 * n + i] = sinf(v * 1e6f);
}
__global__ void half_math(const __half2* a, const __half2* b, __half2* o, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  __half2 x = a[i], y = b[i];
  o[i] = __hfma2(x, y, x);
  o[n + i] = __hmax2(x, y);
  o[2 * n + i] = __hmin2_nan(x, y);
  o[3 * n + i] = __hadd2_sat(x, y);
  o[4 * n + i] = __h2div(x, y);
  o[5 * n + i] = h2exp(x);
  o[6 * n + i] = h2sqrt(__habs2(x));
  o[7 * n + i] = h2rcp(y);
  o[8 * n + i] = __hneg2(x);
  o[9 * n + i] = __hgt2(x, y);
  o[10 * n + i] = __lows2half2(x, y);
  o[11 * n + i] = __hfma2_relu(x, y, x);
  o[12 * n + i] = h2floor(x);
  o[13 * n + i] = __hlt(__low2half(x), __high2half(y)) ? x : y;
  o[14 * n + i] = h2tanh(x);
  o[15 * n + i] = __float22half2_rn(__half22float2(x));
  o[16 * n + i] = h2log(__habs2(x));
  o[17 * n + i] = h2sin(x);
  o[18 * n + i] = __hcmadd(x, y, x);
  o[19 * n + i] = h2rint(x);
  o[20 * n + i] = __hsub2(x, y) * __hmul2(x, y);
  o[21 * n + i] = __hne2(x, y);
}
__global__ void half_convert(const __half* a, int* q, short* s, unsigned long long* w, __half* o, const int* in,
                             int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  q[i] = __half2int_rn(a[i]);
  q[n + i] = __half2uint_rz(__habs(a[i]));
  s[i] = __half2short_rd(a[i]);
  w[i] = __half2ull_ru(__habs(a[i]));
  o[i] = __int2half_rz(in[i]);
  o[n + i] = __short2half_rn((short)in[i]);
  o[2 * n + i] = __double2half((double)in[i] / 7);
  o[3 * n + i] = __float2half_rd((float)in[i] / 7);
  o[4 * n + i] = __ll2half_ru((long long)in[i]);
  o[5 * n + i] = hsqrt(__habs(a[i]));
  o[6 * n + i] = hexp2(a[i]);
  o[7 * n + i] = __hdiv(a[i], a[0]);
  s[n + i] = __half_as_short(a[i]);
  q[2 * n + i] = __hisnan(a[i]) + __hisinf(a[i]) * 2 + __heq(a[i], a[i]) * 4;
}
__global__ void bf16_math(const __nv_bfloat162* a, const __nv_bfloat162* b, __nv_bfloat162* o, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  __nv_bfloat162 x = a[i], y = b[i];
  o[i] = __hfma2(x, y, x);
  o[n + i] = __hmax2(x, y);
  o[2 * n + i] = __hmin2_nan(x, y);
  o[3 * n + i] = __hadd2_sat(x, y);
  o[4 * n + i] = __h2div(x, y);
  o[5 * n + i] = h2exp(x);
  o[6 * n + i] = h2sqrt(__habs2(x));
  o[7 * n + i] = h2rcp(y);
  o[8 * n + i] = __hneg2(x);
  o[9 * n + i] = __hgt2(x, y);
  o[10 * n + i] = __lows2bfloat162(x, y);
  o[11 * n + i] = __hfma2_relu(x, y, x);
  o[12 * n + i] = h2floor(x);
  o[13 * n + i] = __hlt(__low2bfloat16(x), __high2bfloat16(y)) ? x : y;
  o[14 * n + i] = h2tanh(x);
  o[15 * n + i] = __float22bfloat162_rn(__bfloat1622float2(x));
  o[16 * n + i] = h2log(__habs2(x));
  o[17 * n + i] = h2sin(x);
  o[18 * n + i] = __hcmadd(x, y, x);
  o[19 * n + i] = h2rint(x);
  o[20 * n + i] = __hsub2(x, y) * __hmul2(x, y);
  o[21 * n + i] = __hne2(x, y);
}
__global__ void fp8(const float* x, unsigned char* e4, unsigned char* e5, float* back4, float* back5, unsigned* quad,
                    const __half2* h, unsigned short* hp, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  __nv_fp8_e4m3 a(x[i]);
  __nv_fp8_e5m2 b(x[i]);
  e4[i] = a.__x;
  e5[i] = b.__x;
  back4[i] = float(a);
  back5[i] = float(b);
  float4 f = make_float4(x[i], -x[i], x[i] * 2, 0.1f);
  __nv_fp8x4_e4m3 q(f);
  quad[i] = q.__x;
  __nv_fp8x2_e5m2 p(h[i]);
  hp[i] = p.__x;
}
}
