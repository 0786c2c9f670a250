// Kernels of src/op/sum_sq.rs: a block per piece of fixed size, then one block over the pieces; in f64.
#include "lib/reduce64.cuh"

constexpr int SUM_SQ_THREADS = 256;
constexpr uint64_t SUM_SQ_PIECE = 1 << 14;

struct SumSqParams {
  const float* x;
  double* partial;  // [pieces]
  float* sum;
  uint64_t n;
};

// Four elements from `i` on, 0 past the end.
DEV float4 four(const SumSqParams& p, uint64_t i) {
  const float* x = p.x + i;
  if (i + 4 <= p.n && reinterpret_cast<uintptr_t>(x) % 16 == 0) return *reinterpret_cast<const float4*>(x);
  float4 v = {0.f, 0.f, 0.f, 0.f};
  if (i < p.n) v.x = x[0];
  if (i + 1 < p.n) v.y = x[1];
  if (i + 2 < p.n) v.z = x[2];
  if (i + 3 < p.n) v.w = x[3];
  return v;
}

DEV double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

KERNEL(sum_sq_pieces, SumSqParams, SUM_SQ_THREADS) {
  SHARED(double, partial, SUM_SQ_THREADS / WARP);
  uint64_t start = blockIdx.x * SUM_SQ_PIECE + 4 * threadIdx.x;
  double sum = 0.;
#pragma unroll 4
  for (uint64_t k = 0; k < SUM_SQ_PIECE; k += 4 * SUM_SQ_THREADS) {
    float4 v = four(p, start + k);
    sum += (square(v.x) + square(v.y)) + (square(v.z) + square(v.w));
  }
  sum = block_sum_64<SUM_SQ_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

KERNEL(sum_sq_total, SumSqParams, SUM_SQ_THREADS) {
  SHARED(double, partial, SUM_SQ_THREADS / WARP);
  uint64_t pieces = (p.n + SUM_SQ_PIECE - 1) / SUM_SQ_PIECE;
  double sum = 0.;
  for (uint64_t k = threadIdx.x; k < pieces; k += SUM_SQ_THREADS) sum += p.partial[k];
  sum = block_sum_64<SUM_SQ_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.sum[0] = static_cast<float>(sum);
}
