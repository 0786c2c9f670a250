// Activations of the MLP, plain or gated; see src/op/act.rs.
#include "lib/vector.cuh"

struct ActParams {
  const void* x;   // [rows, width], gated [rows, 2 width]: gate|up
  const void* dy;  // [rows, width]; backward only
  void* out;       // forward [rows, width], backward the shape of x
  uint32_t rows, width, kind, flags;
};
constexpr uint32_t FLAG_GATED = FLAG_OWN;

enum Kind : uint32_t { RELU, GELU_TANH, GELU_ERF, SILU };

// act(x) and its derivative.
DEV void value_and_slope(uint32_t kind, float x, float& value, float& slope) {
  if (kind == RELU) {
    // In this order a NaN passes.
    value = 0.f > x ? 0.f : x;
    slope = 0.f < x ? 1.f : 0.f;
  } else if (kind == GELU_TANH) {
    // u = c (x + 0.044715 x^3) with c = sqrt(2 / pi).
    const float c = 0.7978846f, xx = x * x;
    const float t = tanhf(c * fmaf(0.044715f * xx, x, x));
    const float cdf = fmaf(0.5f, t, 0.5f);
    value = x * cdf;
    slope = fmaf(x, 0.5f * ((1.f - t * t) * (c * fmaf(3.f * 0.044715f, xx, 1.f))), cdf);
  } else if (kind == GELU_ERF) {
    const float z = x * 0.70710678f;
    const float cdf = fmaf(0.5f, erff(z), 0.5f);
    // The normal density: exp(-x^2 / 2) / sqrt(2 pi).
    value = x * cdf;
    slope = fmaf(x, expf(-z * z) * 0.3989423f, cdf);
  } else {
    const float p = 1.f / (1.f + expf(-x));
    value = x * p;
    slope = p * fmaf(x, 1.f - p, 1.f);
  }
}

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

KERNEL(act_forward_f32, ActParams, 256) { act_forward<float>(p); }
KERNEL(act_forward_bf16, ActParams, 256) { act_forward<bf16>(p); }
KERNEL(act_backward_f32, ActParams, 256) { act_backward<float>(p); }
KERNEL(act_backward_bf16, ActParams, 256) { act_backward<bf16>(p); }
