// Activations of the MLP, plain or gated; see src/op/act.rs.
#include "lib/activation.cuh"
#include "lib/vector.cuh"

struct ActParams {
  const void* x;   // [rows, width], gated [rows, 2 width]: gate|up
  const void* dy;  // [rows, width]; backward only
  void* out;       // forward [rows, width], backward the shape of x
  uint32_t rows, width, kind, flags;
};
constexpr uint32_t FLAG_GATED = FLAG_OWN;

template <class T>
DEV void act_forward(const ActParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.rows, p.width);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED, gated = p.flags & FLAG_GATED;
  const size_t from = static_cast<size_t>(at.row) * p.width * (gated ? 2 : 1) + at.column;
  float x[N], up[N], slope;
  load_vec<T>(p.x, from, at.n, aligned, x);
  if (gated) load_vec<T>(p.x, from + p.width, at.n, aligned, up);
#pragma unroll
  for (int k = 0; k < N; k++) {
    value_and_slope(p.kind, x[k], x[k], slope);
    if (gated) x[k] *= up[k];
  }
  store_vec<T>(p.out, static_cast<size_t>(at.row) * p.width + at.column, at.n, aligned, x);
}

template <class T>
DEV void act_backward(const ActParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.rows, p.width);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED, gated = p.flags & FLAG_GATED;
  const size_t from = static_cast<size_t>(at.row) * p.width * (gated ? 2 : 1) + at.column;
  float x[N], dy[N], up[N], dup[N];
  load_vec<T>(p.x, from, at.n, aligned, x);
  load_vec<T>(p.dy, static_cast<size_t>(at.row) * p.width + at.column, at.n, aligned, dy);
  if (gated) load_vec<T>(p.x, from + p.width, at.n, aligned, up);
#pragma unroll
  for (int k = 0; k < N; k++) {
    float value, slope;
    value_and_slope(p.kind, x[k], value, slope);
    dup[k] = dy[k] * value;
    x[k] = (gated ? dy[k] * up[k] : dy[k]) * slope;
  }
  put_vec<T>(p.out, from, at.n, p.flags, x);
  if (gated) put_vec<T>(p.out, from + p.width, at.n, p.flags, dup);
}

KERNEL(act_forward_f32, ActParams, VEC_THREADS) { act_forward<float>(p); }
KERNEL(act_forward_bf16, ActParams, VEC_THREADS) { act_forward<bf16>(p); }
KERNEL(act_backward_f32, ActParams, VEC_THREADS) { act_backward<float>(p); }
KERNEL(act_backward_bf16, ActParams, VEC_THREADS) { act_backward<bf16>(p); }
