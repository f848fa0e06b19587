extern __device__ int elsewhere(int);
extern "C" __global__ void caller(int* out) { out[threadIdx.x] = elsewhere(threadIdx.x); }
