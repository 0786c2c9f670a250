// c = a b: a [m, k], b [k, n] bf16, c [m, n] f32, row-major, k and n multiples of 8. A block of 128
// threads makes 64 rows of c, 64 columns after another, in tiles of 32 along k with two cp.async
// stages. Grid (ceil(m / 64)), shared memory 2 (64 * 40 + 32 * 72) * 2 = 19456 bytes.
#include "emu/bugs/bugs.cuh"

namespace bugs {

struct GemmParams {
  const bf16* a;
  const bf16* b;
  float* c;
  uint32_t m, n, k, unused;
};

constexpr int TILE = 64, TILE_K = 32;
// Elements; 8 more, so that rows of ldmatrix meet all banks.
constexpr int PITCH_A = TILE_K + 8, PITCH_B = TILE + 8;

template <Bug bug>
DEV void copy_or_zero(bf16* to, const bf16* from, bool inside) {
  if (bug == Bug::MissingZeroFill && !inside) return;
  cp_async16(to, from, inside);
}

// Starts the copies of tile k0 of both operands into one stage.
template <Bug bug>
DEV void load_tiles(const GemmParams& p, bf16* a, bf16* b, uint32_t row0, uint32_t col0,
                    uint32_t k0) {
  for (uint32_t c = threadIdx.x; c < TILE * TILE_K / 8; c += 128) {
    uint32_t row = c / (TILE_K / 8), k = c % (TILE_K / 8) * 8;
    bool inside = row0 + row < p.m && k0 + k < p.k;
    copy_or_zero<bug>(a + row * PITCH_A + k, inside ? p.a + size_t(row0 + row) * p.k + k0 + k : p.a,
                      inside);
  }
  for (uint32_t c = threadIdx.x; c < TILE_K * TILE / 8; c += 128) {
    uint32_t k = c / (TILE / 8), col = c % (TILE / 8) * 8;
    bool inside = k0 + k < p.k && col0 + col < p.n;
    copy_or_zero<bug>(b + k * PITCH_B + col, inside ? p.b + size_t(k0 + k) * p.n + col0 + col : p.b,
                      inside);
  }
}

// acc += the product of a stage, for this warp's 32 x 32 part.
template <Bug bug>
DEV void multiply_tiles(float (&acc)[2][4][4], const bf16* a, const bf16* b) {
  const int lane = lane_id(), row0 = warp_id() / 2 * 32, col0 = warp_id() % 2 * 32;
#pragma unroll
  for (int k = 0; k < TILE_K; k += 16) {
    uint32_t fa[2][4], fb[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
      ldmatrix_x4(fa[i], a + (row0 + i * 16 + lane % 16) * PITCH_A + k + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const bf16* at = b + (k + lane % 16) * PITCH_B + col0 + j * 16 + lane / 16 * 8;
      if (bug == Bug::NoTranspose)
        ldmatrix_x4(fb[j], at);
      else
        ldmatrix_x4_trans(fb[j], at);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int half = j % 2 * 2, swap = bug == Bug::SwappedFragment ? 1 : 0;
        mma_bf16(acc[i][j], fa[i], fb[j / 2][half + swap], fb[j / 2][half + 1 - swap]);
      }
  }
}

template <Bug bug>
DEV void gemm(const GemmParams& p) {
  DYN_SHARED(bf16, shared);
  bf16 *a = shared, *b = shared + 2 * TILE * PITCH_A;
  const uint32_t row0 = blockIdx.x * TILE, tiles = (p.k + TILE_K - 1) / TILE_K;
  float acc[2][4][4] = {};
  for (uint32_t col0 = 0; col0 < p.n; col0 += TILE) {
    if (bug != Bug::StaleAccumulator)
      for (auto& rows : acc)
        for (auto& tile : rows)
          for (float& v : tile) v = 0.f;
    load_tiles<bug>(p, a, b, row0, col0, 0);
    cp_async_commit();
    for (uint32_t t = 0; t < tiles; t++) {
      uint32_t now = t % 2, next = 1 - now;
      if (t + 1 < tiles)
        load_tiles<bug>(p, a + next * TILE * PITCH_A, b + next * TILE_K * PITCH_B, row0, col0,
                        (t + 1) * TILE_K);
      cp_async_commit();
      if (bug == Bug::WaitTooLittle)
        cp_async_wait<2>();
      else if (bug != Bug::MissingWait)
        cp_async_wait<1>();
      if (bug != Bug::MissingBarrierBefore) __syncthreads();
      multiply_tiles<bug>(acc, a + now * TILE * PITCH_A, b + now * TILE_K * PITCH_B);
      if (bug != Bug::MissingBarrierAfter) __syncthreads();
    }
    const int lane = lane_id();
    for (int i = 0; i < 2; i++)
      for (int j = 0; j < 4; j++)
        for (int e = 0; e < 4; e++) {
          uint32_t row =
              row0 + static_cast<uint32_t>(warp_id() / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8);
          uint32_t col =
              col0 + static_cast<uint32_t>(warp_id() % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2);
          bool inside = bug == Bug::WritePastEnd ? row <= p.m && col < p.n : row < p.m && col < p.n;
          if (inside) p.c[size_t(row) * p.n + col] = acc[i][j][e];
        }
  }
  cp_async_wait<0>();
}

KERNEL(bug_gemm_clean, GemmParams, 128) { gemm<Bug::None>(p); }
KERNEL(bug_gemm_missing_barrier_before, GemmParams, 128) { gemm<Bug::MissingBarrierBefore>(p); }
KERNEL(bug_gemm_missing_barrier_after, GemmParams, 128) { gemm<Bug::MissingBarrierAfter>(p); }
KERNEL(bug_gemm_missing_wait, GemmParams, 128) { gemm<Bug::MissingWait>(p); }
KERNEL(bug_gemm_wait_too_little, GemmParams, 128) { gemm<Bug::WaitTooLittle>(p); }
KERNEL(bug_gemm_write_past_end, GemmParams, 128) { gemm<Bug::WritePastEnd>(p); }
KERNEL(bug_gemm_no_transpose, GemmParams, 128) { gemm<Bug::NoTranspose>(p); }
KERNEL(bug_gemm_swapped_fragment, GemmParams, 128) { gemm<Bug::SwappedFragment>(p); }
KERNEL(bug_gemm_missing_zero_fill, GemmParams, 128) { gemm<Bug::MissingZeroFill>(p); }
KERNEL(bug_gemm_stale_accumulator, GemmParams, 128) { gemm<Bug::StaleAccumulator>(p); }

}  // namespace bugs
