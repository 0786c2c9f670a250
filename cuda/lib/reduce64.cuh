// The reductions of reduce.cuh for values of 64 bits: f64 where many numbers are added up, u64
// where the sum must be exact.
#pragma once
#include "lib/kernel.cuh"

// `shuffle` applied to both halves of a value.
template <class T, class F>
DEV T shuffle_halves(T v, const F& shuffle) {
  static_assert(sizeof(T) == 8, "two halves of 32 bits");
  uint32_t half[2];
  memcpy(half, &v, 8);
  half[0] = shuffle(half[0]);
  half[1] = shuffle(half[1]);
  memcpy(&v, half, 8);
  return v;
}

template <class T>
DEV T shfl_xor_64(T v, int lanes) {
  return shuffle_halves(v, [=](uint32_t h) { return __shfl_xor_sync(FULL, h, lanes); });
}
template <class T>
DEV T shfl_up_64(T v, int lanes) {
  return shuffle_halves(v, [=](uint32_t h) { return __shfl_up_sync(FULL, h, lanes); });
}
template <class T>
DEV T shfl_64(T v, int lane) {
  return shuffle_halves(v, [=](uint32_t h) { return __shfl_sync(FULL, h, lane); });
}

template <class T>
DEV T warp_sum_64(T v) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) v += shfl_xor_64(v, step);
  return v;
}

template <class T>
DEV T warp_max_64(T v) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) {
    T other = shfl_xor_64(v, step);
    v = other > v ? other : v;
  }
  return v;
}

// Over a block of `THREADS` threads, known to all of them; `partial` is shared memory for one value
// per warp.
template <int THREADS, class T>
DEV T block_sum_64(T v, T* partial) {
  v = warp_sum_64(v);
  __syncthreads();
  if (lane_id() == 0) partial[warp_id()] = v;
  __syncthreads();
  T sum = partial[0];
#pragma unroll
  for (int w = 1; w < THREADS / WARP; w++) sum += partial[w];
  return sum;
}

template <int THREADS, class T>
DEV T block_max_64(T v, T* partial) {
  v = warp_max_64(v);
  __syncthreads();
  if (lane_id() == 0) partial[warp_id()] = v;
  __syncthreads();
  T largest = partial[0];
#pragma unroll
  for (int w = 1; w < THREADS / WARP; w++) largest = partial[w] > largest ? partial[w] : largest;
  return largest;
}
