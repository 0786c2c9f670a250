// The one softmax row routine: `sample` and `logprob` both take log-probabilities from here, with
// blocks of the same size, so that they are equal bit for bit.
#pragma once
#include "lib/reduce.cuh"
#include "lib/reduce64.cuh"

// Threads of a block that works on one row, and of one that works on a row of a small vocabulary,
// at most SMALL_VOCAB: the vocabulary alone decides. Thread t has elements t, t + THREADS, ...
constexpr int ROW_THREADS = 512;
constexpr int SMALL_ROW_THREADS = 64;
constexpr int SMALL_VOCAB = 1024;
// Elements of a thread after which its running f32 sums are added to f64 totals.
constexpr int ROW_STRETCH = 16;
// Below this an exponential counts as 0: it would leave the normal f32 range.
constexpr float LOWEST_EXPONENT = -87.f;

// Statistics of softmax(z / T) of one row, in natural logarithms.
struct SoftmaxRow {
  float max;      // largest z / T
  float log_sum;  // logarithm of the sum of exp(z / T - max)
  float entropy;
};

// z = cap tanh(z / cap), or z where the cap is 0. NaN stays NaN.
DEV float softcap(float z, float cap) { return cap == 0.f ? z : cap * tanhf(z / cap); }

// e^x, and x bounded below so that their product is finite. NaN stays NaN.
DEV float exp_bounded(float x, float& bounded) {
  bool low = x < LOWEST_EXPONENT;
  bounded = low ? LOWEST_EXPONENT : x;
  return low ? 0.f : expf(bounded);
}

// Shared memory of `softmax_row`.
struct SoftmaxShared {
  double sums[ROW_THREADS / WARP];
  float maxima[ROW_THREADS / WARP];
};

// A NaN or +inf, or -inf everywhere, makes log_sum NaN. All threads of the block get the result.
template <int THREADS>
DEV SoftmaxRow softmax_row(const float* z, uint32_t n, float inv_t, SoftmaxShared& shared) {
  float largest = -INFINITY;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < n; i += THREADS) largest = fmaxf(largest, z[i]);
  float max = block_max<THREADS>(largest, shared.maxima) * inv_t;
  double sum = 0., dot = 0.;
  for (uint32_t start = 0; start < n; start += THREADS * ROW_STRETCH) {
    float sums = 0.f, dots = 0.f;
#pragma unroll 4
    for (uint32_t k = 0; k < ROW_STRETCH; k++) {
      uint32_t i = start + k * THREADS + threadIdx.x;
      // Past the end there is nothing of any weight.
      float d, e = exp_bounded((i < n ? z[i] : -INFINITY) * inv_t - max, d);
      sums += e;
      dots = fmaf(e, d, dots);
    }
    sum += static_cast<double>(sums);
    dot += static_cast<double>(dots);
  }
  sum = block_sum_64<THREADS>(sum, shared.sums);
  dot = block_sum_64<THREADS>(dot, shared.sums);
  // H = log sum e^d - (sum e^d d) / sum e^d, with d = z / T - max.
  double log_sum = log(sum);
  return {max, static_cast<float>(log_sum), static_cast<float>(log_sum - dot / sum)};
}

// The log-probability of a token from its logit.
DEV float softmax_logp(const SoftmaxRow& row, float logit, float inv_t) {
  return (logit * inv_t - row.max) - row.log_sum;
}
