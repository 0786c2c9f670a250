// Sums and maxima over the threads of a warp or block, always in the same order.
#pragma once
#include "lib/kernel.cuh"

DEV float warp_sum(float v) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL, v, step);
  return v;
}

DEV float warp_max(float v) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
  return v;
}

// The sum over a block of `THREADS` threads, known to all of them. `partial` is shared memory for
// one value per warp; it may be used again after the next barrier.
template <int THREADS>
DEV float block_sum(float v, float* partial) {
  v = warp_sum(v);
  __syncthreads();
  if (lane_id() == 0) partial[warp_id()] = v;
  __syncthreads();
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < THREADS / WARP; w++) sum += partial[w];
  return sum;
}

template <int THREADS>
DEV float block_max(float v, float* partial) {
  v = warp_max(v);
  __syncthreads();
  if (lane_id() == 0) partial[warp_id()] = v;
  __syncthreads();
  float largest = partial[0];
#pragma unroll
  for (int w = 1; w < THREADS / WARP; w++) largest = fmaxf(largest, partial[w]);
  return largest;
}
