// Kernels of src/op/sum_sq.rs: a block per piece of fixed size, then one block over the pieces; in
// f64.
#include "lib/reduce64.cuh"
#include "lib/vector.cuh"

constexpr int SUM_SQ_THREADS = 256;
constexpr uint64_t SUM_SQ_PIECE = 1 << 14;

struct SumSqParams {
  const void* x;
  double* partial;  // [pieces]
  float* sum;
  uint64_t n;
  uint32_t flags, pad;
};

DEV double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

template <class T>
DEV void sum_piece(const SumSqParams& p) {
  SHARED(double, partial, SUM_SQ_THREADS / WARP);
  const uint64_t start = blockIdx.x * SUM_SQ_PIECE + 4 * threadIdx.x;
  const bool aligned = p.flags & FLAG_ALIGNED;
  double sum = 0.;
#pragma unroll 4
  for (uint64_t k = 0; k < SUM_SQ_PIECE; k += 4 * SUM_SQ_THREADS) {
    const uint64_t i = start + k;
    float v[4];
    load_vec<T>(p.x, i, i < p.n ? vec_count<4>(p.n - i) : 0, aligned, v);
    sum += (square(v[0]) + square(v[1])) + (square(v[2]) + square(v[3]));
  }
  sum = block_sum_64<SUM_SQ_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

KERNEL(sum_sq_pieces_f32, SumSqParams, SUM_SQ_THREADS) { sum_piece<float>(p); }
KERNEL(sum_sq_pieces_bf16, SumSqParams, SUM_SQ_THREADS) { sum_piece<bf16>(p); }

KERNEL(sum_sq_total, SumSqParams, SUM_SQ_THREADS) {
  SHARED(double, partial, SUM_SQ_THREADS / WARP);
  uint64_t pieces = (p.n + SUM_SQ_PIECE - 1) / SUM_SQ_PIECE;
  double sum = 0.;
  for (uint64_t k = threadIdx.x; k < pieces; k += SUM_SQ_THREADS) sum += p.partial[k];
  sum = block_sum_64<SUM_SQ_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.sum[0] = static_cast<float>(sum);
}
