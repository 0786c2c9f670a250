// Matrix products of the linear layer and of all that multiply (gemm.cuh), and column sums for
// gradients of biases.
#include "tile/gemm.cuh"

// Tiles: rows, columns, K, rows and columns of a warp, stages. For many rows; for some; for a few,
// where the weights are read once and many bytes must be under way. src/op/cuda/gemm.rs gets the
// same numbers from here.
#define LARGE 128, 128, 32, 64, 32, 4
#define MEDIUM 64, 64, 32, 32, 32, 4
#define SKINNY 16, 32, 128, 16, 16, 4

#define GEMM(layout, name, tile, ...)                                                             \
  KERNEL(gemm_##name##_bf16, GemmParams, (GemmTile<Layout::layout, tile>::THREADS)) {             \
    gemm_mma<Layout::layout, tile, bf16, __VA_ARGS__>(p);                                         \
  }                                                                                               \
  KERNEL(gemm_##name##_f32, GemmParams, (GemmTile<Layout::layout, tile>::THREADS)) {              \
    gemm_mma<Layout::layout, tile, float, __VA_ARGS__>(p);                                        \
  }
#define GEMMS(layout, name)                       \
  GEMM(layout, name##_large, LARGE, true)         \
  GEMM(layout, name##_medium, MEDIUM, true)       \
  GEMM(layout, name##_skinny, SKINNY, true)       \
  GEMM(layout, name##_unaligned, MEDIUM, false)

GEMMS(Nt, nt)
GEMMS(Nn, nn)
GEMMS(Tn, tn)

#define FMA(layout, name, types, ...) \
  KERNEL(gemm_fma_##name##_##types, GemmParams, FMA_THREADS) { \
    gemm_fma<Layout::layout, __VA_ARGS__>(p);                  \
  }
// Dtypes of a, b, c; both operands in bf16 take tensor cores.
#define FMAS(layout, name)                             \
  FMA(layout, name, f32_f32_f32, float, float, float)  \
  FMA(layout, name, f32_f32_bf16, float, float, bf16)  \
  FMA(layout, name, f32_bf16_f32, float, bf16, float)  \
  FMA(layout, name, f32_bf16_bf16, float, bf16, bf16)  \
  FMA(layout, name, bf16_f32_f32, bf16, float, float)  \
  FMA(layout, name, bf16_f32_bf16, bf16, float, bf16)

FMAS(Nt, nt)
FMAS(Nn, nn)
FMAS(Tn, tn)

// With an activation, for passes that keep nothing for backward.
#define GEMM_ACT(name, tile, aligned)                                                         \
  KERNEL(gemm_nt_##name##_act_bf16, GemmParams, (GemmTile<Layout::Nt, tile>::THREADS)) {      \
    gemm_mma<Layout::Nt, tile, bf16, aligned, true>(p);                                       \
  }

GEMM_ACT(large, LARGE, true)
GEMM_ACT(medium, MEDIUM, true)
GEMM_ACT(skinny, SKINNY, true)
GEMM_ACT(unaligned, MEDIUM, false)
KERNEL(gemm_fma_nt_act_f32_f32_f32, GemmParams, FMA_THREADS) {
  gemm_fma<Layout::Nt, float, float, float, true>(p);
}

// Threads of a block, each with a column.
constexpr int SUM_THREADS = 128;

struct SumParams {
  const void* x;
  float* out;
  uint32_t rows, columns, ld, rows_per_block, add, zero;
};

// Block (x, y) sums rows_per_block rows from y * rows_per_block on, a column a thread, into row y
// of out.
template <class T>
DEV void column_sums(const SumParams& p) {
  const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= p.columns) return;
  const uint32_t first = blockIdx.y * p.rows_per_block, end = min(p.rows, first + p.rows_per_block);
  float sum = 0.f;
  for (uint32_t row = first; row < end; row++)
    sum += load<T>(p.x, static_cast<size_t>(row) * p.ld + column);
  store<float>(p.out, static_cast<size_t>(blockIdx.y) * p.columns + column, sum, p.add != 0);
}

KERNEL(column_sums_f32, SumParams, SUM_THREADS) { column_sums<float>(p); }
KERNEL(column_sums_bf16, SumParams, SUM_THREADS) { column_sums<bf16>(p); }
