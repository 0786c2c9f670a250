// Token embedding with optional learned positions; see src/op/embed.rs. The gradient is scatter.cu.
#include "lib/fault.cuh"
#include "lib/vector.cuh"

struct EmbedParams {
  const int32_t* ids;
  const int32_t* at;
  const void* tok;  // [vocab, hidden]
  const void* pos;  // [positions, hidden] or null
  void* x;          // [tokens, hidden]
  uint32_t* fault;
  uint32_t tokens, hidden, vocab, positions, id_offset, position_offset;
  float scale;
  uint32_t flags;
};

template <class T>
DEV void embed(const EmbedParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.tokens, p.hidden);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED;
  const int32_t id = p.ids[at.row], position = p.pos ? p.at[at.row] : 0;
  const uint32_t tok = static_cast<uint32_t>(id) + p.id_offset, pos = static_cast<uint32_t>(position) + p.position_offset;
  const bool id_fits = id >= 0 && tok < p.vocab, position_fits = !p.pos || (position >= 0 && pos < p.positions);
  float v[N], add[N];
  if (id_fits && position_fits) {
    load_vec<T>(p.tok, static_cast<size_t>(tok) * p.hidden + at.column, at.n, aligned, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] *= p.scale;
    if (p.pos) {
      load_vec<T>(p.pos, static_cast<size_t>(pos) * p.hidden + at.column, at.n, aligned, add);
#pragma unroll
      for (int k = 0; k < N; k++) v[k] += add[k];
    }
  } else {
    report_fault(p.fault, id_fits ? FAULT_ROW : FAULT_TOKEN);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = NAN;
  }
  store_vec<T>(p.x, static_cast<size_t>(at.row) * p.hidden + at.column, at.n, aligned, v);
}

KERNEL(embed_f32, EmbedParams, 256) { embed<float>(p); }
KERNEL(embed_bf16, EmbedParams, 256) { embed<bf16>(p); }
