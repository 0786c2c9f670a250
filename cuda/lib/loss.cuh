// What the scalar losses share. Tokens are few (they are not elements of activations), so one block
// adds them all up, in f64, in an order that follows from their number alone.
#pragma once
#include "lib/reduce64.cuh"
#include "lib/types.cuh"

constexpr int LOSS_THREADS = 512;

// `add(i, sums)` for all tokens i of this thread, then the N sums over the block.
template <int N, class F>
DEV void sum_tokens(uint32_t n, double (&sums)[N], const F& add) {
  SHARED(double, partial, LOSS_THREADS / WARP);
#pragma unroll
  for (int s = 0; s < N; s++) sums[s] = 0.;
  for (uint32_t i = threadIdx.x; i < n; i += LOSS_THREADS) add(i, sums);
#pragma unroll
  for (int s = 0; s < N; s++) sums[s] = block_sum_64<LOSS_THREADS>(sums[s], partial);
}

// This thread's token in a kernel with a thread per token.
DEV uint32_t token_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
