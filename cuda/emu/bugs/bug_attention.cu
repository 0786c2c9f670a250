// Causal attention: o = softmax(scale q k^T) v with heads of 64, q, k, v [heads, tokens, 64] bf16,
// o of the same shape in f32. A block of 128 threads takes 64 queries, 16 a warp, and keys in tiles
// of 64, two stages. Grid (ceil(tokens / 64), heads), shared memory 5 * 64 * 72 * 2 = 46080 bytes.
#include "emu/bugs/bugs.cuh"

namespace bugs {

struct AttentionParams {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  float* o;
  uint32_t tokens;
  float scale;
};

constexpr int WIDTH = 64, KEYS = 64, PITCH = WIDTH + 8;

// Starts the copy of 64 rows into shared memory; rows beyond the sequence are zeros.
DEV void load_rows(bf16* to, const bf16* from, uint32_t row0, uint32_t rows) {
  for (uint32_t c = threadIdx.x; c < 64 * WIDTH / 8; c += 128) {
    uint32_t row = c / (WIDTH / 8), at = c % (WIDTH / 8) * 8;
    bool inside = row0 + row < rows;
    cp_async16(to + row * PITCH + at, inside ? from + size_t(row0 + row) * WIDTH + at : from,
               inside);
  }
}

// s = q k^T for this warp's 16 queries.
DEV void scores(float (&s)[8][4], const uint32_t (&q)[4][4], const bf16* k) {
  const int lane = lane_id();
#pragma unroll
  for (int d = 0; d < 4; d++)
#pragma unroll
    for (int n = 0; n < 4; n++) {
      uint32_t f[4];
      ldmatrix_x4(f, k + (n * 16 + lane % 8 + lane / 16 * 8) * PITCH + d * 16 + lane / 8 % 2 * 8);
      mma_bf16(s[2 * n], q[d], f[0], f[1]);
      mma_bf16(s[2 * n + 1], q[d], f[2], f[3]);
    }
}

// o += p v.
DEV void weigh(float (&o)[8][4], const float (&s)[8][4], const bf16* v) {
  const int lane = lane_id();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const float(&x)[4] = s[2 * k];
    const float(&y)[4] = s[2 * k + 1];
    uint32_t f[4] = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(y[0], y[1]),
                     pack_bf16(y[2], y[3])};
#pragma unroll
    for (int n = 0; n < 4; n++) {
      uint32_t fv[4];
      ldmatrix_x4_trans(fv, v + (k * 16 + lane % 16) * PITCH + n * 16 + lane / 16 * 8);
      mma_bf16(o[2 * n], f, fv[0], fv[1]);
      mma_bf16(o[2 * n + 1], f, fv[2], fv[3]);
    }
  }
}

// Masks and exponentiates s; brings o and the sums to the new maxima. `row0`, `col0`: first query
// of the warp, first key.
template <Bug bug>
DEV void softmax_step(float (&s)[8][4], float (&o)[8][4], float (&largest)[2], float (&sum)[2],
                      uint32_t row0, uint32_t col0, float scale) {
  const auto lane = static_cast<uint32_t>(lane_id());
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    uint32_t row = row0 + lane / 4 + h * 8;
    float now = largest[h];
    for (uint32_t n = 0; n < 8; n++)
      for (uint32_t e = 0; e < 2; e++) {
        uint32_t col = col0 + n * 8 + lane % 4 * 2 + e;
        float& v = s[n][2 * h + e];
        bool seen = bug == Bug::MaskOffByOne ? col <= row + 1 : col <= row;
        v = seen ? v * scale : -INFINITY;
        now = fmaxf(now, v);
      }
    now = fmaxf(now, __shfl_xor_sync(FULL, now, 1));
    now = fmaxf(now, __shfl_xor_sync(FULL, now, 2));
    // The first tile holds the diagonal or what is left of it: now is finite.
    float shrink = expf(largest[h] - now);
    largest[h] = now;
    sum[h] *= shrink;
    for (int n = 0; n < 8; n++)
      for (uint32_t e = 2 * h; e < 2 * h + 2; e++) {
        if (bug != Bug::StaleAccumulator) o[n][e] *= shrink;
        s[n][e] = expf(s[n][e] - now);
        sum[h] += s[n][e];
      }
  }
}

template <Bug bug>
DEV void attention(const AttentionParams& p) {
  DYN_SHARED(bf16, shared);
  bf16 *sq = shared, *sk = sq + 64 * PITCH, *sv = sk + 2 * KEYS * PITCH;
  const uint32_t query0 = blockIdx.x * 64, head = blockIdx.y * p.tokens;
  const bf16 *q = p.q + size_t(head) * WIDTH, *k = p.k + size_t(head) * WIDTH,
             *v = p.v + size_t(head) * WIDTH;
  const uint32_t tiles = blockIdx.x + 1, row0 = query0 + static_cast<uint32_t>(warp_id()) * 16;
  const int lane = lane_id();

  load_rows(sq, q, query0, p.tokens);
  load_rows(sk, k, 0, p.tokens);
  load_rows(sv, v, 0, p.tokens);
  cp_async_commit();
  uint32_t fq[4][4];
  float o[8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  for (uint32_t t = 0; t < tiles; t++) {
    uint32_t now = t % 2 * KEYS * PITCH, next = (1 - t % 2) * KEYS * PITCH;
    if (t + 1 < tiles) {
      load_rows(sk + next, k, (t + 1) * KEYS, p.tokens);
      load_rows(sv + next, v, (t + 1) * KEYS, p.tokens);
    }
    cp_async_commit();
    if (bug != Bug::MissingWait || t == 0) cp_async_wait<1>();
    if (bug != Bug::MissingBarrierBefore || t == 0) __syncthreads();
    if (t == 0)
#pragma unroll
      for (int d = 0; d < 4; d++)
        ldmatrix_x4(fq[d], sq + (warp_id() * 16 + lane % 16) * PITCH + d * 16 + lane / 16 * 8);
    float s[8][4] = {};
    scores(s, fq, sk + now);
    softmax_step<bug>(s, o, largest, sum, row0, t * KEYS, p.scale);
    weigh(o, s, sv + now);
    if (bug != Bug::MissingBarrierAfter) __syncthreads();
  }
  cp_async_wait<0>();
#pragma unroll
  for (uint32_t h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(FULL, sum[h], 1);
    sum[h] += __shfl_xor_sync(FULL, sum[h], 2);
    uint32_t row = row0 + static_cast<uint32_t>(lane) / 4 + h * 8;
    if (row >= p.tokens) continue;
    for (uint32_t n = 0; n < 8; n++)
      for (uint32_t e = 0; e < 2; e++)
        p.o[(size_t(head) + row) * WIDTH + n * 8 + static_cast<uint32_t>(lane) % 4 * 2 + e] =
            o[n][2 * h + e] / sum[h];
  }
}

KERNEL(bug_attention_clean, AttentionParams, 128) { attention<Bug::None>(p); }
KERNEL(bug_attention_missing_barrier_before, AttentionParams, 128) {
  attention<Bug::MissingBarrierBefore>(p);
}
KERNEL(bug_attention_missing_barrier_after, AttentionParams, 128) {
  attention<Bug::MissingBarrierAfter>(p);
}
KERNEL(bug_attention_missing_wait, AttentionParams, 128) { attention<Bug::MissingWait>(p); }
KERNEL(bug_attention_stale_accumulator, AttentionParams, 128) {
  attention<Bug::StaleAccumulator>(p);
}
KERNEL(bug_attention_mask_off_by_one, AttentionParams, 128) { attention<Bug::MaskOffByOne>(p); }

}  // namespace bugs
