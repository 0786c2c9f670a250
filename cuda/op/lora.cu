// What low-rank adapters need beside matrix products: dropout and a conversion; see src/op/lora.rs.
#include "lib/dropout.cuh"
#include "lib/vector.cuh"

struct LoraDropParams {
  const void* from;
  void* to;
  uint64_t n;
  uint64_t first;  // index of the first element among all of the step
  Dropout dropout;
  uint32_t flags, pad;
};

// to = factor * from where an element is kept, else 0; or added. Before a product the factor 1 / (1 - p) is left to it, so
// that nothing is rounded.
template <class T>
DEV void lora_drop(const LoraDropParams& p) {
  const size_t i = vec_start<4>();
  if (i >= p.n) return;
  const int n = vec_count<4>(p.n - i);
  float v[4];
  const uint32_t keeps = dropout_keeps(p.dropout, p.first + i);
  load_vec<T>(p.from, i, n, p.flags & FLAG_ALIGNED, v);
#pragma unroll
  for (int k = 0; k < 4; k++) v[k] = keeps >> k & 1 ? v[k] * p.dropout.factor : 0.f;
  put_vec<T>(p.to, i, n, p.flags, v);
}

KERNEL(lora_drop_f32, LoraDropParams, 256) { lora_drop<float>(p); }
KERNEL(lora_drop_bf16, LoraDropParams, 256) { lora_drop<bf16>(p); }
