// Kernels of src/op/logprob.rs: a block per row of logits, which a GEMM has just put into scratch.
#include "lib/fault.cuh"
#include "lib/softmax.cuh"
#include "lib/types.cuh"

struct LogProbParams {
  float* logits;  // [rows, ld]
  const int32_t* targets;
  float* logp;
  float* entropy;
  float* lse;
  uint32_t* fault;
  uint32_t vocab, ld;
  float inv_t, softcap;
};

// Caps the row in place where there is a cap.
template <int THREADS>
DEV void logprob_rows_of(const LogProbParams& p) {
  SHARED(SoftmaxShared, shared, 1);
  uint32_t t = blockIdx.x;
  float* z = p.logits + static_cast<size_t>(t) * p.ld;
  if (p.softcap != 0.f)
    for (uint32_t i = threadIdx.x; i < p.vocab; i += THREADS) z[i] = softcap(z[i], p.softcap);
  SoftmaxRow row = softmax_row<THREADS>(z, p.vocab, p.inv_t, shared[0]);
  if (threadIdx.x != 0) return;
  uint32_t target = static_cast<uint32_t>(p.targets[t]);
  if (target >= p.vocab) {
    // With these backward makes the whole row NaN too.
    report_fault(p.fault, FAULT_TOKEN);
    p.logp[t] = p.entropy[t] = p.lse[t] = NAN;
    return;
  }
  p.logp[t] = softmax_logp(row, z[target], p.inv_t);
  p.entropy[t] = row.entropy;
  p.lse[t] = row.max + row.log_sum;
}
KERNEL(logprob_rows, LogProbParams, ROW_THREADS) { logprob_rows_of<ROW_THREADS>(p); }
KERNEL(logprob_rows_small, LogProbParams, SMALL_ROW_THREADS) {
  logprob_rows_of<SMALL_ROW_THREADS>(p);
}

struct LogProbSlopeParams {
  const float* logits;  // [rows, ld]
  void* dlogits;        // [rows, ld], may be the same memory where it is f32
  const int32_t* targets;
  const float* entropy;
  const float* lse;
  const float* dlogp;     // or null
  const float* dentropy;  // or null
  uint32_t vocab, ld;
  float inv_t, softcap;
  float to_cap;  // the cap again, or 0 where the logits went through it already
  uint32_t pad;
};

constexpr uint32_t AT_ONCE = 4;

// The gradient by the logits: g_logp (onehot - p) / T - g_entropy p (log p + H) / T, and through a
// cap z = cap tanh(l / cap) times 1 - (z / cap)^2.
template <class T>
DEV void logprob_slope(const LogProbSlopeParams& p) {
  uint32_t t = blockIdx.x;
  size_t row = static_cast<size_t>(t) * p.ld;
  float lse = p.lse[t], entropy = p.entropy[t];
  float by_target = (p.dlogp ? p.dlogp[t] : 0.f) * p.inv_t;
  float by_plogp = -(p.dentropy ? p.dentropy[t] : 0.f) * p.inv_t;
  uint32_t target = static_cast<uint32_t>(p.targets[t]);
  // Several logits are read before gradients are written, perhaps to the same memory: then their
  // reads overlap.
  for (uint32_t start = threadIdx.x; start < p.vocab; start += AT_ONCE * blockDim.x) {
    float logits[AT_ONCE];
#pragma unroll
    for (uint32_t k = 0; k < AT_ONCE; k++) {
      uint32_t i = start + k * blockDim.x;
      logits[k] = i < p.vocab ? p.logits[row + i] : 0.f;
    }
#pragma unroll
    for (uint32_t k = 0; k < AT_ONCE; k++) {
      uint32_t i = start + k * blockDim.x;
      if (i >= p.vocab) break;
      float z = softcap(logits[k], p.to_cap);
      float logp, prob = exp_bounded(z * p.inv_t - lse, logp);
      float slope = prob * fmaf(by_plogp, logp + entropy, -by_target);
      if (i == target) slope += by_target;
      if (p.softcap != 0.f) {
        float c = z / p.softcap;
        slope *= 1.f - c * c;
      }
      store<T>(p.dlogits, row + i, slope);
    }
  }
}
KERNEL(logprob_slope_f32, LogProbSlopeParams, ROW_THREADS) { logprob_slope<float>(p); }
KERNEL(logprob_slope_bf16, LogProbSlopeParams, ROW_THREADS) { logprob_slope<bf16>(p); }
