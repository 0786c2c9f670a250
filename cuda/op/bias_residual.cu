// The end of a sum over blocks: bias, residual, rounding; see src/op/bias_residual.rs. The order is
// that of a product's epilogue (gemm.cuh).
#include "lib/vector.cuh"

struct BiasResidualParams {
  const void* sum;       // f32 [tokens, width]
  const void* bias;      // [width] or null
  const void* residual;  // [tokens, width] or null
  void* y;               // [tokens, width]
  uint32_t tokens, width, flags, pad;
};

template <class T>
DEV void bias_residual(const BiasResidualParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.tokens, p.width);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED;
  const size_t i = static_cast<size_t>(at.row) * p.width + at.column;
  float v[N], more[N];
  load_vec<float>(p.sum, i, at.n, aligned, v);
  if (p.bias) {
    load_vec<T>(p.bias, at.column, at.n, aligned, more);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] += more[k];
  }
  if (p.residual) {
    load_vec<T>(p.residual, i, at.n, aligned, more);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] += more[k];
  }
  store_vec<T>(p.y, i, at.n, aligned, v);
}

KERNEL(bias_residual_f32, BiasResidualParams, VEC_THREADS) { bias_residual<float>(p); }
KERNEL(bias_residual_bf16, BiasResidualParams, VEC_THREADS) { bias_residual<bf16>(p); }

struct BiasResidualWidenParams {
  const bf16* from;
  float* to;
  uint64_t n;
  uint32_t flags, pad;
};

// The gradient of the sum.
KERNEL(bias_residual_widen, BiasResidualWidenParams, VEC_THREADS) {
  constexpr int N = VEC<bf16>;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  float v[N];
  load_vec<bf16>(p.from, i, n, p.flags & FLAG_ALIGNED, v);
  put_vec<float>(p.to, i, n, p.flags, v);
}
