// Kernels of src/op/ppo_policy.rs. Masked tokens are skipped, not multiplied by 0: their values may
// be infinite.
#include "lib/loss.cuh"

struct PpoPolicyParams {
  const float* logp;
  const float* old_logp;
  const float* advantages;
  const float* mask;
  float* loss;   // [1]
  float* stats;  // [6]
  const float* dloss;
  float* dlogp;
  uint32_t n;
  float clip, scale;
  uint32_t acc;
};

struct PolicyToken {
  double log_ratio, ratio, plain, clipped;
};

DEV PolicyToken policy_token(const PpoPolicyParams& p, uint32_t i) {
  double log_ratio = static_cast<double>(p.logp[i]) - static_cast<double>(p.old_logp[i]);
  double ratio = exp(log_ratio), a = p.advantages[i], c = p.clip;
  return {log_ratio, ratio, -a * ratio, -a * fmin(fmax(ratio, 1. - c), 1. + c)};
}

KERNEL(ppo_policy_forward_f32, PpoPolicyParams, LOSS_THREADS) {
  SHARED(double, partial, LOSS_THREADS / WARP);
  double sums[6];  // loss, mask, clipped, k3, k1, ratio
  double farthest = 0.;
  sum_tokens(p.n, sums, [&](uint32_t i, double(&s)[6]) {
    double m = p.mask[i];
    if (m == 0.) return;
    PolicyToken t = policy_token(p, i);
    bool clipped = t.clipped > t.plain;
    s[0] += m * (clipped ? t.clipped : t.plain);
    s[1] += m;
    s[2] += clipped ? m : 0.;
    s[3] += m * (expm1(t.log_ratio) - t.log_ratio);
    s[4] -= m * t.log_ratio;
    s[5] += m * t.ratio;
    farthest = fmax(farthest, fabs(t.ratio - 1.));
  });
  farthest = block_max_64<LOSS_THREADS>(farthest, partial);
  if (threadIdx.x != 0) return;
  p.loss[0] = static_cast<float>(static_cast<double>(p.scale) * sums[0]);
#pragma unroll
  for (int s = 0; s < 4; s++) p.stats[s] = static_cast<float>(sums[s + 1]);
  p.stats[4] = static_cast<float>(farthest);
  p.stats[5] = static_cast<float>(sums[5]);
}

// A thread per token. d(-A ratio)/d(logp) is -A ratio itself; a clipped token does not move.
KERNEL(ppo_policy_backward_f32, PpoPolicyParams, LOSS_THREADS) {
  uint32_t i = token_index();
  if (i >= p.n) return;
  double slope = 0., m = p.mask[i];
  if (m != 0.) {
    PolicyToken t = policy_token(p, i);
    slope = static_cast<double>(p.scale) * m * (t.clipped > t.plain ? 0. : t.plain);
  }
  store<float>(p.dlogp, i, static_cast<float>(static_cast<double>(p.dloss[0]) * slope), p.acc);
}
