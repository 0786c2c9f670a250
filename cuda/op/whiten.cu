// Kernel of src/op/whiten.rs, in one block. Masked positions are skipped, not multiplied by 0:
// their values may be infinite.
#include "lib/loss.cuh"

struct WhitenParams {
  const float* x;
  const float* mask;
  float* y;
  uint32_t n;
  uint32_t shift_mean;
};

KERNEL(whiten_f32, WhitenParams, LOSS_THREADS) {
  double first[2], second[1];
  sum_tokens(p.n, first, [&](uint32_t i, double(&s)[2]) {
    double m = p.mask[i];
    if (m == 0.) return;
    s[0] += m;
    s[1] += m * static_cast<double>(p.x[i]);
  });
  double weight = first[0], mean = first[1] / weight;
  sum_tokens(p.n, second, [&](uint32_t i, double(&s)[1]) {
    double m = p.mask[i];
    if (m == 0.) return;
    double d = static_cast<double>(p.x[i]) - mean;
    s[0] += m * (d * d);
  });
  double rstd = 1. / sqrt(second[0] / weight + 1e-8), shift = p.shift_mean ? 0. : mean;
  for (uint32_t i = threadIdx.x; i < p.n; i += LOSS_THREADS) {
    double white = (static_cast<double>(p.x[i]) - mean) * rstd + shift;
    p.y[i] = p.mask[i] == 0.f ? 0.f : static_cast<float>(white);
  }
}
