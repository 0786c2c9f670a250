// Kernels of src/op/bradley_terry.rs.
#include "lib/loss.cuh"

struct BradleyTerryParams {
  const float* chosen;
  const float* rejected;
  const float* weights;
  float* loss;   // [1]
  float* stats;  // [2]
  const float* dloss;
  float* dchosen;    // or null
  float* drejected;  // or null
  uint32_t n;
  float scale;
  uint32_t acc_chosen, acc_rejected;
};

KERNEL(bradley_terry_forward_f32, BradleyTerryParams, LOSS_THREADS) {
  double sums[3];  // loss, won, margin
  sum_tokens(p.n, sums, [&](uint32_t i, double (&s)[3]) {
    double d = static_cast<double>(p.chosen[i]) - static_cast<double>(p.rejected[i]),
           w = p.weights[i];
    // -log sigmoid(d) without overflow on either side.
    s[0] += w * (fmax(-d, 0.) + log1p(exp(-fabs(d))));
    s[1] += d > 0. ? w : 0.;
    s[2] += w * d;
  });
  if (threadIdx.x != 0) return;
  p.loss[0] = static_cast<float>(static_cast<double>(p.scale) * sums[0]);
  p.stats[0] = static_cast<float>(sums[1]);
  p.stats[1] = static_cast<float>(sums[2]);
}

// A thread per pair.
KERNEL(bradley_terry_backward_f32, BradleyTerryParams, LOSS_THREADS) {
  uint32_t i = token_index();
  if (i >= p.n) return;
  double d = static_cast<double>(p.chosen[i]) - static_cast<double>(p.rejected[i]);
  double slope = -static_cast<double>(p.scale) * static_cast<double>(p.weights[i]) / (1. + exp(d));
  float grad = static_cast<float>(static_cast<double>(p.dloss[0]) * slope);
  if (p.dchosen) store<float>(p.dchosen, i, grad, p.acc_chosen);
  if (p.drejected) store<float>(p.drejected, i, -grad, p.acc_rejected);
}
