// Kernels of src/op/weighted_sum.rs.
#include "lib/loss.cuh"

struct WeightedSumParams {
  const float* x;
  const float* w;
  float* sum;  // [1]
  const float* dsum;
  float* dx;
  uint32_t n;
  float scale;
  uint32_t acc;
  uint32_t padding;
};

KERNEL(weighted_sum_forward_f32, WeightedSumParams, LOSS_THREADS) {
  double sums[1];
  sum_tokens(p.n, sums, [&](uint32_t i, double(&s)[1]) {
    s[0] += static_cast<double>(p.x[i]) * static_cast<double>(p.w[i]);
  });
  if (threadIdx.x == 0) p.sum[0] = static_cast<float>(static_cast<double>(p.scale) * sums[0]);
}

// A thread per token.
KERNEL(weighted_sum_backward_f32, WeightedSumParams, LOSS_THREADS) {
  uint32_t i = token_index();
  if (i >= p.n) return;
  double slope = static_cast<double>(p.scale) * static_cast<double>(p.w[i]);
  store<float>(p.dx, i, static_cast<float>(static_cast<double>(p.dsum[0]) * slope), p.acc);
}
