// RMSNorm of each query and key head; see src/op/qk_norm.rs.
#include "lib/reduce.cuh"
#include "lib/vector.cuh"

// Threads of a block, which has a head for each warp.
constexpr int QK_NORM_THREADS = 128;

struct QkNormParams {
  const void* x;         // [tokens, (heads + 2 kv_heads) head_dim]
  const void* q_weight;  // [head_dim]
  const void* k_weight;
  const void* dy;  // backward only
  float* rstd;     // [tokens, heads + kv_heads]
  void* out;       // y, or dx
  uint32_t tokens, heads, kv_heads, head_dim;
  float eps;
  uint32_t flags;
};

// The head of this warp: a row of head_dim elements, its token and its number in it.
struct HeadRow {
  size_t start;
  uint32_t token, head;
};
DEV bool head_row(const QkNormParams& p, HeadRow& at) {
  const uint32_t row = blockIdx.x * (blockDim.x / WARP) + warp_id(),
                 heads = p.heads + 2 * p.kv_heads;
  at = {static_cast<size_t>(row) * p.head_dim, row / heads, row % heads};
  return at.token < p.tokens;
}

template <class T>
DEV void qk_norm_forward(const QkNormParams& p) {
  constexpr int N = 4;
  HeadRow at;
  if (!head_row(p, at)) return;
  const bool aligned = p.flags & FLAG_ALIGNED, copied = at.head >= p.heads + p.kv_heads;
  const void* weight = at.head < p.heads ? p.q_weight : p.k_weight;
  float x[N], w[N], rstd = 1.f;
  if (!copied) {
    float sum = 0.f;
    for (uint32_t c = lane_id() * N; c < p.head_dim; c += WARP * N) {
      load_vec<T>(p.x, at.start + c, vec_count<N>(p.head_dim - c), aligned, x);
#pragma unroll
      for (int k = 0; k < N; k++) sum += x[k] * x[k];
    }
    rstd = 1.f / sqrtf(warp_sum(sum) / static_cast<float>(p.head_dim) + p.eps);
    if (lane_id() == 0)
      p.rstd[static_cast<size_t>(at.token) * (p.heads + p.kv_heads) + at.head] = rstd;
  }
  for (uint32_t c = lane_id() * N; c < p.head_dim; c += WARP * N) {
    const int n = vec_count<N>(p.head_dim - c);
    load_vec<T>(p.x, at.start + c, n, aligned, x);
    if (!copied) {
      load_vec<T>(weight, c, n, aligned, w);
#pragma unroll
      for (int k = 0; k < N; k++) x[k] = x[k] * rstd * w[k];
    }
    store_vec<T>(p.out, at.start + c, n, aligned, x);
  }
}

// With n = x rstd and g = dy weight: dx = rstd (g - n mean(g n)).
template <class T>
DEV void qk_norm_backward(const QkNormParams& p) {
  constexpr int N = 4;
  HeadRow at;
  if (!head_row(p, at)) return;
  const bool aligned = p.flags & FLAG_ALIGNED, copied = at.head >= p.heads + p.kv_heads;
  const void* weight = at.head < p.heads ? p.q_weight : p.k_weight;
  float x[N], g[N], w[N], rstd = 1.f, mean = 0.f;
  if (!copied) {
    rstd = p.rstd[static_cast<size_t>(at.token) * (p.heads + p.kv_heads) + at.head];
    for (uint32_t c = lane_id() * N; c < p.head_dim; c += WARP * N) {
      const int n = vec_count<N>(p.head_dim - c);
      load_vec<T>(p.x, at.start + c, n, aligned, x);
      load_vec<T>(p.dy, at.start + c, n, aligned, g);
      load_vec<T>(weight, c, n, aligned, w);
#pragma unroll
      for (int k = 0; k < N; k++) mean += g[k] * w[k] * x[k] * rstd;
    }
    mean = warp_sum(mean) / static_cast<float>(p.head_dim);
  }
  for (uint32_t c = lane_id() * N; c < p.head_dim; c += WARP * N) {
    const int n = vec_count<N>(p.head_dim - c);
    load_vec<T>(p.dy, at.start + c, n, aligned, g);
    if (!copied) {
      load_vec<T>(p.x, at.start + c, n, aligned, x);
      load_vec<T>(weight, c, n, aligned, w);
#pragma unroll
      for (int k = 0; k < N; k++) g[k] = rstd * (g[k] * w[k] - x[k] * rstd * mean);
    }
    put_vec<T>(p.out, at.start + c, n, p.flags, g);
  }
}

KERNEL(qk_norm_forward_f32, QkNormParams, QK_NORM_THREADS) { qk_norm_forward<float>(p); }
KERNEL(qk_norm_forward_bf16, QkNormParams, QK_NORM_THREADS) { qk_norm_forward<bf16>(p); }
KERNEL(qk_norm_backward_f32, QkNormParams, QK_NORM_THREADS) { qk_norm_backward<float>(p); }
KERNEL(qk_norm_backward_bf16, QkNormParams, QK_NORM_THREADS) { qk_norm_backward<bf16>(p); }

// Tokens whose share of a weight's gradient one block adds up.
constexpr uint32_t QK_NORM_CHUNK = 32;
constexpr int QK_NORM_WEIGHT_THREADS = 256;

struct QkNormWeightParams {
  const void* x;
  const void* dy;
  const float* rstd;
  float* partial;  // [chunks, head_dim]
  uint32_t tokens, heads, kv_heads, head_dim;
  uint32_t first_head, head_count;  // the heads that share the weight
};

// The sums of dy x rstd over the tokens of chunk blockIdx.x, for 32 dimensions: one a lane, tokens
// dealt out to warps.
template <class T>
DEV void qk_norm_weight(const QkNormWeightParams& p) {
  constexpr uint32_t WARPS = QK_NORM_WEIGHT_THREADS / WARP;
  SHARED(float, sums, WARPS * WARP);
  const uint32_t column = blockIdx.y * WARP + lane_id(), all = p.heads + 2 * p.kv_heads,
                 normed = p.heads + p.kv_heads;
  const uint32_t start = blockIdx.x * QK_NORM_CHUNK, end = min(start + QK_NORM_CHUNK, p.tokens);
  float sum = 0.f;
  if (column < p.head_dim) {
    for (uint32_t t = start + warp_id(); t < end; t += WARPS) {
      const float* rstd = p.rstd + static_cast<size_t>(t) * normed + p.first_head;
      size_t i = (static_cast<size_t>(t) * all + p.first_head) * p.head_dim + column;
#pragma unroll 4
      for (uint32_t h = 0; h < p.head_count; h++, i += p.head_dim)
        sum += load<T>(p.dy, i) * (load<T>(p.x, i) * rstd[h]);
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() != 0 || column >= p.head_dim) return;
  for (uint32_t w = 1; w < WARPS; w++) sum += sums[w * WARP + lane_id()];
  p.partial[static_cast<size_t>(blockIdx.x) * p.head_dim + column] = sum;
}

KERNEL(qk_norm_weight_f32, QkNormWeightParams, QK_NORM_WEIGHT_THREADS) {
  qk_norm_weight<float>(p);
}
KERNEL(qk_norm_weight_bf16, QkNormWeightParams, QK_NORM_WEIGHT_THREADS) {
  qk_norm_weight<bf16>(p);
}
