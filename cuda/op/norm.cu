// LayerNorm and RMSNorm: statistics in f32 in two passes; a row is reduced by one warp (narrow
// rows) or one block (wide ones), always in the same order.
#include "lib/reduce.cuh"
#include "lib/types.cuh"

struct NormParams {
  const void* x;
  const void* gamma;
  const void* beta;  // or null
  const void* dy;    // backward
  void* out;         // y, or dx
  float* stats;      // [rows, 2]: mean, 1 / std
  uint32_t rows, hidden;
  float eps;
  uint32_t flags;
};
constexpr uint32_t MEAN = 1;         // LayerNorm
constexpr uint32_t UNIT_OFFSET = 2;  // gamma is 1 + the weight
constexpr uint32_t ADD = 4;          // add to dx
// Threads of a block: with a warp for each row, or a column for each thread; with one wide row.
constexpr int NORM_THREADS = 128;
constexpr int NORM_WIDE_THREADS = 256;

// The sum over the threads of a row: a warp, or the whole block.
template <int PER_ROW>
DEV float row_sum(float v, float* partial) {
  return PER_ROW == WARP ? warp_sum(v) : block_sum<PER_ROW>(v, partial);
}

template <class T>
DEV float weight(const NormParams& p, uint32_t i) {
  const float w = load<T>(p.gamma, i);
  return p.flags & UNIT_OFFSET ? 1.f + w : w;
}

template <class T, int PER_ROW, int THREADS>
DEV void norm_forward(const NormParams& p) {
  SHARED(float, partial, THREADS / WARP);
  const uint32_t row = blockIdx.x * (THREADS / PER_ROW) + threadIdx.x / PER_ROW,
                 first = threadIdx.x % PER_ROW;
  // Whole warps leave, or nobody: a block of one row is never spare.
  if (row >= p.rows) return;
  const T* x = static_cast<const T*>(p.x) + static_cast<size_t>(row) * p.hidden;
  T* y = static_cast<T*>(p.out) + static_cast<size_t>(row) * p.hidden;
  const float width = static_cast<float>(p.hidden);
  float mean = 0.f;
  if (p.flags & MEAN) {
    float sum = 0.f;
    for (uint32_t i = first; i < p.hidden; i += PER_ROW) sum += to_f32(x[i]);
    mean = row_sum<PER_ROW>(sum, partial) / width;
  }
  float squares = 0.f;
  for (uint32_t i = first; i < p.hidden; i += PER_ROW) {
    const float d = to_f32(x[i]) - mean;
    squares = fmaf(d, d, squares);
  }
  const float rstd = 1.f / sqrtf(row_sum<PER_ROW>(squares, partial) / width + p.eps);
  for (uint32_t i = first; i < p.hidden; i += PER_ROW) {
    const float n = (to_f32(x[i]) - mean) * rstd * weight<T>(p, i);
    y[i] = from_f32<T>(p.beta ? n + load<T>(p.beta, i) : n);
  }
  if (first == 0) {
    p.stats[2 * row] = mean;
    p.stats[2 * row + 1] = rstd;
  }
}

// With n = (x - mean) rstd and g = dy gamma: dx = rstd (g - n mean(g n) [- mean(g)]).
template <class T, int PER_ROW, int THREADS>
DEV void norm_backward(const NormParams& p) {
  SHARED(float, partial, THREADS / WARP);
  const uint32_t row = blockIdx.x * (THREADS / PER_ROW) + threadIdx.x / PER_ROW,
                 first = threadIdx.x % PER_ROW;
  if (row >= p.rows) return;
  const size_t at = static_cast<size_t>(row) * p.hidden;
  const T* x = static_cast<const T*>(p.x) + at;
  const T* dy = static_cast<const T*>(p.dy) + at;
  const float mean = p.stats[2 * row], rstd = p.stats[2 * row + 1],
              width = static_cast<float>(p.hidden);
  float sum_g = 0.f, sum_gn = 0.f;
  for (uint32_t i = first; i < p.hidden; i += PER_ROW) {
    const float g = to_f32(dy[i]) * weight<T>(p, i);
    sum_g += g;
    sum_gn = fmaf(g, (to_f32(x[i]) - mean) * rstd, sum_gn);
  }
  const float mean_gn = row_sum<PER_ROW>(sum_gn, partial) / width;
  const float mean_g = p.flags & MEAN ? row_sum<PER_ROW>(sum_g, partial) / width : 0.f;
  for (uint32_t i = first; i < p.hidden; i += PER_ROW) {
    const float g = to_f32(dy[i]) * weight<T>(p, i), n = (to_f32(x[i]) - mean) * rstd;
    store<T>(p.out, at + i, rstd * (g - mean_g - n * mean_gn), (p.flags & ADD) != 0);
  }
}

#define NORM(pass, T, dtype)                                                                   \
  KERNEL(norm_##pass##_##dtype, NormParams, NORM_THREADS) {                                   \
    norm_##pass<T, WARP, NORM_THREADS>(p);                                                     \
  }                                                                                            \
  KERNEL(norm_##pass##_wide_##dtype, NormParams, NORM_WIDE_THREADS) {                         \
    norm_##pass<T, NORM_WIDE_THREADS, NORM_WIDE_THREADS>(p);                                   \
  }
NORM(forward, float, f32)
NORM(forward, bf16, bf16)
NORM(backward, float, f32)
NORM(backward, bf16, bf16)

struct NormWeightParams {
  const void* x;
  const void* dy;
  const float* stats;
  float* dgamma;  // [pieces, hidden]
  float* dbeta;   // likewise, or null
  uint32_t rows, hidden, rows_per_block, zero;
};

// Block (x, y) sums dy n and dy over its piece of the rows, a column a thread; column_sums adds the
// pieces.
template <class T>
DEV void norm_weights(const NormWeightParams& p) {
  const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= p.hidden) return;
  const uint32_t first = blockIdx.y * p.rows_per_block, end = min(p.rows, first + p.rows_per_block);
  float gamma = 0.f, beta = 0.f;
  for (uint32_t row = first; row < end; row++) {
    const size_t at = static_cast<size_t>(row) * p.hidden + column;
    const float dy = load<T>(p.dy, at),
                n = (load<T>(p.x, at) - p.stats[2 * row]) * p.stats[2 * row + 1];
    gamma = fmaf(dy, n, gamma);
    beta += dy;
  }
  const size_t to = static_cast<size_t>(blockIdx.y) * p.hidden + column;
  p.dgamma[to] = gamma;
  if (p.dbeta) p.dbeta[to] = beta;
}

KERNEL(norm_weights_f32, NormWeightParams, NORM_THREADS) { norm_weights<float>(p); }
KERNEL(norm_weights_bf16, NormWeightParams, NORM_THREADS) { norm_weights<bf16>(p); }
