// Kernel of src/op/sample.rs: a block per sequence.
//
// Weights of tokens are integers (2^s exp(z / T - max), s as large as the vocabulary allows), so
// that their sums are exact whatever the order, and every search below ends in a token of some
// weight. Tokens are ordered by their logit, larger first, and among equals by index, lower first;
// drawing by the cumulative weight in this order means that top-k and top-p only say how much of
// the weight is drawn from.
#include "lib/eos.cuh"
#include "lib/fault.cuh"
#include "lib/philox.cuh"
#include "lib/softmax.cuh"

// The search for a logit fixes this many bits of its key at a time.
constexpr int DIGIT = 2;
constexpr int DIGITS = 1 << DIGIT;

struct SampleParams {
  const float* logits;  // [b, vocab]
  const int32_t* sequence;
  const int32_t* position;
  const int32_t* forbid_eos;
  int32_t* tokens;
  float* logp;
  uint32_t* fault;
  uint64_t seed;
  uint32_t vocab, top_k;
  float inv_t, top_p;
  float scale;  // 2^s
  uint32_t greedy, eos_count;
  int32_t eos[MAX_EOS];
  uint32_t padding;
};

// One row, and what may be drawn from it.
struct Row {
  const float* z;
  bool forbid;  // end tokens
  float shift;  // largest z / T of the allowed tokens
};

DEV bool allowed(const SampleParams& p, const Row& row, uint32_t i) {
  if (row.forbid)
    for (uint32_t e = 0; e < p.eos_count; e++)
      if (static_cast<uint32_t>(p.eos[e]) == i) return false;
  return true;
}

DEV uint64_t weight_of(const SampleParams& p, const Row& row, float logit) {
  float unused;
  return static_cast<uint64_t>(exp_bounded(logit * p.inv_t - row.shift, unused) * p.scale);
}

DEV uint64_t weight(const SampleParams& p, const Row& row, uint32_t i) {
  return allowed(p, row, i) ? weight_of(p, row, row.z[i]) : 0;
}

// Unsigned integers in the order of floats, and back.
DEV uint32_t key_of(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEV float float_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The sum of `measure` over all tokens.
template <int THREADS, class F>
DEV uint64_t total(uint32_t n, uint64_t* partial, const F& measure) {
  uint64_t sum = 0;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < n; i += THREADS) sum += measure(i);
  return block_sum_64<THREADS>(sum, partial);
}

// The first token, by index, at which the running sum of `measure` exceeds `goal`, which is below
// the sum of all. Each warp adds up one part of the range; the part that passes the goal is the
// next range.
template <int THREADS, class F>
DEV uint32_t find(uint32_t n, uint64_t goal, uint64_t* partial, const F& measure) {
  constexpr int WARPS = THREADS / WARP;
  uint32_t start = 0, end = n;
  while (end - start > 1) {
    uint32_t width = (end - start + WARPS - 1) / WARPS;
    uint32_t from = min(end, start + warp_id() * width), to = min(end, from + width);
    uint64_t sum = 0;
#pragma unroll 4
    for (uint32_t i = from + lane_id(); i < to; i += WARP) sum += measure(i);
    sum = warp_sum_64(sum);
    __syncthreads();
    if (lane_id() == 0) partial[warp_id()] = sum;
    __syncthreads();
    int part = 0;
    for (; part + 1 < WARPS && partial[part] <= goal; part++) goal -= partial[part];
    start = min(end - 1, start + part * width);
    end = min(end, start + width);
  }
  return start;
}

// Where tokens in the order of their logits, larger first, pass a sum.
struct Pass {
  uint32_t key;    // of the logit with which the running sum exceeds the goal
  uint64_t above;  // sum over all larger logits
};

template <int THREADS, class F>
DEV Pass pass(const float* z, uint32_t n, uint64_t goal, uint64_t* partial, const F& measure) {
  Pass found = {0, 0};
#pragma unroll 1
  for (int shift = 32 - DIGIT; shift >= 0; shift -= DIGIT) {
    uint64_t sums[DIGITS] = {};
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
      // Digits above the current one agree with the key so far where this is less than DIGITS.
      uint32_t digit = (key_of(z[i]) ^ found.key) >> shift;
      if (digit >= DIGITS) continue;
      uint64_t m = measure(i);
#pragma unroll
      for (uint32_t d = 0; d < DIGITS; d++) sums[d] += digit == d ? m : 0;
    }
#pragma unroll
    for (int d = 0; d < DIGITS; d++) sums[d] = block_sum_64<THREADS>(sums[d], partial);
    uint32_t digit = DIGITS - 1;
#pragma unroll
    for (int d = DIGITS - 1; d > 0; d--)
      if (digit == static_cast<uint32_t>(d) && found.above + sums[d] <= goal) {
        found.above += sums[d];
        digit = d - 1;
      }
    found.key |= digit << shift;
  }
  return found;
}

// The share `u` of `total`, below `total`.
DEV uint64_t share(double u, uint64_t total) {
  uint64_t part = static_cast<uint64_t>(u * static_cast<double>(total));
  return part < total ? part : total - 1;
}

// Uniform in [0, 1) with 53 bits, as on the CPU.
DEV double uniform(const SampleParams& p, uint32_t b) {
  PhiloxBlock r = philox(p.seed, static_cast<uint32_t>(p.position[b]), 0,
                         static_cast<uint32_t>(p.sequence[b]), 0);
  uint64_t bits = (static_cast<uint64_t>(r.word[0]) << 21) ^ (r.word[1] >> 11);
  return static_cast<double>(bits) * (1. / 9007199254740992.);
}

// The weight of what top-k, then top-p leave.
template <int THREADS>
DEV uint64_t kept_weight(const SampleParams& p, const Row& row, uint32_t choices,
                         uint64_t* partial) {
  uint64_t kept;
  if (p.top_k > 0 && p.top_k < choices) {
    uint64_t k = p.top_k;
    Pass last = pass<THREADS>(row.z, p.vocab, k - 1, partial,
                              [&](uint32_t i) -> uint64_t { return allowed(p, row, i); });
    uint64_t above = total<THREADS>(p.vocab, partial, [&](uint32_t i) -> uint64_t {
      return key_of(row.z[i]) > last.key ? weight(p, row, i) : 0;
    });
    kept = above + (k - last.above) * weight_of(p, row, float_of(last.key));
  } else {
    kept = total<THREADS>(p.vocab, partial, [&](uint32_t i) { return weight(p, row, i); });
  }
  if (p.top_p >= 1.f) return kept;
  // The least that must be kept, at least the first token: the goal is passed by the token that
  // reaches it.
  double least = ceil(static_cast<double>(p.top_p) * static_cast<double>(kept));
  uint64_t goal = least > 1. ? static_cast<uint64_t>(least) - 1 : 0;
  goal = goal < kept ? goal : kept - 1;
  Pass last =
      pass<THREADS>(row.z, p.vocab, goal, partial, [&](uint32_t i) { return weight(p, row, i); });
  uint64_t each = weight_of(p, row, float_of(last.key));
  return last.above + ((goal - last.above) / each + 1) * each;
}

template <int THREADS>
DEV uint32_t draw(const SampleParams& p, const Row& row, uint32_t choices, double u,
                  uint64_t* partial) {
  auto measure = [&](uint32_t i) { return weight(p, row, i); };
  if (p.top_k == 0 && p.top_p >= 1.f)
    return find<THREADS>(p.vocab, share(u, total<THREADS>(p.vocab, partial, measure)), partial,
                         measure);
  uint64_t goal = share(u, kept_weight<THREADS>(p, row, choices, partial));
  Pass at = pass<THREADS>(row.z, p.vocab, goal, partial, measure);
  uint64_t equal = (goal - at.above) / weight_of(p, row, float_of(at.key));
  return find<THREADS>(p.vocab, equal, partial, [&](uint32_t i) -> uint64_t {
    return key_of(row.z[i]) == at.key && allowed(p, row, i);
  });
}

template <int THREADS>
DEV void sample(const SampleParams& p) {
  SHARED(SoftmaxShared, softmax, 1);
  SHARED(uint64_t, partial, THREADS / WARP);
  uint32_t b = blockIdx.x;
  Row row = {p.logits + static_cast<size_t>(b) * p.vocab, p.forbid_eos[b] != 0, 0.f};
  SoftmaxRow stats = softmax_row<THREADS>(row.z, p.vocab, p.inv_t, softmax[0]);
  // The likeliest token, the first of equals (zeros of both signs are equal).
  uint64_t best = 0, choices = 0;
  for (uint32_t i = threadIdx.x; i < p.vocab; i += THREADS) {
    if (!allowed(p, row, i)) continue;
    uint64_t key = key_of(row.z[i] == 0.f ? 0.f : row.z[i]);
    best = max(best, key << 32 | ~i);
    choices++;
  }
  best = block_max_64<THREADS>(best, partial);
  choices = block_sum_64<THREADS>(choices, partial);
  uint32_t token = ~static_cast<uint32_t>(best);
  if (choices == 0 || !finite(stats.log_sum) || !finite(row.z[token])) {
    if (threadIdx.x != 0) return;
    report_fault(p.fault, FAULT_LOGITS);
    p.tokens[b] = -1;
    p.logp[b] = NAN;
    return;
  }
  if (!p.greedy) {
    row.shift = row.z[token] * p.inv_t;
    token = draw<THREADS>(p, row, static_cast<uint32_t>(choices), uniform(p, b), partial);
  }
  if (threadIdx.x != 0) return;
  p.tokens[b] = static_cast<int32_t>(token);
  p.logp[b] = softmax_logp(stats, row.z[token], p.inv_t);
}

KERNEL(sample_f32, SampleParams, ROW_THREADS) { sample<ROW_THREADS>(p); }
KERNEL(sample_small_f32, SampleParams, SMALL_ROW_THREADS) { sample<SMALL_ROW_THREADS>(p); }
