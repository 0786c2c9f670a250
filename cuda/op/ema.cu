// Exponential moving average of weights; see src/op/ema.rs.
#include "lib/vector.cuh"

struct EmaParams {
  const void* w;
  float* ema;
  uint64_t n;
  float decay, rest;  // rest = 1 - decay
  uint32_t flags, pad;
};

template <class T>
DEV void ema(const EmaParams& p) {
  constexpr int N = 4;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  const bool aligned = p.flags & FLAG_ALIGNED;
  float e[N], w[N];
  load_vec<float>(p.ema, i, n, aligned, e);
  load_vec<T>(p.w, i, n, aligned, w);
#pragma unroll
  for (int k = 0; k < N; k++) e[k] = p.decay * e[k] + p.rest * w[k];
  store_vec<float>(p.ema, i, n, aligned, e);
}

KERNEL(ema_f32, EmaParams, VEC_THREADS) { ema<float>(p); }
KERNEL(ema_bf16, EmaParams, VEC_THREADS) { ema<bf16>(p); }
