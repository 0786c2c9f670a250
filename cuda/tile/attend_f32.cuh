// Attention and its gradients in f32 by plain multiply-adds: the exact mode. The same walk over
// keys and rows as in bf16, in tiles of 16 rows on the left and 32 on the right. Thread t has rows
// 2 (t / 16) and the next, and every 16th column from t % 16 on, so a row belongs to half a warp.
#pragma once
#include "lib/reduce.cuh"
#include "tile/attend.cuh"
#include "tile/attend_backward.cuh"

constexpr int LEFT = 16;
constexpr int RIGHT = 32;
constexpr int SIDE = 16;
// Elements from a row to the next: rows of vectors of four, and rows of probabilities.
template <int D>
constexpr int STRIDE_F32 = D + 4;
constexpr int STRIDE_P = RIGHT + 1;

DEV int thread_row() { return static_cast<int>(threadIdx.x) / SIDE * 2; }
DEV int thread_column() { return static_cast<int>(threadIdx.x) % SIDE; }

// ROWS rows of `columns` elements, of which `valid` exist; the rest becomes 0.
template <int D, int ROWS, class From>
DEV void load_tile_f32(float* to, From from, int valid, int columns) {
#pragma unroll 2
  for (int i = threadIdx.x; i < ROWS * D; i += ATTEND_THREADS) {
    const int row = i / D, column = i % D;
    to[row * STRIDE_F32<D> + column] = row < valid && column < columns ? from(row)[column] : 0.f;
  }
}

// d = a b' for 16 rows of a and 32 of b.
template <int D>
DEV void multiply_transposed_f32(float (&d)[2][2], const float* a, const float* b) {
  a += thread_row() * STRIDE_F32<D>;
  b += thread_column() * STRIDE_F32<D>;
  d[0][0] = d[0][1] = d[1][0] = d[1][1] = 0.f;
#pragma unroll 4
  for (int k = 0; k < D; k += 4) {
    float4 left[2], right[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      left[i] = *reinterpret_cast<const float4*>(a + i * STRIDE_F32<D> + k);
      right[i] = *reinterpret_cast<const float4*>(b + i * SIDE * STRIDE_F32<D> + k);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        d[i][j] = fmaf(left[i].x, right[j].x, d[i][j]);
        d[i][j] = fmaf(left[i].y, right[j].y, d[i][j]);
        d[i][j] = fmaf(left[i].z, right[j].z, d[i][j]);
        d[i][j] = fmaf(left[i].w, right[j].w, d[i][j]);
      }
  }
}

// d += a b for a of 16 rows and 32 columns and the 32 rows of b, in order.
template <int D>
DEV void multiply_f32(float (&d)[2][D / SIDE], const float* a, const float* b) {
  a += thread_row() * STRIDE_P;
  b += thread_column();
#pragma unroll 2
  for (int k = 0; k < RIGHT; k++) {
    const float left[2] = {a[k], a[STRIDE_P + k]};
#pragma unroll
    for (int c = 0; c < D / SIDE; c++) {
      const float right = b[k * STRIDE_F32<D> + c * SIDE];
      d[0][c] = fmaf(left[0], right, d[0][c]);
      d[1][c] = fmaf(left[1], right, d[1][c]);
    }
  }
}

DEV void put_f32(float* to, const float (&d)[2][2]) {
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++)
      to[(thread_row() + i) * STRIDE_P + thread_column() + j * SIDE] = d[i][j];
}

// One step of the online softmax over 32 keys; a row's threads are half a warp.
template <int D>
DEV void softmax_step_f32(float (&s)[2][2], float (&max)[2], float (&sum)[2],
                          float (&o)[2][D / SIDE]) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float top = fmaxf(max[i], fmaxf(s[i][0], s[i][1]));
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2)
      top = fmaxf(top, __shfl_xor_sync(FULL, top, step));
    const bool nothing = top == -INFINITY;
    const float factor = nothing ? 1.f : expf(max[i] - top);
    max[i] = top;
    sum[i] *= factor;
#pragma unroll
    for (int c = 0; c < D / SIDE; c++) o[i][c] *= factor;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      s[i][j] = nothing ? 0.f : expf(s[i][j] - top);
      sum[i] += s[i][j];
    }
  }
}

// Shared memory: queries, keys, values, probabilities.
template <int D, template <class> class Source>
DEV void attend_forward_f32(const AttendParams& p) {
  DYN_SHARED(float, memory);
  float *const q = memory, *const k = q + LEFT * STRIDE_F32<D>,
               *const v = k + RIGHT * STRIDE_F32<D>;
  float* const probabilities = v + RIGHT * STRIDE_F32<D>;
  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, group, LEFT, tile_index());
  if (!work.found) return;
  const Source<float> source(p, work, kv_head);
  if (!source.fits()) return;
  const QueryRows query(p, work, kv_head, source.start);
  const int first_row = work.tile * LEFT, rows = min(LEFT, work.length * group - first_row);
  const int low = query.position(first_row), high = query.position(first_row + rows - 1);
  const Span span(p, low, high, RIGHT);
  const float* const qkv = static_cast<const float*>(p.qkv);
  load_tile_f32<D, LEFT>(q, [&](int r) { return qkv + query.in_qkv(first_row + r); }, rows, d);

  int position[2];
  float slope[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = first_row + min(thread_row() + i, rows - 1);
    position[i] = query.position(row);
    slope[i] = slope_of(p, query.head(row));
  }
  float o[2][D / SIDE] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  bool missing = false;
  for (int key = span.first; key < span.end; key += RIGHT) {
    const Keys<float> keys = source.at(key);
    const int valid = keys.ok ? min(RIGHT, span.end - key) : 0;
    missing = missing || !keys.ok;
    __syncthreads();
    load_tile_f32<D, RIGHT>(k, [&](int r) { return keys.k + r * keys.stride; }, valid, d);
    load_tile_f32<D, RIGHT>(v, [&](int r) { return keys.v + r * keys.stride; }, valid, d);
    __syncthreads();
    float s[2][2];
    multiply_transposed_f32<D>(s, q, k);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int at = key + thread_column() + j * SIDE;
        float derivative;
        s[i][j] = visible(p, at, position[i])
                      ? score(p, s[i][j], slope[i], at, position[i], derivative)
                      : -INFINITY;
      }
    softmax_step_f32<D>(s, max, sum, o);
    put_f32(probabilities, s);
    __syncwarp();
    multiply_f32<D>(o, probabilities, v);
  }

#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int step = SIDE / 2; step > 0; step /= 2) sum[i] += __shfl_xor_sync(FULL, sum[i], step);
    if (thread_row() + i >= rows) continue;
    const size_t at = query.in_o(first_row + thread_row() + i);
    const float inverse = missing ? NAN : 1.f / sum[i];
#pragma unroll
    for (int c = 0; c < D / SIDE; c++) {
      const int column = thread_column() + c * SIDE;
      if (column < d) static_cast<float*>(p.o)[at * d + column] = o[i][c] * inverse;
    }
    if (p.lse && thread_column() == 0) p.lse[at] = max[i] + logf(sum[i]);
  }
}

// Writes 16 rows of dqkv, times the scale; `row(r)` is where row r starts. Rows from `rows` on are
// none.
template <int D, class Row>
DEV void store_gradient_f32(const AttendParams& p, const float (&d)[2][D / SIDE], Row row, int rows,
                            float scale) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (thread_row() + i >= rows) continue;
    const size_t at = row(thread_row() + i);
#pragma unroll
    for (int c = 0; c < D / SIDE; c++) {
      const int column = thread_column() + c * SIDE;
      if (column < static_cast<int>(p.head_dim))
        store<float>(p.dqkv, at + column, d[i][c] * scale, p.flags & ATTEND_ADD);
    }
  }
}

// dK and dV of 16 keys, which are the rows here. Shared memory: keys, values, query rows, dO,
// probabilities, their gradients, the rows' states.
template <int D>
DEV void attend_backward_keys_f32(const AttendParams& p) {
  DYN_SHARED(float, memory);
  float *const k = memory, *const v = k + LEFT * STRIDE_F32<D>, *const q = v + LEFT * STRIDE_F32<D>;
  float *const d_o = q + RIGHT * STRIDE_F32<D>, *const probabilities = d_o + RIGHT * STRIDE_F32<D>;
  float* const gradients = probabilities + LEFT * STRIDE_P;
  RowState* const states = reinterpret_cast<RowState*>(gradients + LEFT * STRIDE_P);
  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, 1, LEFT, static_cast<int>(blockIdx.x));
  if (!work.found) return;
  const int first = work.tile * LEFT, n = min(LEFT, work.length - first);
  const int end = seen_until(p, first, n, work.length) * group;
  const QueryRows query(p, work, kv_head, 0);
  const Keys<float> keys = PackedKeys<float>(p, work, kv_head).at(first);
  const float *const qkv = static_cast<const float*>(p.qkv),
              *const out = static_cast<const float*>(p.d_o);
  load_tile_f32<D, LEFT>(k, [&](int r) { return keys.k + r * keys.stride; }, n, d);
  load_tile_f32<D, LEFT>(v, [&](int r) { return keys.v + r * keys.stride; }, n, d);

  float dk[2][D / SIDE] = {}, dv[2][D / SIDE] = {};
  for (int row = first * group; row < end; row += RIGHT) {
    const int valid = min(RIGHT, end - row), r = threadIdx.x;
    __syncthreads();
    load_tile_f32<D, RIGHT>(q, [&](int r) { return qkv + query.in_qkv(row + r); }, valid, d);
    load_tile_f32<D, RIGHT>(d_o, [&](int r) { return out + query.in_o(row + r) * d; }, valid, d);
    if (r < RIGHT) states[r] = row_state(p, query, row + r, r < valid);
    __syncthreads();
    float s[2][2], dp[2][2];
    multiply_transposed_f32<D>(s, k, q);
    multiply_transposed_f32<D>(dp, v, d_o);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const RowState at = states[thread_column() + j * SIDE];
        const Gradient g = gradient(p, s[i][j], dp[i][j], first + thread_row() + i, at.position,
                                    at.slope, at.lse, at.delta);
        s[i][j] = g.p;
        dp[i][j] = g.ds;
      }
    put_f32(probabilities, s);
    put_f32(gradients, dp);
    __syncwarp();
    multiply_f32<D>(dv, probabilities, d_o);
    multiply_f32<D>(dk, gradients, q);
  }
  const size_t at = (work.first + first) * width_of(p) + static_cast<size_t>(p.heads + kv_head) * d;
  const size_t values = static_cast<size_t>(p.kv_heads) * d;
  store_gradient_f32<D>(p, dk, [&](int r) { return at + r * width_of(p); }, n, p.scale);
  store_gradient_f32<D>(p, dv, [&](int r) { return at + values + r * width_of(p); }, n, 1.f);
}

// dQ of 16 rows. Shared memory: query rows, dO, keys, values, gradients of scores.
template <int D>
DEV void attend_backward_queries_f32(const AttendParams& p) {
  DYN_SHARED(float, memory);
  float *const q = memory, *const d_o = q + LEFT * STRIDE_F32<D>,
               *const k = d_o + LEFT * STRIDE_F32<D>;
  float *const v = k + RIGHT * STRIDE_F32<D>, *const gradients = v + RIGHT * STRIDE_F32<D>;
  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, group, LEFT, tile_index());
  if (!work.found) return;
  const PackedKeys<float> source(p, work, kv_head);
  const QueryRows query(p, work, kv_head, 0);
  const int first_row = work.tile * LEFT, rows = min(LEFT, work.length * group - first_row);
  const Span span(p, query.position(first_row), query.position(first_row + rows - 1), RIGHT);
  const float *const qkv = static_cast<const float*>(p.qkv),
              *const out = static_cast<const float*>(p.d_o);
  load_tile_f32<D, LEFT>(q, [&](int r) { return qkv + query.in_qkv(first_row + r); }, rows, d);
  load_tile_f32<D, LEFT>(d_o, [&](int r) { return out + query.in_o(first_row + r) * d; }, rows, d);

  RowState state[2];
#pragma unroll
  for (int i = 0; i < 2; i++)
    state[i] = row_state(p, query, first_row + thread_row() + i, thread_row() + i < rows);
  float dq[2][D / SIDE] = {};
  for (int key = span.first; key < span.end; key += RIGHT) {
    const Keys<float> keys = source.at(key);
    const int valid = min(RIGHT, span.end - key);
    __syncthreads();
    load_tile_f32<D, RIGHT>(k, [&](int r) { return keys.k + r * keys.stride; }, valid, d);
    load_tile_f32<D, RIGHT>(v, [&](int r) { return keys.v + r * keys.stride; }, valid, d);
    __syncthreads();
    float s[2][2], ds[2][2];
    multiply_transposed_f32<D>(s, q, k);
    multiply_transposed_f32<D>(ds, d_o, v);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int at = key + thread_column() + j * SIDE;
        ds[i][j] = gradient(p, s[i][j], ds[i][j], at, state[i].position, state[i].slope,
                            state[i].lse, state[i].delta).ds;
      }
    put_f32(gradients, ds);
    __syncwarp();
    multiply_f32<D>(dq, gradients, k);
  }
  store_gradient_f32<D>(p, dq, [&](int r) { return query.in_qkv(first_row + r); }, rows, p.scale);
}
