// Kernels of src/op/score_head.rs: a scalar per token.
#include "lib/reduce.cuh"
#include "lib/reduce64.cuh"
#include "lib/types.cuh"

constexpr int SCORE_HEAD_THREADS = 256;
// Tokens whose share of dw is added up by one thread per column.
constexpr uint32_t SCORE_HEAD_PIECE = 64;

struct ScoreHeadParams {
  const void* x;  // [tokens, hidden]
  const void* w;
  const void* b;   // or null
  float* y;        // [tokens]
  const float* dy;
  void* dx;
  float* partial;  // [pieces, hidden]
  float* dw;
  float* db;
  uint32_t tokens, hidden;
  uint32_t acc;
  uint32_t padding;
};

// A warp per token.
template <class T>
DEV void score_head_forward(const ScoreHeadParams& p) {
  uint32_t t = blockIdx.x * (SCORE_HEAD_THREADS / WARP) + warp_id();
  if (t >= p.tokens) return;
  size_t start = static_cast<size_t>(t) * p.hidden;
  float sum = 0.f;
#pragma unroll 4
  for (uint32_t j = lane_id(); j < p.hidden; j += WARP)
    sum = fmaf(load<T>(p.x, start + j), load<T>(p.w, j), sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) p.y[t] = sum + (p.b ? load<T>(p.b, 0) : 0.f);
}
KERNEL(score_head_forward_f32, ScoreHeadParams, SCORE_HEAD_THREADS) {
  score_head_forward<float>(p);
}
KERNEL(score_head_forward_bf16, ScoreHeadParams, SCORE_HEAD_THREADS) {
  score_head_forward<bf16>(p);
}

// dx = dy w: a block per token.
template <class T>
DEV void score_head_dx(const ScoreHeadParams& p) {
  float dy = p.dy[blockIdx.x];
  size_t start = static_cast<size_t>(blockIdx.x) * p.hidden;
#pragma unroll 4
  for (uint32_t j = threadIdx.x; j < p.hidden; j += SCORE_HEAD_THREADS)
    store<T>(p.dx, start + j, dy * load<T>(p.w, j), p.acc);
}
KERNEL(score_head_dx_f32, ScoreHeadParams, SCORE_HEAD_THREADS) { score_head_dx<float>(p); }
KERNEL(score_head_dx_bf16, ScoreHeadParams, SCORE_HEAD_THREADS) { score_head_dx<bf16>(p); }

// dw = sum dy x, first over each piece of tokens: a thread per column, grid (columns, pieces).
template <class T>
DEV void score_head_dw(const ScoreHeadParams& p) {
  uint32_t j = blockIdx.x * SCORE_HEAD_THREADS + threadIdx.x;
  if (j >= p.hidden) return;
  uint32_t start = blockIdx.y * SCORE_HEAD_PIECE, end = min(p.tokens, start + SCORE_HEAD_PIECE);
  float sum = 0.f;
#pragma unroll 4
  for (uint32_t t = start; t < end; t++)
    sum = fmaf(p.dy[t], load<T>(p.x, static_cast<size_t>(t) * p.hidden + j), sum);
  p.partial[static_cast<size_t>(blockIdx.y) * p.hidden + j] = sum;
}
KERNEL(score_head_dw_f32, ScoreHeadParams, SCORE_HEAD_THREADS) { score_head_dw<float>(p); }
KERNEL(score_head_dw_bf16, ScoreHeadParams, SCORE_HEAD_THREADS) { score_head_dw<bf16>(p); }

// Then over the pieces in order.
KERNEL(score_head_dw_sum, ScoreHeadParams, SCORE_HEAD_THREADS) {
  uint32_t j = blockIdx.x * SCORE_HEAD_THREADS + threadIdx.x;
  if (j >= p.hidden) return;
  uint32_t pieces = (p.tokens + SCORE_HEAD_PIECE - 1) / SCORE_HEAD_PIECE;
  float sum = p.acc ? p.dw[j] : 0.f;
  for (uint32_t k = 0; k < pieces; k++) sum += p.partial[static_cast<size_t>(k) * p.hidden + j];
  p.dw[j] = sum;
}

// db = sum dy, in one block.
KERNEL(score_head_db, ScoreHeadParams, SCORE_HEAD_THREADS) {
  SHARED(double, partial, SCORE_HEAD_THREADS / WARP);
  double sum = 0.;
  for (uint32_t t = threadIdx.x; t < p.tokens; t += SCORE_HEAD_THREADS) sum += p.dy[t];
  sum = block_sum_64<SCORE_HEAD_THREADS>(sum, partial);
  if (threadIdx.x == 0) store<float>(p.db, 0, static_cast<float>(sum), p.acc);
}
