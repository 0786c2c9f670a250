// Kernels of src/op/ppo_value.rs. Masked tokens are skipped, not multiplied by 0: their values may
// be infinite.
#include "lib/loss.cuh"

struct PpoValueParams {
  const float* values;
  const float* old_values;
  const float* returns;
  const float* mask;
  float* loss;   // [1]
  float* stats;  // [4]
  const float* dloss;
  float* dvalues;
  uint32_t n;
  float clip, scale;
  uint32_t acc;
};

// Errors of the plain and of the clipped value of a token.
struct ValueErrors {
  double plain, clipped;
};

DEV ValueErrors value_errors(const PpoValueParams& p, uint32_t i) {
  double v = p.values[i], old = p.old_values[i], target = p.returns[i], c = p.clip;
  double near = c > 0. ? fmin(fmax(v, old - c), old + c) : v;
  return {v - target, near - target};
}

KERNEL(ppo_value_forward_f32, PpoValueParams, LOSS_THREADS) {
  double sums[5];  // loss, then the stats
  sum_tokens(p.n, sums, [&](uint32_t i, double(&s)[5]) {
    double m = p.mask[i];
    if (m == 0.) return;
    ValueErrors e = value_errors(p, i);
    double plain = e.plain * e.plain, clipped = e.clipped * e.clipped;
    s[0] += m * (clipped > plain ? clipped : plain);
    s[1] += m;
    s[2] += clipped > plain ? m : 0.;
    s[3] += m * plain;
    s[4] += m * static_cast<double>(p.values[i]);
  });
  if (threadIdx.x != 0) return;
  p.loss[0] = static_cast<float>(static_cast<double>(p.scale) * 0.5 * sums[0]);
#pragma unroll
  for (int s = 0; s < 4; s++) p.stats[s] = static_cast<float>(sums[s + 1]);
}

// A thread per token. Where the clipped error is the larger one, the value is outside its range and
// that error does not move with it.
KERNEL(ppo_value_backward_f32, PpoValueParams, LOSS_THREADS) {
  uint32_t i = token_index();
  if (i >= p.n) return;
  double slope = 0., m = p.mask[i];
  if (m != 0.) {
    ValueErrors e = value_errors(p, i);
    if (!(e.clipped * e.clipped > e.plain * e.plain))
      slope = static_cast<double>(p.scale) * m * e.plain;
  }
  store<float>(p.dvalues, i, static_cast<float>(static_cast<double>(p.dloss[0]) * slope), p.acc);
}
