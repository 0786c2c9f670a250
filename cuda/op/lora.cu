// What low-rank adapters need beside matrix products: dropout and a conversion; see src/op/lora.rs.
#include "lib/dropout.cuh"
#include "lib/vector.cuh"

struct LoraDropParams {
  const void* from;
  void* to;
  uint64_t n;
  uint64_t first;  // index of the first element in the whole tensor, a multiple of 4
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
  bool keeps[4];
  float v[4];
  dropout_keeps(p.dropout, (p.first + i) / 4, keeps);
  load_vec<T>(p.from, i, n, p.flags & FLAG_ALIGNED, v);
#pragma unroll
  for (int k = 0; k < 4; k++) v[k] = keeps[k] ? v[k] * p.dropout.factor : 0.f;
  put_vec<T>(p.to, i, n, p.flags, v);
}

KERNEL(lora_drop_f32, LoraDropParams, 256) { lora_drop<float>(p); }
KERNEL(lora_drop_bf16, LoraDropParams, 256) { lora_drop<bf16>(p); }
