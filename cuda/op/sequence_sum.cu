// Kernels of src/op/sequence_sum.rs: a block per sequence. The order in which one is added up
// follows from its own length alone, so its sum has the same bits in every batch.
#include "lib/fault.cuh"
#include "lib/loss.cuh"

struct SequenceSumParams {
  const float* x;
  const int32_t* cu_seqlens;  // [sequences + 1]
  const float* offsets;       // [tokens]
  float* y;                   // [sequences]
  const float* dy;
  float* dx;
  uint32_t* fault;
  uint32_t tokens, sequences;
  float scale;
  uint32_t acc;
};

// First token and length of this block's sequence.
struct SequenceTokens {
  uint32_t start, length;
};

// False, with a fault, where the bounds of this block's sequence do not fit.
DEV bool find_tokens(const SequenceSumParams& p, SequenceTokens& found) {
  uint32_t s = blockIdx.x;
  int32_t start = p.cu_seqlens[s], end = p.cu_seqlens[s + 1], n = static_cast<int32_t>(p.tokens);
  bool first_fits = s > 0 || start == 0, last_fits = s + 1 < p.sequences || end == n;
  if (start < 0 || start > end || end > n || !first_fits || !last_fits) {
    report_fault(p.fault, FAULT_LENGTHS);
    return false;
  }
  found = {static_cast<uint32_t>(start), static_cast<uint32_t>(end - start)};
  return true;
}

KERNEL(sequence_sum_forward_f32, SequenceSumParams, LOSS_THREADS) {
  SequenceTokens tokens;
  if (!find_tokens(p, tokens)) return;
  const float* x = p.x + tokens.start;
  const float* offsets = p.offsets + tokens.start;
  double sums[1];
  sum_tokens(tokens.length, sums, [&](uint32_t i, double(&s)[1]) {
    s[0] += static_cast<double>(x[i]) - static_cast<double>(offsets[i]);
  });
  if (threadIdx.x != 0) return;
  p.y[blockIdx.x] = static_cast<float>(static_cast<double>(p.scale) * sums[0]);
}

KERNEL(sequence_sum_backward_f32, SequenceSumParams, LOSS_THREADS) {
  SequenceTokens tokens;
  if (!find_tokens(p, tokens)) return;
  float* dx = p.dx + tokens.start;
  float slope =
      static_cast<float>(static_cast<double>(p.scale) * static_cast<double>(p.dy[blockIdx.x]));
  for (uint32_t i = threadIdx.x; i < tokens.length; i += LOSS_THREADS)
    store<float>(dx, i, slope, p.acc);
}
