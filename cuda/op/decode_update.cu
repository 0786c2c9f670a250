// The end of a decode step: see src/op/decode_update.rs, whose rows of the state these are.
#include "lib/eos.cuh"
#include "lib/types.cuh"

struct DecodeUpdateParams {
  const int32_t* tokens;
  const float* logprobs;
  int32_t* state;  // [7, b]
  int32_t* out;    // [b, steps]
  float* out_logprobs;
  uint32_t b, steps;
  int32_t eos[MAX_EOS];
  uint32_t eos_count, zero;
};
enum { TOKEN, POSITION, DRAW, FORBID_EOS, LEFT, BEFORE_EOS, MADE };
constexpr int DECODE_UPDATE_THREADS = 128;

KERNEL(decode_update, DecodeUpdateParams, DECODE_UPDATE_THREADS) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.b) return;
  int32_t* state = p.state + i;
  const int32_t made = state[MADE * p.b], left = state[LEFT * p.b];
  if (left <= 0 || made >= static_cast<int32_t>(p.steps)) return;
  const int32_t token = p.tokens[i];
  p.out[i * p.steps + made] = token;
  p.out_logprobs[i * p.steps + made] = p.logprobs[i];
  bool ended = false;
  for (uint32_t e = 0; e < p.eos_count; e++) ended |= token == p.eos[e];
  const int32_t before = max(state[BEFORE_EOS * p.b] - 1, 0);
  state[TOKEN * p.b] = token;
  state[POSITION * p.b] += 1;
  state[DRAW * p.b] += 1;
  state[LEFT * p.b] = ended ? 0 : left - 1;
  state[BEFORE_EOS * p.b] = before;
  state[FORBID_EOS * p.b] = before > 0;
  state[MADE * p.b] = made + 1;
}
