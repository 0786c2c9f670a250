// Attention of one tile of query rows over the keys of their sequence, bf16 on tensor cores (Dao
// 2023, FlashAttention-2). The one routine behind packed and cached attention.
//
// Keys come in blocks of 64 from the start of the sequence, in order, each row with its own running
// maximum and sum: a row's bits depend neither on its neighbours, nor on where the keys are, nor on
// the size of the tile. A block of which a row sees nothing leaves it exactly as it was:
// probabilities are 0 and the factor of what was summed before is 1.
//
// Tiles of 64 rows give 16 to each of four warps. In smaller ones, for decoding and the widest
// heads, two or all four warps share 16 rows: each takes its part of the 64 keys, then they
// exchange scores and each takes its part of the value columns.
#pragma once
#include "tile/attend.cuh"
#include "tile/fragments.cuh"

// A row's maximum so far and this lane's part of its sum, for the two rows of a lane.
struct Running {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
};

// Turns products into scores: scaled, capped, biased, masked.
template <int N>
DEV void adjust_scores(const AttendParams& p, float (&s)[N][4], int first, const int (&position)[2],
                       const float (&slope)[2], bool masked) {
  const int key = first + (lane_id() & 3) * 2;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) s[n][e] *= p.scale;
  if (p.softcap != 0.f) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[n][e] = p.softcap * tanhf(s[n][e] / p.softcap);
  }
  if (p.flags & ATTEND_ALIBI) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        s[n][e] =
            fmaf(slope[e / 2], static_cast<float>(key + n * 8 + e % 2 - position[e / 2]), s[n][e]);
  }
  if (masked) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (!visible(p, key + n * 8 + e % 2, position[e / 2])) s[n][e] = -INFINITY;
  }
}

// One step of the online softmax: scores become probabilities relative to the new maximum, sums and
// outputs follow it.
template <int N, int M>
DEV void softmax_step(float (&s)[N][4], Running& run, float (&o)[M][4]) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float top = run.max[h];
#pragma unroll
    for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
    const bool nothing = top == -INFINITY;
    const float base = nothing ? 0.f : top * LOG2E,
                factor = nothing ? 1.f : exp2f((run.max[h] - top) * LOG2E);
    run.max[h] = top;
    run.sum[h] *= factor;
#pragma unroll
    for (int m = 0; m < M; m++) {
      o[m][2 * h] *= factor;
      o[m][2 * h + 1] *= factor;
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; e++) {
        s[n][e] = exp2f(fmaf(s[n][e], LOG2E, -base));
        run.sum[h] += s[n][e];
      }
  }
}

// Scores of 16 rows that some warps share: each computed `N` of the eight pieces, from `first` on,
// and gets all.
template <int N>
DEV void exchange(float (&s)[8][4], const float (&mine)[N][4], int first, float4* between) {
  const int lane = lane_id();
#pragma unroll
  for (int n = 0; n < N; n++)
    between[(first + n) * WARP + lane] = {mine[n][0], mine[n][1], mine[n][2], mine[n][3]};
  __syncthreads();
#pragma unroll
  for (int n = 0; n < 8; n++) {
    const float4 piece = between[n * WARP + lane];
    s[n][0] = piece.x;
    s[n][1] = piece.y;
    s[n][2] = piece.z;
    s[n][3] = piece.w;
  }
}

// Shared memory: queries, two stages of keys and values, and for less than 64 rows 64 f32 per row.
template <int D, int ROWS, template <class> class Source>
DEV void attend_forward_bf16(const AttendParams& p) {
  constexpr int SHARE = 64 / ROWS;   // warps per 16 rows
  constexpr int WIDTH = D / SHARE;   // value columns of a warp
  constexpr int PIECES = 8 / SHARE;  // eights of keys of a warp
  constexpr int STAGE = BLOCK_KEYS * Tile<D>::STRIDE;
  DYN_SHARED(bf16, memory);
  const Tile<D> queries{memory};
  bf16* const stages = memory + ROWS * Tile<D>::STRIDE;
  float4* const between = reinterpret_cast<float4*>(stages + 4 * STAGE);

  const int kv_head = blockIdx.y, group = group_of(p), d = p.head_dim;
  const Work work = find_work(p, group, ROWS, tile_index());
  if (!work.found) return;
  const Source<bf16> source(p, work, kv_head);
  if (!source.fits()) return;
  const bool aligned = p.flags & ATTEND_ALIGNED;
  const QueryRows query(p, work, kv_head, source.start);
  const int first_row = work.tile * ROWS, rows = min(ROWS, work.length * group - first_row);
  const int low = query.position(first_row), high = query.position(first_row + rows - 1);
  const Span span(p, low, high, BLOCK_KEYS);

  bool missing = false;
  const auto load_keys = [&](int stage, int key) {
    const Keys<bf16> keys = source.at(key);
    const int valid = keys.ok ? min(BLOCK_KEYS, span.end - key) : 0;
    missing = missing || !keys.ok;
    bf16* const to = stages + 2 * stage * STAGE;
    load_tile<D, BLOCK_KEYS, ATTEND_THREADS>(
        Tile<D>{to}, [&](int r) { return keys.k + r * keys.stride; }, valid, d, aligned);
    load_tile<D, BLOCK_KEYS, ATTEND_THREADS>(
        Tile<D>{to + STAGE}, [&](int r) { return keys.v + r * keys.stride; }, valid, d, aligned);
    cp_async_commit();
  };
  const bf16* const qkv = static_cast<const bf16*>(p.qkv);
  load_tile<D, ROWS, ATTEND_THREADS>(
      queries, [&](int r) { return qkv + query.in_qkv(first_row + r); }, rows, d, aligned);
  load_keys(0, span.first);

  const int part = warp_id() % SHARE, warp_row = warp_id() / SHARE * 16,
            my_row = warp_row + lane_id() / 4;
  int position[2];
  float slope[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = first_row + min(my_row + 8 * h, rows - 1);
    position[h] = query.position(row);
    slope[h] = slope_of(p, query.head(row));
  }
  const int column = part * WIDTH;
  float o[WIDTH / 8][4] = {};
  Running run;
  for (int key = span.first, stage = 0; key < span.end; key += BLOCK_KEYS, stage ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    if (key + BLOCK_KEYS < span.end) load_keys(stage ^ 1, key + BLOCK_KEYS);
    const Tile<D> k{stages + 2 * stage * STAGE}, v{k.data + STAGE};
    float s[8][4] = {};
    if constexpr (SHARE > 1) {
      float mine[PIECES][4] = {};
      multiply_transposed(mine, queries, warp_row, k, part * PIECES * 8);
      exchange(s, mine, part * PIECES, between + warp_row / 16 * 8 * WARP);
    } else {
      multiply_transposed(s, queries, warp_row, k, 0);
    }
    adjust_scores(p, s, key, position, slope, !all_visible(p, key, key + BLOCK_KEYS, low, high));
    softmax_step(s, run, o);
    uint32_t probabilities[4][4];
    round_left(probabilities, s);
    multiply(o, probabilities, v, 0, column);
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = run.sum[h];
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
    if (my_row + 8 * h >= rows) continue;
    const size_t at = query.in_o(first_row + my_row + 8 * h);
    const float inverse = missing ? NAN : 1.f / sum;
    bf16* const out = static_cast<bf16*>(p.o) + at * d;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
      store_pair(out, column + n * 8 + (lane_id() & 3) * 2, d, o[n][2 * h] * inverse,
                 o[n][2 * h + 1] * inverse, aligned, false);
    if (p.lse && (lane_id() & 3) == 0 && column == 0) p.lse[at] = run.max[h] + logf(sum);
  }
}
