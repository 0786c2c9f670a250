// Matrix products on tensor cores: c = scale * a b + bias + residual, bf16 in, f32 sums, rounded
// once.
//
// One accumulator per element of c, which takes the products of K in steps of 16, in order,
// whatever the tile: a row's bits depend neither on the number of rows nor on the tile they were
// computed in (law 2). So K is never split.
//
// A block computes a BM x BN tile with a ring of STAGES tiles of a and b in shared memory, filled
// by cp.async; each warp computes WM x WN of it with ldmatrix and mma. Rows in shared memory are
// padded by 16 bytes, which spreads the eight rows that ldmatrix reads at once over all banks.
#pragma once
#include "lib/activation.cuh"
#include "lib/types.cuh"

// What is multiplied: Nt: a [m, k] by b [n, k]; Nn: a [m, k] by b [k, n]; Tn: a [k, m] by b [k, n].
enum class Layout { Nt, Nn, Tn };

// Elements between the rows of a tile in shared memory.
constexpr int GEMM_PAD = 8;
// Side of a tile of plain FMA, and threads of its block.
constexpr int FMA_TILE = 64;
constexpr int FMA_THREADS = 256;

struct GemmParams {
  const void* a;
  const void* b;
  void* c;
  const void* bias;      // [n] in the dtype of b, or null
  const void* residual;  // like c, or c itself, or null
  uint32_t m, n, k, lda, ldb, ldc;
  // b as it lies after a gather of column blocks: columns j of b are at (j / b_block) * b_stride +
  // j % b_block; 0: plain. The same for c.
  uint32_t b_block, c_block;
  uint64_t b_stride, c_stride;
  float scale;
  uint32_t accumulate;  // add to what c holds
  uint32_t activation;  // its kind, in kernels with one
  uint32_t pad;
};

// Offset of column j in a row of blocks.
DEV size_t blocked(uint32_t j, uint32_t block, uint64_t stride) {
  return block == 0 ? j : static_cast<size_t>(j / block) * stride + j % block;
}

// Sets one element of c from its sum; `offset` is that of its column in a row. TB is the dtype of
// the bias. With an activation c is that of the product with its bias, rounded first, as it is
// where backward needs both.
template <class TB, class TC, bool ACT>
DEV void gemm_finish(const GemmParams& p, uint32_t row, uint32_t column, size_t offset, float sum) {
  if (row >= p.m || column >= p.n) return;
  float v = sum * p.scale;
  if (p.bias) v += load<TB>(p.bias, column);
  const size_t at = static_cast<size_t>(row) * p.ldc + offset;
  if (ACT) {
    float slope;
    value_and_slope(p.activation, to_f32(from_f32<TC>(v)), v, slope);
    store<TC>(p.c, at, v);
    return;
  }
  // Where the product is 0 the old value keeps its bits: -0 + 0 is not -0.
  if (p.accumulate) {
    if (v != 0.f) store<TC>(p.c, at, load<TC>(p.c, at) + v);
    return;
  }
  if (p.residual) v += load<TC>(p.residual, at);
  store<TC>(p.c, at, v);
}

// Fills `rows` x `columns` of shared memory from row `row0`, column `column0` of a matrix of
// `height` x `width`, zeros outside.
template <int ROWS, int COLUMNS, int PITCH, int THREADS, bool ALIGNED>
DEV void load_tile(bf16* to, const bf16* from, uint32_t row0, uint32_t column0, uint32_t height,
                   uint32_t width, uint32_t ld, uint32_t block, uint64_t stride) {
  constexpr int CHUNK = 8;  // elements of 16 bytes
  for (int i = threadIdx.x; i < ROWS * COLUMNS / CHUNK; i += THREADS) {
    const int r = i / (COLUMNS / CHUNK), c = i % (COLUMNS / CHUNK) * CHUNK;
    const uint32_t row = row0 + r, column = column0 + c;
    bf16* slot = to + r * PITCH + c;
    const bf16* line = from + static_cast<size_t>(row) * ld;
    if (ALIGNED) {
      const bool valid = row < height && column < width;
      cp_async16(slot, valid ? line + blocked(column, block, stride) : from, valid);
    } else {
#pragma unroll
      for (int e = 0; e < CHUNK; e++) {
        const bool valid = row < height && column + e < width;
        slot[e] = valid ? line[blocked(column + e, block, stride)] : from_f32<bf16>(0.f);
      }
    }
  }
}

// Its shared memory is a ring of STAGES x (A_SIZE + B_SIZE) elements, sized in
// src/op/cuda/gemm.rs.
template <Layout L, int BM, int BN, int BK, int WM, int WN, int STAGES>
struct GemmTile {
  static constexpr int THREADS = BM / WM * (BN / WN) * WARP;
  static constexpr int A_ROWS = L == Layout::Tn ? BK : BM,
                       A_PITCH = (L == Layout::Tn ? BM : BK) + GEMM_PAD;
  static constexpr int B_ROWS = L == Layout::Nt ? BN : BK,
                       B_PITCH = (L == Layout::Nt ? BK : BN) + GEMM_PAD;
  static constexpr int A_SIZE = A_ROWS * A_PITCH, B_SIZE = B_ROWS * B_PITCH;
};

template <Layout L, int BM, int BN, int BK, int WM, int WN, int STAGES, class TC, bool ALIGNED,
          bool ACT = false>
DEV void gemm_mma(const GemmParams& p) {
  using Tile = GemmTile<L, BM, BN, BK, WM, WN, STAGES>;
  DYN_SHARED(bf16, ring);
  bf16* const ring_b = ring + STAGES * Tile::A_SIZE;
  const bf16* const a = static_cast<const bf16*>(p.a);
  const bf16* const b = static_cast<const bf16*>(p.b);
  const uint32_t m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
  const int lane = lane_id(), warp_m = warp_id() / (BN / WN) * WM,
            warp_n = warp_id() % (BN / WN) * WN;

  auto fill = [&](int tile) {
    const int slot = tile % STAGES;
    const uint32_t k0 = tile * BK;
    if (L == Layout::Tn) {
      load_tile<BK, BM, Tile::A_PITCH, Tile::THREADS, ALIGNED>(ring + slot * Tile::A_SIZE, a, k0,
                                                               m0, p.k, p.m, p.lda, 0, 0);
    } else {
      load_tile<BM, BK, Tile::A_PITCH, Tile::THREADS, ALIGNED>(ring + slot * Tile::A_SIZE, a, m0,
                                                               k0, p.m, p.k, p.lda, 0, 0);
    }
    if (L == Layout::Nt) {
      load_tile<BN, BK, Tile::B_PITCH, Tile::THREADS, ALIGNED>(
          ring_b + slot * Tile::B_SIZE, b, n0, k0, p.n, p.k, p.ldb, p.b_block, p.b_stride);
    } else {
      load_tile<BK, BN, Tile::B_PITCH, Tile::THREADS, ALIGNED>(
          ring_b + slot * Tile::B_SIZE, b, k0, n0, p.k, p.n, p.ldb, p.b_block, p.b_stride);
    }
  };

  float sum[WM / 16][WN / 8][4] = {};
  const int tiles = (p.k + BK - 1) / BK;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < tiles) fill(s);
    cp_async_commit();
  }
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<STAGES - 2>();
    // The tile has arrived for all threads, and all are done with the one that is overwritten next.
    __syncthreads();
    if (tile + STAGES - 1 < tiles) fill(tile + STAGES - 1);
    cp_async_commit();
    const bf16* ta = ring + tile % STAGES * Tile::A_SIZE;
    const bf16* tb = ring_b + tile % STAGES * Tile::B_SIZE;
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      uint32_t fa[WM / 16][4], fb[WN / 16][4];
#pragma unroll
      for (int i = 0; i < WM / 16; i++) {
        const int row = warp_m + i * 16;
        if (L == Layout::Tn) {
          ldmatrix_x4_trans(fa[i], ta + (kk + (lane & 7) + (lane >> 4) * 8) * Tile::A_PITCH + row +
                                       ((lane >> 3) & 1) * 8);
        } else {
          ldmatrix_x4(fa[i], ta + (row + (lane & 15)) * Tile::A_PITCH + kk + (lane >> 4) * 8);
        }
      }
#pragma unroll
      for (int j = 0; j < WN / 16; j++) {
        const int column = warp_n + j * 16;
        if (L == Layout::Nt) {
          ldmatrix_x4(fb[j], tb + (column + (lane & 7) + (lane >> 4) * 8) * Tile::B_PITCH + kk +
                                 ((lane >> 3) & 1) * 8);
        } else {
          ldmatrix_x4_trans(fb[j],
                            tb + (kk + (lane & 15)) * Tile::B_PITCH + column + (lane >> 4) * 8);
        }
      }
#pragma unroll
      for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
          mma_bf16(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int j = 0; j < WN / 8; j++) {
    const uint32_t column = n0 + warp_n + j * 8 + lane % 4 * 2;
    // Blocks are multiples of 8 columns, so the next column follows.
    const size_t offset = blocked(column, p.c_block, p.c_stride);
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t row = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8;
        gemm_finish<bf16, TC, ACT>(p, row, column + e % 2, offset + e % 2, sum[i][j][e]);
      }
  }
}

// The same product by plain FMA, for operands of any dtype: the exact mode. 64 x 64 tiles, 4 x 4
// elements a thread; one accumulator per element, K in order.
template <Layout L, class TA, class TB, class TC, bool ACT = false>
DEV void gemm_fma(const GemmParams& p) {
  constexpr int TILE = FMA_TILE, BK = 16, THREADS = FMA_THREADS;
  SHARED(float, ta, BK * (TILE + 1));
  SHARED(float, tb, BK * (TILE + 1));
  const uint32_t m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  const int tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
  float sum[4][4] = {};
  for (uint32_t k0 = 0; k0 < p.k; k0 += BK) {
    for (int i = threadIdx.x; i < TILE * BK; i += THREADS) {
      // Neighbouring threads take neighbouring elements of memory.
      const int ra = L == Layout::Tn ? i % TILE : i / BK, ka = L == Layout::Tn ? i / TILE : i % BK;
      const uint32_t m = m0 + ra, k1 = k0 + ka;
      const size_t at_a = L == Layout::Tn ? static_cast<size_t>(k1) * p.lda + m
                                          : static_cast<size_t>(m) * p.lda + k1;
      ta[ka * (TILE + 1) + ra] = m < p.m && k1 < p.k ? load<TA>(p.a, at_a) : 0.f;
      const int rb = L == Layout::Nt ? i / BK : i % TILE, kb = L == Layout::Nt ? i % BK : i / TILE;
      const uint32_t n = n0 + rb, k2 = k0 + kb;
      const bool valid = n < p.n && k2 < p.k;
      const size_t at_b = L == Layout::Nt
                              ? static_cast<size_t>(n) * p.ldb + blocked(k2, p.b_block, p.b_stride)
                              : static_cast<size_t>(k2) * p.ldb + blocked(n, p.b_block, p.b_stride);
      tb[kb * (TILE + 1) + rb] = valid ? load<TB>(p.b, at_b) : 0.f;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < BK; kk++) {
      float va[4], vb[4];
#pragma unroll
      for (int i = 0; i < 4; i++) va[i] = ta[kk * (TILE + 1) + tm + i];
#pragma unroll
      for (int j = 0; j < 4; j++) vb[j] = tb[kk * (TILE + 1) + tn + j];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(va[i], vb[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const uint32_t column = n0 + tn + j;
    const size_t offset = blocked(column, p.c_block, p.c_stride);
#pragma unroll
    for (int i = 0; i < 4; i++) gemm_finish<TB, TC, ACT>(p, m0 + tm + i, column, offset, sum[i][j]);
  }
}
