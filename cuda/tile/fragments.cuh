// bf16 tiles in shared memory and their pieces in registers, as ldmatrix and mma m16n8k16 have
// them.
//
// A piece of a result: element e of piece n is row lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4)
// + e % 2. Two pieces side by side, rounded, are the left operand of the next product.
#pragma once
#include "lib/types.cuh"

// Rows of D columns, D a multiple of 16, arranged so that eight rows of a column of eight elements
// lie in different banks: pieces of 16 bytes trade places within a row where D is a power of two,
// other rows are spaced apart.
template <int D>
struct Tile {
  static constexpr bool SWIZZLED = D % 64 == 0 && (D & (D - 1)) == 0;
  static constexpr int STRIDE = SWIZZLED ? D : D + 8;
  bf16* data;
  // Row, and column of which it is a multiple of 8.
  METHOD bf16* at(int row, int column) const {
    return data + row * STRIDE + (SWIZZLED ? column ^ ((row & 7) * 8) : column);
  }
};

// Rows row..row+16, columns column..column+16 as a left operand.
template <int D>
DEV void load_left(uint32_t (&r)[4], Tile<D> t, int row, int column) {
  ldmatrix_x4(r, t.at(row + (lane_id() & 15), column + (lane_id() >> 4) * 8));
}

// Right operand of a product with the transpose: rows row..row+16 are its columns, r[0] and r[1]
// for the first eight.
template <int D>
DEV void load_right_transposed(uint32_t (&r)[4], Tile<D> t, int row, int column) {
  const int lane = lane_id();
  ldmatrix_x4(r, t.at(row + (lane & 7) + (lane >> 4) * 8, column + ((lane >> 3) & 1) * 8));
}

// Right operand of a product with the tile itself: eight columns, r[0] and r[1] for rows
// row..row+16, the others for the next 16.
template <int D>
DEV void load_right(uint32_t (&r)[4], Tile<D> t, int row, int column) {
  ldmatrix_x4_trans(r, t.at(row + lane_id(), column));
}

// d += a b' for `16 rows a` of rows a_row.. and 8 N rows b_row.. of b, over all D columns in order.
template <int D, int N>
DEV void multiply_transposed(float (&d)[N][4], Tile<D> a, int a_row, Tile<D> b, int b_row) {
  static_assert(N % 2 == 0, "16 rows at a time");
#pragma unroll 4
  for (int k = 0; k < D; k += 16) {
    uint32_t left[4];
    load_left(left, a, a_row, k);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t right[4];
      load_right_transposed(right, b, b_row + n * 8, k);
      mma_bf16(d[n], left, right[0], right[1]);
      mma_bf16(d[n + 1], left, right[2], right[3]);
    }
  }
}

// A result, rounded, as left operands.
template <int K>
DEV void round_left(uint32_t (&left)[K][4], const float (&a)[2 * K][4]) {
#pragma unroll
  for (int k = 0; k < K; k++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      left[k][i] = pack_bf16(a[2 * k + i / 2][i % 2 * 2], a[2 * k + i / 2][i % 2 * 2 + 1]);
}

// d += left b for `left` of 16 rows and 16 K columns, rows row.. and columns column.. of b, over
// the rows of b in order.
template <int D, int K, int N>
DEV void multiply(float (&d)[N][4], const uint32_t (&left)[K][4], Tile<D> b, int row, int column) {
  static_assert(K % 2 == 0, "32 rows at a time");
#pragma unroll
  for (int k = 0; k < K; k += 2)
#pragma unroll
    for (int n = 0; n < N; n++) {
      uint32_t right[4];
      load_right(right, b, row + k * 16, column + n * 8);
      mma_bf16(d[n], left[k], right[0], right[1]);
      mma_bf16(d[n], left[k + 1], right[2], right[3]);
    }
}

// Operands that some warps make together, each of them its part, and all take, lane for lane; a
// barrier goes between.
template <int K>
DEV void put_left(uint4* between, const uint32_t (&left)[K][4], int part) {
#pragma unroll
  for (int k = 0; k < K; k++)
    between[(part * K + k) * WARP + lane_id()] = {left[k][0], left[k][1], left[k][2], left[k][3]};
}
template <int K>
DEV void get_left(uint32_t (&left)[K][4], const uint4* between) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    const uint4 operand = between[k * WARP + lane_id()];
    left[k][0] = operand.x;
    left[k][1] = operand.y;
    left[k][2] = operand.z;
    left[k][3] = operand.w;
  }
}

// Starts the copy of ROWS rows of `columns` elements, of which `valid` exist, to a tile; the rest
// becomes 0. `from(r)` is row r. Aligned rows are copied in the background: commit and wait.
template <int D, int ROWS, int THREADS, class From>
DEV void load_tile(Tile<D> to, From from, int valid, int columns, bool aligned) {
  constexpr int PIECES = D / 8;
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
    const int row = i / PIECES, column = i % PIECES * 8;
    const bool inside = row < valid && column < columns;
    const bf16* source = from(inside ? row : 0);
    if (aligned) {
      cp_async16(to.at(row, column), inside ? source + column : source, inside);
      continue;
    }
    bf16 piece[8];
#pragma unroll
    for (int e = 0; e < 8; e++)
      piece[e] = inside && column + e < columns ? source[column + e] : from_f32<bf16>(0.f);
#pragma unroll
    for (int e = 0; e < 8; e++) to.at(row, column)[e] = piece[e];
  }
}

// Two neighbours of a row of `columns` elements; `column` is even. Aligned rows take them as one
// word.
DEV void store_pair(bf16* row, int column, int columns, float a, float b, bool aligned, bool add) {
  if (column >= columns) return;
  if (add) {
    a += to_f32(row[column]);
    if (column + 1 < columns) b += to_f32(row[column + 1]);
  }
  if (aligned) {
    *reinterpret_cast<uint32_t*>(row + column) = pack_bf16(a, b);
    return;
  }
  row[column] = from_f32<bf16>(a);
  if (column + 1 < columns) row[column + 1] = from_f32<bf16>(b);
}
