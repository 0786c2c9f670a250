// f32 rounded into bf16, or added to it; see src/op/cast_accumulate.rs. Adapters round their u by
// it too.
#include "lib/vector.cuh"

struct CastAccumulateParams {
  const float* x;
  bf16* y;
  uint64_t n;
  uint32_t flags, pad;
};

KERNEL(cast_accumulate, CastAccumulateParams, VEC_THREADS) {
  constexpr int N = VEC<bf16>;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  float v[N];
  load_vec<float>(p.x, i, n, p.flags & FLAG_ALIGNED, v);
  put_vec<bf16>(p.y, i, n, p.flags, v);
}
