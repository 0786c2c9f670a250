// Copies the keys and values of new tokens to their slots in the cache.
#pragma once
#include "tile/attend.cuh"

// A block per token: all its heads, keys then values.
template <class T>
DEV void attend_append(const AttendParams& p) {
  const int token = static_cast<int>(blockIdx.x);
  const Work work = find_work(p, 1, 1, token);
  if (!work.found) return;
  const PagedKeys<T> first(p, work, 0);
  if (!first.fits()) return;
  const int64_t at = first.offset(first.start + work.tile);
  if (at < 0) return;
  const size_t d = p.head_dim, columns = p.kv_heads * d;
  const T* from =
      static_cast<const T*>(p.qkv) + (work.first + work.tile) * width_of(p) + p.heads * d;
  constexpr int PIECE = 16 / sizeof(T);
  const bool aligned = p.flags & ATTEND_ALIGNED;
  const size_t step = aligned ? PIECE : 1;
  for (size_t i = threadIdx.x * step; i < 2 * columns; i += blockDim.x * step) {
    const bool value = i >= columns;
    const size_t column = value ? i - columns : i;
    T* to = static_cast<T*>(value ? p.vcache : p.kcache) + at + column / d * BLOCK_KEYS * d +
            column % d;
    if (aligned)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from + i);
    else
      *to = from[i];
  }
}
