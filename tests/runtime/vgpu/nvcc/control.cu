#include <cassert>
#include <cstdio>
extern "C" {
__global__ void loops(const int* x, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = x[i], acc = 0;
  for (int a = 0; a < 50; a++) {
    if (v % 7 == 3) {
      v++;
      continue;
    }
    for (int b = v & 7;; b--) {
      if (b < 0) break;
      acc += b * a;
      if (acc > 5000) goto done;
      if ((acc ^ b) & 1) continue;
      acc += 3;
    }
    v = v * 5 + 1 & 1023;
    if (v == 17) break;
  }
  do {
    acc -= v & 3;
    v >>= 1;
  } while (v > 1);
done:
  out[i] = acc;
}
__global__ void table(const int* op, const int* x, int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = x[i];
  switch (op[i]) {
    case 0:
      v = v * 3 + 1;
      break;
    case 1:
      v = v ^ 0x5a5a;
      break;
    case 2:
      v = __popc(v);
      break;
    case 3:
      v = v / 7;
    case 4:
      v = v - 11;
      break;
    case 5:
      v = v << (v & 7);
      break;
    case 6:
      v = ~v;
      break;
    case 7:
      for (int k = 0; k < 5; k++) v = v * v + k;
      break;
    case 9:
      out[i] = -1;
      return;
    default:
      v = 0;
  }
  out[i] = v;
}
__device__ __noinline__ int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
__device__ __noinline__ int ack(int m, int n) {
  return m == 0 ? n + 1 : n == 0 ? ack(m - 1, 1) : ack(m - 1, ack(m, n - 1));
}
__global__ void recursion(int* out, int n) {
  int i = threadIdx.x;
  if (i < n) out[i] = fib(i % 11) * 1000 + ack(i % 3, i % 4);
}
// quicksort with its own small arrays on the stack of each call
__device__ __noinline__ void sort(int* a, int n) {
  if (n < 2) return;
  int left[12], right[12], l = 0, r = 0, p = a[0];
  for (int i = 1; i < n; i++) {
    if (a[i] < p) left[l++] = a[i];
    else right[r++] = a[i];
  }
  sort(left, l);
  sort(right, r);
  for (int i = 0; i < l; i++) a[i] = left[i];
  a[l] = p;
  for (int i = 0; i < r; i++) a[l + 1 + i] = right[i];
}
__global__ void quicksort(int* x, int n) {
  int t = threadIdx.x, v[12];
  for (int i = 0; i < n; i++) v[i] = x[t * n + i];
  sort(v, n);
  for (int i = 0; i < n; i++) x[t * n + i] = v[i];
}
__device__ __noinline__ bool odd(int n);
__device__ __noinline__ bool even(int n) { return n == 0 ? true : odd(n - 1); }
__device__ __noinline__ bool odd(int n) { return n == 0 ? false : even(n - 1); }
__global__ void mutual(int* out) { out[threadIdx.x] = even(threadIdx.x) ? 1 : 2; }
typedef float (*op_t)(float, float);
__device__ __noinline__ float add_(float a, float b) { return a + b; }
__device__ __noinline__ float mul_(float a, float b) { return a * b; }
__device__ __noinline__ float sub_(float a, float b) { return a - b; }
__device__ op_t ops[3] = {add_, mul_, sub_};
__global__ void pointers(const float* x, const float* y, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = ops[i % 3](x[i], y[i]);
}
__global__ void chosen(const float* x, float* out, int which) {
  op_t f = which ? add_ : mul_;
  out[threadIdx.x] = f(x[threadIdx.x], 2.f);
}
struct Big {
  float v[5];
  int n;
  double d;
};
__device__ __noinline__ Big twist(Big b, int k) {
  for (int i = 0; i < 5; i++) b.v[i] = b.v[(i + k) % 5] * 2;
  b.n += k;
  b.d = b.n * 0.5;
  return b;
}
__global__ void byvalue(Big in, double* out) {
  Big b = in;
  b.n += threadIdx.x;
  b = twist(b, threadIdx.x % 5);
  b = twist(b, 2);
  double s = b.d + b.n;
  for (int i = 0; i < 5; i++) s += b.v[i] * (i + 1);
  out[threadIdx.x] = s;
}
__global__ void speaking(int* out, int n) {
  int i = threadIdx.x;
  if (i == 3) printf("thread %d of %d %f %s\n", i, n, 1.5, "text");
  assert(n > 0);
  out[i] = i;
}
__global__ void trapping(int* out) {
  if (threadIdx.x == 7) __trap();
  out[threadIdx.x] = 1;
}
__global__ void early(int* out, int n) {
  __shared__ int s[64];
  int t = threadIdx.x;
  if (t >= n) return;
  s[t] = t;
  __syncwarp();
  if (t % 32 < 16) {
    out[t] = s[t ^ 1];
    return;
  }
  out[t] = -s[t];
}
}
struct Shape {
  __device__ virtual float area() const = 0;
  __device__ virtual ~Shape() {}
};
struct Square : Shape {
  float a;
  __device__ Square(float a) : a(a) {}
  __device__ float area() const override { return a * a; }
};
struct Circle : Shape {
  float r;
  __device__ Circle(float r) : r(r) {}
  __device__ float area() const override { return 3.f * r * r; }
};
struct Ring : Circle {
  float q;
  __device__ Ring(float r, float q) : Circle(r), q(q) {}
  __device__ float area() const override { return Circle::area() - 3.f * q * q; }
};
__device__ __noinline__ float total(const Shape* s) { return s->area(); }
extern "C" __global__ void virtuals(float* out, const float* x, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  Square s(x[i]);
  Circle c(x[i]);
  Ring r(x[i], 0.5f);
  const Shape* p = i % 3 == 0 ? (const Shape*)&s : i % 3 == 1 ? (const Shape*)&c : (const Shape*)&r;
  out[i] = total(p);
}
template <int N>
__device__ int unrolled(const int* x) {
  return x[N] + unrolled<N - 1>(x);
}
template <>
__device__ int unrolled<0>(const int* x) {
  return x[0];
}
extern "C" __global__ void templates(const int* x, int* out) { out[threadIdx.x] = unrolled<9>(x + threadIdx.x); }
extern "C" __global__ void lambdas(const float* x, float* out, int n) {
  auto f = [=](float v) {
    float s = 0;
    for (int k = 0; k < n; k++) s = s * v + x[k];
    return s;
  };
  out[threadIdx.x] = f(0.1f * threadIdx.x) - f(0.5f);
}
__device__ __noinline__ int forever(int n, int* p) { return n < -1 ? n : forever(n + 1, p) + p[n & 7]; }
extern "C" __global__ void endless(int* out) { out[threadIdx.x] = forever(threadIdx.x, out); }
