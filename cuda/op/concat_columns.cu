// Column blocks side by side; see src/op/concat_columns.rs.
#include "lib/vector.cuh"

struct ConcatColumnsParams {
  const float* x;  // [blocks, rows, each]
  float* y;        // [rows, width]
  uint32_t rows, width, each, flags;
};

KERNEL(concat_columns, ConcatColumnsParams, VEC_THREADS) {
  constexpr int N = VEC<float>;
  const RowVec at = row_vec<N>(p.rows, p.width);
  if (at.n == 0) return;
  const auto from = [&](uint32_t column) {
    return (static_cast<size_t>(column / p.each) * p.rows + at.row) * p.each + column % p.each;
  };
  const size_t to = static_cast<size_t>(at.row) * p.width + at.column;
  float v[N];
  // Where vectors are aligned none lies in two blocks.
  if (p.flags & FLAG_ALIGNED) {
    load_vec<float>(p.x, from(at.column), at.n, true, v);
    store_vec<float>(p.y, to, at.n, true, v);
    return;
  }
  for (int k = 0; k < at.n; k++) p.y[to + k] = p.x[from(at.column + k)];
}
