// What low-rank adapters need beside matrix products: dropout and a conversion; see src/op/lora.rs.
#include "lib/dropout.cuh"
#include "lib/vector.cuh"

struct LoraDropParams {
  const void* from;  // [rows, width]
  void* to;
  uint64_t first;  // number of the first element among all of the step
  Dropout dropout;
  uint32_t rows, width;
  uint32_t stride;  // from a row's first number to the next one's: the columns of the whole input
  uint32_t flags;
};

// to = factor * from where an element is kept, else 0; or added. Before a product the factor 1 / (1
// - p) is left to it, so that nothing is rounded.
template <class T>
DEV void lora_drop(const LoraDropParams& p) {
  const RowVec at = row_vec<4>(p.rows, p.width);
  if (at.n == 0) return;
  const size_t i = static_cast<size_t>(at.row) * p.width + at.column;
  float v[4];
  const uint32_t keeps =
      dropout_keeps(p.dropout, p.first + static_cast<uint64_t>(at.row) * p.stride + at.column);
  load_vec<T>(p.from, i, at.n, p.flags & FLAG_ALIGNED, v);
#pragma unroll
  for (int k = 0; k < 4; k++) v[k] = keeps >> k & 1 ? v[k] * p.dropout.factor : 0.f;
  put_vec<T>(p.to, i, at.n, p.flags, v);
}

KERNEL(lora_drop_f32, LoraDropParams, VEC_THREADS) { lora_drop<float>(p); }
KERNEL(lora_drop_bf16, LoraDropParams, VEC_THREADS) { lora_drop<bf16>(p); }
