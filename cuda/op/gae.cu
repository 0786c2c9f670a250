// Kernel of src/op/gae.rs: a warp per sequence, 32 tokens at a time from its end. A_t = delta_t + c
// A_{t+1} is a linear recurrence, so five steps of a scan over the lanes do those 32.
#include "lib/fault.cuh"
#include "lib/reduce64.cuh"

constexpr int GAE_THREADS = 128;

struct GaeParams {
  const float* rewards;
  const float* values;
  const int32_t* cu_seqlens;  // [sequences + 1]
  float* advantages;
  float* returns;
  uint32_t* fault;
  uint32_t tokens, sequences;
  float gamma, lambda;
};

KERNEL(gae_f32, GaeParams, GAE_THREADS) {
  uint32_t s = blockIdx.x * (GAE_THREADS / WARP) + warp_id();
  if (s >= p.sequences) return;
  int32_t start = p.cu_seqlens[s], end = p.cu_seqlens[s + 1], n = static_cast<int32_t>(p.tokens);
  bool first_fits = s > 0 || start == 0, last_fits = s + 1 < p.sequences || end == n;
  if (start < 0 || start > end || end > n || !first_fits || !last_fits) {
    report_fault(p.fault, FAULT_LENGTHS);
    return;
  }
  double gamma = p.gamma, decay = gamma * static_cast<double>(p.lambda);
  int lane = lane_id();
  // decay^(lane + 1): what the advantage after these 32 tokens counts for in lane's.
  double reach = decay;
  for (int i = 0; i < lane; i++) reach *= decay;
  double later = 0.;
  for (int32_t last = end - 1; last >= start; last -= WARP) {
    int32_t t = last - lane;
    bool inside = t >= start;
    double value = inside ? p.values[t] : 0.f;
    double next = inside && t + 1 < end ? p.values[t + 1] : 0.f;
    double advantage = inside ? p.rewards[t] + gamma * next - value : 0.;
    double power = decay;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
      double before = shfl_up_64(advantage, step);
      if (lane >= step) advantage += power * before;
      power *= power;
    }
    advantage += reach * later;
    later = shfl_64(advantage, WARP - 1);
    if (inside) {
      p.advantages[t] = static_cast<float>(advantage);
      p.returns[t] = static_cast<float>(advantage + value);
    }
  }
}
