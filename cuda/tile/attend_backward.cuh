// Gradients of attention, bf16 on tensor cores (Dao 2023, FlashAttention-2, algorithm 2):
// probabilities are recomputed from the log-sum-exp. One pass gathers dK and dV of a block of keys
// over the rows that see it, another dQ of a tile of rows over the keys it sees, each in order: the
// same bits every time, and no atomics.
#pragma once
#include "lib/reduce.cuh"
#include "tile/attend.cuh"
#include "tile/fragments.cuh"

// delta = rowsum(dO O), a warp per token and head.
template <class T>
DEV void attend_delta(const AttendParams& p) {
  const size_t row = static_cast<size_t>(blockIdx.x) * (ATTEND_THREADS / WARP) + warp_id();
  if (row >= static_cast<size_t>(p.tokens) * p.heads) return;
  float sum = 0.f;
  for (uint32_t i = lane_id(); i < p.head_dim; i += WARP) {
    const size_t at = row * p.head_dim + i;
    sum = fmaf(load<T>(p.d_o, at), load<T>(p.o, at), sum);
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) p.delta[row] = sum;
}

// What the gradients of a query row's scores need. A row that is none sees no key.
struct RowState {
  float lse, delta, slope;
  int position;
};
DEV RowState row_state(const AttendParams& p, const QueryRows& query, int row, bool exists) {
  if (!exists) return {0.f, 0.f, 0.f, -1};
  const size_t at = query.in_o(row);
  return {p.lse[at], p.delta[at], slope_of(p, query.head(row)), query.position(row)};
}

// Rows of a sequence that see some of keys first..first + n: from `first` to the return value, as
// tokens.
DEV int seen_until(const AttendParams& p, int first, int n, int length) {
  return min(length, first + n - 1 + static_cast<int>(p.reach));
}

// Writes columns column.. of 16 rows of dqkv, times the scale; `row(r)` is where row r starts. Rows
// from `rows` on are none.
template <int N, class Row>
DEV void store_gradient(const AttendParams& p, const float (&d)[N][4], Row row, int first, int rows,
                        int column, float scale) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = first + lane_id() / 4 + 8 * h;
    if (r >= rows) continue;
    bf16* const out = static_cast<bf16*>(p.dqkv) + row(r);
#pragma unroll
    for (int n = 0; n < N; n++)
      store_pair(out, column + n * 8 + (lane_id() & 3) * 2, p.head_dim, d[n][2 * h] * scale,
                 d[n][2 * h + 1] * scale, p.flags & ATTEND_ALIGNED, p.flags & ATTEND_ADD);
  }
}

// dK and dV of 64 keys, everything transposed: keys are the rows. SHARE warps have 16 keys, each
// its part of the query rows, then they exchange what they made and each has its part of the
// columns. Block z has COLUMNS of the columns. Shared memory: keys, values, two stages of query
// rows and dO, the rows' states, what is under way between warps.
template <int D, int ROWS, int COLUMNS, int SHARE>
DEV void attend_backward_keys_bf16(const AttendParams& p) {
  constexpr int KEYS = BLOCK_KEYS * Tile<D>::STRIDE, STAGE = ROWS * Tile<D>::STRIDE,
                THREADS = ATTEND_THREADS * SHARE;
  constexpr int WIDTH = COLUMNS / SHARE, PART = ROWS / SHARE, STEPS = ROWS / 16;
  DYN_SHARED(bf16, memory);
  const Tile<D> keys{memory}, values{memory + KEYS};
  bf16* const stages = memory + 2 * KEYS;
  RowState* const states = reinterpret_cast<RowState*>(stages + 4 * STAGE);
  uint4* const between =
      reinterpret_cast<uint4*>(states + 2 * ROWS) + warp_id() / SHARE * 2 * STEPS * WARP;

  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, 1, BLOCK_KEYS, static_cast<int>(blockIdx.x));
  if (!work.found) return;
  const bool aligned = p.flags & ATTEND_ALIGNED;
  const int first = work.tile * BLOCK_KEYS, n = min(BLOCK_KEYS, work.length - first);
  const int end = seen_until(p, first, n, work.length) * group;
  const PackedKeys<bf16> source(p, work, kv_head);
  const QueryRows query(p, work, kv_head, 0);
  const Keys<bf16> from = source.at(first);
  load_tile<D, BLOCK_KEYS, THREADS>(
      keys, [&](int r) { return from.k + r * from.stride; }, n, d, aligned);
  load_tile<D, BLOCK_KEYS, THREADS>(
      values, [&](int r) { return from.v + r * from.stride; }, n, d, aligned);
  const auto load_rows = [&](int stage, int row) {
    const int valid = min(ROWS, end - row);
    const bf16 *const qkv = static_cast<const bf16*>(p.qkv),
               *const d_o = static_cast<const bf16*>(p.d_o);
    bf16* const to = stages + 2 * stage * STAGE;
    load_tile<D, ROWS, THREADS>(
        Tile<D>{to}, [&](int r) { return qkv + query.in_qkv(row + r); }, valid, d, aligned);
    load_tile<D, ROWS, THREADS>(
        Tile<D>{to + STAGE}, [&](int r) { return d_o + query.in_o(row + r) * d; }, valid, d,
        aligned);
    cp_async_commit();
    const int r = threadIdx.x;
    if (r < ROWS) states[stage * ROWS + r] = row_state(p, query, row + r, r < valid);
  };
  load_rows(0, first * group);

  const int warp_key = warp_id() / SHARE * 16, part = warp_id() % SHARE;
  const int column = blockIdx.z * COLUMNS + part * WIDTH;
  float dk[WIDTH / 8][4] = {}, dv[WIDTH / 8][4] = {};
  for (int row = first * group, stage = 0; row < end; row += ROWS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (row + ROWS < end) load_rows(stage ^ 1, row + ROWS);
    const Tile<D> q{stages + 2 * stage * STAGE}, d_o{q.data + STAGE};
    uint32_t my_p[PART / 16][4], my_ds[PART / 16][4];
    {
      float s[PART / 8][4] = {}, dp[PART / 8][4] = {};
      multiply_transposed(s, keys, warp_key, q, part * PART);
      multiply_transposed(dp, values, warp_key, d_o, part * PART);
#pragma unroll
      for (int m = 0; m < PART / 8; m++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const RowState r =
              states[stage * ROWS + part * PART + m * 8 + (lane_id() & 3) * 2 + e % 2];
          const int key = first + warp_key + lane_id() / 4 + e / 2 * 8;
          const Gradient g =
              gradient(p, s[m][e], dp[m][e], key, r.position, r.slope, r.lse, r.delta);
          s[m][e] = g.p;
          dp[m][e] = g.ds;
        }
      round_left(my_p, s);
      round_left(my_ds, dp);
    }
    if constexpr (SHARE > 1) {
      uint32_t all_p[STEPS][4], all_ds[STEPS][4];
      put_left(between, my_p, part);
      put_left(between + STEPS * WARP, my_ds, part);
      __syncthreads();
      get_left(all_p, between);
      get_left(all_ds, between + STEPS * WARP);
      multiply(dv, all_p, d_o, 0, column);
      multiply(dk, all_ds, q, 0, column);
    } else {
      multiply(dv, my_p, d_o, 0, column);
      multiply(dk, my_ds, q, 0, column);
    }
  }
  const auto at = [&](int head) {
    return [&, head](int r) {
      return (work.first + first + r) * width_of(p) + static_cast<size_t>(p.heads + head) * d;
    };
  };
  store_gradient(p, dk, at(kv_head), warp_key, n, column, p.scale);
  store_gradient(p, dv, at(p.kv_heads + kv_head), warp_key, n, column, 1.f);
}

// dQ of 64 rows. SHARE warps have 16 of them, each its part of the keys, then they exchange what
// they made and each has its part of the columns. Shared memory: query rows, dO, STAGES of keys and
// values, what is under way between warps.
template <int D, int STAGES, int SHARE>
DEV void attend_backward_queries_bf16(const AttendParams& p) {
  constexpr int ROWS = 64, TILE = ROWS * Tile<D>::STRIDE, THREADS = ATTEND_THREADS * SHARE;
  constexpr int WIDTH = D / SHARE, PART = BLOCK_KEYS / SHARE, STEPS = BLOCK_KEYS / 16;
  static_assert(ROWS == BLOCK_KEYS, "tiles are of one size");
  DYN_SHARED(bf16, memory);
  const Tile<D> q{memory}, d_o{memory + TILE};
  bf16* const stages = memory + 2 * TILE;
  uint4* const between =
      reinterpret_cast<uint4*>(stages + 2 * STAGES * TILE) + warp_id() / SHARE * STEPS * WARP;

  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, group, ROWS, tile_index());
  if (!work.found) return;
  const bool aligned = p.flags & ATTEND_ALIGNED;
  const PackedKeys<bf16> source(p, work, kv_head);
  const QueryRows query(p, work, kv_head, 0);
  const int first_row = work.tile * ROWS, rows = min(ROWS, work.length * group - first_row);
  const Span span(p, query.position(first_row), query.position(first_row + rows - 1), BLOCK_KEYS);
  const bf16 *const qkv = static_cast<const bf16*>(p.qkv),
             *const out = static_cast<const bf16*>(p.d_o);
  load_tile<D, ROWS, THREADS>(
      q, [&](int r) { return qkv + query.in_qkv(first_row + r); }, rows, d, aligned);
  load_tile<D, ROWS, THREADS>(
      d_o, [&](int r) { return out + query.in_o(first_row + r) * d; }, rows, d, aligned);
  const auto load_keys = [&](int stage, int key) {
    const Keys<bf16> keys = source.at(key);
    const int valid = min(BLOCK_KEYS, span.end - key);
    bf16* const to = stages + 2 * stage * TILE;
    load_tile<D, BLOCK_KEYS, THREADS>(
        Tile<D>{to}, [&](int r) { return keys.k + r * keys.stride; }, valid, d, aligned);
    load_tile<D, BLOCK_KEYS, THREADS>(
        Tile<D>{to + TILE}, [&](int r) { return keys.v + r * keys.stride; }, valid, d, aligned);
    cp_async_commit();
  };
  load_keys(0, span.first);

  const int warp_row = warp_id() / SHARE * 16, part = warp_id() % SHARE, column = part * WIDTH;
  RowState state[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = warp_row + lane_id() / 4 + 8 * h;
    state[h] = row_state(p, query, first_row + r, r < rows);
  }
  float dq[WIDTH / 8][4] = {};
  for (int key = span.first, stage = 0; key < span.end;
       key += BLOCK_KEYS, stage = (stage + 1) % STAGES) {
    cp_async_wait<0>();
    __syncthreads();
    const bool more = key + BLOCK_KEYS < span.end;
    if (STAGES > 1 && more) load_keys(stage ^ 1, key + BLOCK_KEYS);
    const Tile<D> k{stages + 2 * stage * TILE}, v{k.data + TILE};
    uint32_t my_ds[PART / 16][4];
    {
      float s[PART / 8][4] = {}, ds[PART / 8][4] = {};
      multiply_transposed(s, q, warp_row, k, part * PART);
      multiply_transposed(ds, d_o, warp_row, v, part * PART);
#pragma unroll
      for (int m = 0; m < PART / 8; m++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const RowState r = state[e / 2];
          const int at = key + part * PART + m * 8 + (lane_id() & 3) * 2 + e % 2;
          ds[m][e] = gradient(p, s[m][e], ds[m][e], at, r.position, r.slope, r.lse, r.delta).ds;
        }
      round_left(my_ds, ds);
    }
    if constexpr (SHARE > 1) {
      uint32_t all_ds[STEPS][4];
      put_left(between, my_ds, part);
      __syncthreads();
      get_left(all_ds, between);
      multiply(dq, all_ds, k, 0, column);
    } else {
      multiply(dq, my_ds, k, 0, column);
    }
    if (STAGES == 1 && more) {
      __syncthreads();
      load_keys(0, key + BLOCK_KEYS);
    }
  }
  store_gradient(
      p, dq, [&](int r) { return query.in_qkv(first_row + r); }, warp_row, rows, column, p.scale);
}
