// Neighbouring elements that one thread takes: f32 in registers, one or two wide accesses in memory
// where the host says that addresses allow it, else one access each.
#pragma once
#include "lib/types.cuh"

// Flags that kernels share; further ones begin at FLAG_OWN.
constexpr uint32_t FLAG_ALIGNED = 1;  // every vector begins at a multiple of its size
constexpr uint32_t FLAG_ADD = 2;      // add to the output instead of setting it
constexpr uint32_t FLAG_OWN = 4;

// Threads of a block whose threads take a vector each.
constexpr int VEC_THREADS = 256;
// Bytes of a vector that is moved at once.
constexpr int VEC_BYTES = 16;
// Elements of T in as many.
template <class T>
constexpr int VEC = VEC_BYTES / static_cast<int>(sizeof(T));

DEV void unpack(const uint32_t* w, float* v, int n, float) {
#pragma unroll
  for (int k = 0; k < n; k++) v[k] = __uint_as_float(w[k]);
}
DEV void unpack(const uint32_t* w, float* v, int n, bf16) {
#pragma unroll
  for (int k = 0; k < n / 2; k++) {
    v[2 * k] = __uint_as_float(w[k] << 16);
    v[2 * k + 1] = __uint_as_float(w[k] & 0xffff0000u);
  }
}
DEV void pack(uint32_t* w, const float* v, int n, float) {
#pragma unroll
  for (int k = 0; k < n; k++) w[k] = __float_as_uint(v[k]);
}
DEV void pack(uint32_t* w, const float* v, int n, bf16) {
#pragma unroll
  for (int k = 0; k < n / 2; k++) w[k] = pack_bf16(v[2 * k], v[2 * k + 1]);
}

// The n <= N elements from element i of the array p, and zeros.
template <class T, int N>
DEV void load_vec(const void* p, size_t i, int n, bool aligned, float (&v)[N]) {
  constexpr int WORDS = N * static_cast<int>(sizeof(T)) / 4;
  static_assert(WORDS % 2 == 0, "a vector is a multiple of 8 bytes");
  const T* at = static_cast<const T*>(p) + i;
  if (aligned && n == N) {
    uint32_t w[WORDS];
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
      for (int k = 0; k < WORDS / 4; k++) {
        const uint4 q = reinterpret_cast<const uint4*>(at)[k];
        w[4 * k] = q.x, w[4 * k + 1] = q.y, w[4 * k + 2] = q.z, w[4 * k + 3] = q.w;
      }
    } else {
      const uint2 q = *reinterpret_cast<const uint2*>(at);
      w[0] = q.x, w[1] = q.y;
    }
    unpack(w, v, N, T{});
    return;
  }
#pragma unroll
  for (int k = 0; k < N; k++) v[k] = k < n ? to_f32(at[k]) : 0.f;
}

// Sets the n <= N elements from element i of the array p.
template <class T, int N>
DEV void store_vec(void* p, size_t i, int n, bool aligned, const float (&v)[N]) {
  constexpr int WORDS = N * static_cast<int>(sizeof(T)) / 4;
  T* at = static_cast<T*>(p) + i;
  if (aligned && n == N) {
    uint32_t w[WORDS];
    pack(w, v, N, T{});
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
      for (int k = 0; k < WORDS / 4; k++)
        reinterpret_cast<uint4*>(at)[k] = uint4{w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3]};
    } else {
      *reinterpret_cast<uint2*>(at) = uint2{w[0], w[1]};
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < N; k++)
    if (k < n) at[k] = from_f32<T>(v[k]);
}

// Sets elements, or with FLAG_ADD adds to them; rounded once.
template <class T, int N>
DEV void put_vec(void* p, size_t i, int n, uint32_t flags, float (&v)[N]) {
  const bool aligned = flags & FLAG_ALIGNED;
  if (flags & FLAG_ADD) {
    float old[N];
    load_vec<T>(p, i, n, aligned, old);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = old[k] + v[k];
  }
  store_vec<T>(p, i, n, aligned, v);
}

// The first element of this thread's vector in an array cut into vectors of N.
template <int N>
DEV size_t vec_start() {
  return (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
}

// Elements that are left for a vector of N.
template <int N>
DEV int vec_count(size_t left) {
  return left < N ? static_cast<int>(left) : N;
}

// This thread's vector in a matrix whose rows are cut into vectors; n is 0 for threads beyond the
// matrix.
struct RowVec {
  uint32_t row, column;
  int n;
};
template <int N>
DEV RowVec row_vec(uint32_t rows, uint32_t width) {
  const uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x, per_row = (width + N - 1) / N;
  const uint32_t row = unit / per_row, column = unit % per_row * N;
  return {row, column, row < rows ? vec_count<N>(width - column) : 0};
}
