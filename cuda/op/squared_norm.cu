// Kernels of src/op/squared_norm.rs: a block per piece of fixed size, then one block over the
// pieces; in f64.
#include "lib/reduce64.cuh"
#include "lib/vector.cuh"

constexpr int SQUARED_NORM_THREADS = 256;
constexpr uint64_t SQUARED_NORM_PIECE = 1 << 14;

struct SquaredNormParams {
  const void* x;
  double* partial;  // [pieces]
  float* sum;
  uint64_t n;
  uint32_t flags, pad;
};

DEV double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

template <class T>
DEV void sum_piece(const SquaredNormParams& p) {
  SHARED(double, partial, SQUARED_NORM_THREADS / WARP);
  const uint64_t start = blockIdx.x * SQUARED_NORM_PIECE + 4 * threadIdx.x;
  const bool aligned = p.flags & FLAG_ALIGNED;
  double sum = 0.;
#pragma unroll 4
  for (uint64_t k = 0; k < SQUARED_NORM_PIECE; k += 4 * SQUARED_NORM_THREADS) {
    const uint64_t i = start + k;
    float v[4];
    load_vec<T>(p.x, i, i < p.n ? vec_count<4>(p.n - i) : 0, aligned, v);
    sum += (square(v[0]) + square(v[1])) + (square(v[2]) + square(v[3]));
  }
  sum = block_sum_64<SQUARED_NORM_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

KERNEL(squared_norm_pieces_f32, SquaredNormParams, SQUARED_NORM_THREADS) { sum_piece<float>(p); }
KERNEL(squared_norm_pieces_bf16, SquaredNormParams, SQUARED_NORM_THREADS) { sum_piece<bf16>(p); }

KERNEL(squared_norm_total, SquaredNormParams, SQUARED_NORM_THREADS) {
  SHARED(double, partial, SQUARED_NORM_THREADS / WARP);
  uint64_t pieces = (p.n + SQUARED_NORM_PIECE - 1) / SQUARED_NORM_PIECE;
  double sum = 0.;
  for (uint64_t k = threadIdx.x; k < pieces; k += SQUARED_NORM_THREADS) sum += p.partial[k];
  sum = block_sum_64<SQUARED_NORM_THREADS>(sum, partial);
  if (threadIdx.x == 0) p.sum[0] = static_cast<float>(sum);
}
