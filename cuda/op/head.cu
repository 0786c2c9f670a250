// Kernels of src/op/head.rs: a scalar per token.
#include "lib/reduce.cuh"
#include "lib/reduce64.cuh"
#include "lib/types.cuh"

constexpr int HEAD_THREADS = 256;
// Tokens whose share of dw is added up by one thread per column.
constexpr uint32_t HEAD_PIECE = 64;

struct HeadParams {
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
DEV void head_forward(const HeadParams& p) {
  uint32_t t = blockIdx.x * (HEAD_THREADS / WARP) + warp_id();
  if (t >= p.tokens) return;
  size_t start = static_cast<size_t>(t) * p.hidden;
  float sum = 0.f;
#pragma unroll 4
  for (uint32_t j = lane_id(); j < p.hidden; j += WARP)
    sum = fmaf(load<T>(p.x, start + j), load<T>(p.w, j), sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) p.y[t] = sum + (p.b ? load<T>(p.b, 0) : 0.f);
}
KERNEL(head_forward_f32, HeadParams, HEAD_THREADS) { head_forward<float>(p); }
KERNEL(head_forward_bf16, HeadParams, HEAD_THREADS) { head_forward<bf16>(p); }

// dx = dy w: a block per token.
template <class T>
DEV void head_dx(const HeadParams& p) {
  float dy = p.dy[blockIdx.x];
  size_t start = static_cast<size_t>(blockIdx.x) * p.hidden;
#pragma unroll 4
  for (uint32_t j = threadIdx.x; j < p.hidden; j += HEAD_THREADS)
    store<T>(p.dx, start + j, dy * load<T>(p.w, j), p.acc);
}
KERNEL(head_dx_f32, HeadParams, HEAD_THREADS) { head_dx<float>(p); }
KERNEL(head_dx_bf16, HeadParams, HEAD_THREADS) { head_dx<bf16>(p); }

// dw = sum dy x, first over each piece of tokens: a thread per column, grid (columns, pieces).
template <class T>
DEV void head_dw(const HeadParams& p) {
  uint32_t j = blockIdx.x * HEAD_THREADS + threadIdx.x;
  if (j >= p.hidden) return;
  uint32_t start = blockIdx.y * HEAD_PIECE, end = min(p.tokens, start + HEAD_PIECE);
  float sum = 0.f;
#pragma unroll 4
  for (uint32_t t = start; t < end; t++)
    sum = fmaf(p.dy[t], load<T>(p.x, static_cast<size_t>(t) * p.hidden + j), sum);
  p.partial[static_cast<size_t>(blockIdx.y) * p.hidden + j] = sum;
}
KERNEL(head_dw_f32, HeadParams, HEAD_THREADS) { head_dw<float>(p); }
KERNEL(head_dw_bf16, HeadParams, HEAD_THREADS) { head_dw<bf16>(p); }

// Then over the pieces in order.
KERNEL(head_dw_sum, HeadParams, HEAD_THREADS) {
  uint32_t j = blockIdx.x * HEAD_THREADS + threadIdx.x;
  if (j >= p.hidden) return;
  uint32_t pieces = (p.tokens + HEAD_PIECE - 1) / HEAD_PIECE;
  float sum = p.acc ? p.dw[j] : 0.f;
  for (uint32_t k = 0; k < pieces; k++) sum += p.partial[static_cast<size_t>(k) * p.hidden + j];
  p.dw[j] = sum;
}

// db = sum dy, in one block.
KERNEL(head_db, HeadParams, HEAD_THREADS) {
  SHARED(double, partial, HEAD_THREADS / WARP);
  double sum = 0.;
  for (uint32_t t = threadIdx.x; t < p.tokens; t += HEAD_THREADS) sum += p.dy[t];
  sum = block_sum_64<HEAD_THREADS>(sum, partial);
  if (threadIdx.x == 0) store<float>(p.db, 0, static_cast<float>(sum), p.acc);
}
