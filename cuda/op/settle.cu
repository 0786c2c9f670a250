// The end of a sum over blocks: bias, residual, rounding; see src/op/settle.rs. The order is that
// of a product's epilogue (gemm.cuh).
#include "lib/vector.cuh"

struct SettleParams {
  const void* sum;       // f32 [tokens, width]
  const void* bias;      // [width] or null
  const void* residual;  // [tokens, width] or null
  void* y;               // [tokens, width]
  uint32_t tokens, width, flags, pad;
};

template <class T>
DEV void settle(const SettleParams& p) {
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

KERNEL(settle_f32, SettleParams, VEC_THREADS) { settle<float>(p); }
KERNEL(settle_bf16, SettleParams, VEC_THREADS) { settle<bf16>(p); }

struct SettleWidenParams {
  const bf16* from;
  float* to;
  uint64_t n;
  uint32_t flags, pad;
};

// The gradient of the sum.
KERNEL(settle_widen, SettleWidenParams, VEC_THREADS) {
  constexpr int N = VEC<bf16>;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  float v[N];
  load_vec<bf16>(p.from, i, n, p.flags & FLAG_ALIGNED, v);
  put_vec<float>(p.to, i, n, p.flags, v);
}
