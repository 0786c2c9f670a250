// Token embedding with optional learned positions; see src/op/embed.rs. The gradient is scatter.cu.
#include "lib/fault.cuh"
#include "lib/vector.cuh"

struct EmbedParams {
  const int32_t* ids;
  const int32_t* at;
  const void* tok;  // [vocab, hidden]
  const void* pos;  // [positions, hidden] or null
  void* x;          // [tokens, hidden]; f32 in parts
  uint32_t* fault;
  uint32_t tokens, hidden, vocab, positions, id_offset, position_offset;
  uint32_t first_id, first_position;  // rows of the whole tables that these begin with, else 0
  float scale;
  uint32_t flags;
};

// TX is the dtype of x. A PART is what one rank's rows add to x; for a row that it has not that is
// -0, which changes no bit of a sum.
template <class T, class TX, bool PART>
DEV void embed(const EmbedParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.tokens, p.hidden);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED;
  const int32_t id = p.ids[at.row], position = p.pos ? p.at[at.row] : 0;
  // Rows before the first wrap around, beyond every table.
  const uint32_t tok = static_cast<uint32_t>(id) + p.id_offset - p.first_id;
  const uint32_t pos = static_cast<uint32_t>(position) + p.position_offset - p.first_position;
  const bool id_fits = id >= 0 && tok < p.vocab, position_fits = position >= 0 && pos < p.positions;
  float v[N], add[N];
  if (PART || (id_fits && (position_fits || !p.pos))) {
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = -0.f;
    if (id_fits) {
      load_vec<T>(p.tok, static_cast<size_t>(tok) * p.hidden + at.column, at.n, aligned, v);
#pragma unroll
      for (int k = 0; k < N; k++) v[k] *= p.scale;
    }
    if (p.pos && position_fits) {
      load_vec<T>(p.pos, static_cast<size_t>(pos) * p.hidden + at.column, at.n, aligned, add);
#pragma unroll
      for (int k = 0; k < N; k++) v[k] += add[k];
    }
  } else {
    report_fault(p.fault, id_fits ? FAULT_ROW : FAULT_TOKEN);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = NAN;
  }
  store_vec<TX>(p.x, static_cast<size_t>(at.row) * p.hidden + at.column, at.n, aligned, v);
}

KERNEL(embed_f32, EmbedParams, VEC_THREADS) { embed<float, float, false>(p); }
KERNEL(embed_bf16, EmbedParams, VEC_THREADS) { embed<bf16, bf16, false>(p); }
KERNEL(embed_part_f32, EmbedParams, VEC_THREADS) { embed<float, float, true>(p); }
KERNEL(embed_part_bf16, EmbedParams, VEC_THREADS) { embed<bf16, float, true>(p); }
