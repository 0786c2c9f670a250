// AdamW on a compact state; see src/op/adamw_compact.rs. The arithmetic is that of
// src/op/cpu/adamw_compact.rs, which explains the codes, bit for bit.
#include "lib/adamw.cuh"
#include "lib/vector.cuh"

// Elements that have a scale of each moment in common; of a thread; threads of a block of them.
constexpr int COMPACT_BLOCK = 64;
constexpr int COMPACT_EACH = 4;
constexpr int COMPACT_LANES = COMPACT_BLOCK / COMPACT_EACH;

struct AdamWCompactParams {
  uint2* w;  // four bf16
  const void* grad;
  const float* clip;
  // Four codes each.
  uint32_t* correction;
  uint32_t* m;
  uint32_t* v;
  float2* scales;       // of m and of the root of v
  uint32_t* broken;     // 1 once a number is not finite any more
  uint64_t start, end;  // the elements of this launch; multiples of 64
  float one_minus_beta1, beta2, one_minus_beta2, v_factor, eps;
  uint32_t groups, dither, pad;    // the dither of the first element of a block
  AdamWGroup group[ADAMW_GROUPS];  // by start, disjoint, of whole blocks
};

// The whole part of x in least..255; `least` of a NaN.
DEV uint32_t whole(float x, float least) {
  x = x > least ? x : least;
  x = x < 255.f ? x : 255.f;
  return static_cast<uint32_t>(static_cast<int>(x));
}

// The largest magnitude in a block: floats of one sign are in the order of their bits.
DEV float block_largest(const float (&x)[COMPACT_EACH]) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < COMPACT_EACH; k++) bits = max(bits, __float_as_uint(fabsf(x[k])));
#pragma unroll
  for (int step = COMPACT_LANES / 2; step > 0; step /= 2)
    bits = max(bits, __shfl_xor_sync(FULL, bits, step));
  return __uint_as_float(bits);
}

// The new weights of four elements, and their corrections. True if one is not finite any more.
DEV bool compact_weights(const AdamWCompactParams& p, const AdamWGroup& group, size_t at,
                         uint32_t dither, const float (&m)[COMPACT_EACH],
                         const float (&root)[COMPACT_EACH]) {
  const uint2 pairs = p.w[at];
  const uint32_t word[2] = {pairs.x, pairs.y}, old_corrections = p.correction[at];
  uint32_t high[COMPACT_EACH], corrections = 0;
  bool broken = false;
#pragma unroll
  for (int k = 0; k < COMPACT_EACH; k++) {
    const uint32_t old_high = k % 2 ? word[k / 2] & 0xffff0000u : word[k / 2] << 16;
    const int32_t correction = static_cast<int8_t>(old_corrections >> (8 * k));
    const float old = __uint_as_float(old_high + (static_cast<uint32_t>(correction) << 8));
    const float denominator = root[k] * p.v_factor + p.eps;
    const float x = old * group.keep - group.step_size * (m[k] / denominator);
    const uint32_t d = dither + static_cast<uint32_t>(k) * 0x9e3779b9u;
    const uint32_t bits = x != x ? 0x7fc00000u : __float_as_uint(x) + (d >> 24);
    high[k] = (bits + 0x8000u) >> 16;
    broken |= breaks(old, __uint_as_float(high[k] << 16));
    corrections |= (((bits >> 8) - (high[k] << 8)) & 0xffu) << (8 * k);
  }
  p.w[at] = uint2{high[0] | high[1] << 16, high[2] | high[3] << 16};
  p.correction[at] = corrections;
  return broken;
}

template <class G>
DEV void adamw_compact(const AdamWCompactParams& p) {
  const size_t i = p.start + vec_start<COMPACT_EACH>(), at = i / COMPACT_EACH,
               block = i / COMPACT_BLOCK;
  const AdamWGroup& group = group_of(p, i);
  // The same for all threads of a block of elements; all of a warp take part in the shuffles.
  const bool active = group.start <= i && i < group.end;
  const uint32_t dither = p.dither + static_cast<uint32_t>(i % COMPACT_BLOCK) * 0x9e3779b9u;
  float m[COMPACT_EACH] = {}, root[COMPACT_EACH] = {};
  bool broken = false;
  if (active) {
    const float clip = *p.clip;
    const float2 scales = p.scales[block];
    const float v_unit = scales.y / 255.f;
    const uint32_t m_codes = p.m[at], v_codes = p.v[at];
    float grad[COMPACT_EACH];
    load_vec<G>(p.grad, i, COMPACT_EACH, true, grad);
#pragma unroll
    for (int k = 0; k < COMPACT_EACH; k++) {
      const float g = grad[k] * clip;
      const float code = static_cast<float>(static_cast<int8_t>(m_codes >> (8 * k)));
      const float old_m = scales.x * (code / (254.f - fabsf(code)));
      m[k] = old_m + p.one_minus_beta1 * (g - old_m);
      const float old_root = static_cast<float>((v_codes >> (8 * k)) & 0xffu) * v_unit;
      root[k] = sqrtf(p.beta2 * (old_root * old_root) + p.one_minus_beta2 * g * g);
    }
    broken = compact_weights(p, group, at, dither, m, root);
  }
  const float m_largest = block_largest(m), v_largest = block_largest(root);
  __syncwarp();  // one thread writes the scales that all have read, and shuffles order no memory
  if (!active) return;
  if (broken || !finite(m_largest) || !finite(v_largest)) atomic_max_u32(p.broken, 1);
  const float m_scale = m_largest == 0.f ? 1.f : m_largest,
              v_scale = v_largest == 0.f ? 1.f : v_largest;
  uint32_t m_codes = 0, v_codes = 0;
#pragma unroll
  for (int k = 0; k < COMPACT_EACH; k++) {
    const uint32_t d = dither + static_cast<uint32_t>(k) * 0x9e3779b9u;
    const float u = static_cast<float>((d >> 16) | 1) * (1.f / 65536.f);
    const uint32_t m_code =
        whole(254.f * (m[k] / (m_scale + fabsf(m[k]))) + (128.f + u), 1.f) ^ 0x80u;
    const uint32_t v_code = whole(255.f * (root[k] / v_scale) + u, root[k] > 0.f ? 1.f : 0.f);
    m_codes |= m_code << (8 * k);
    v_codes |= v_code << (8 * k);
  }
  p.m[at] = m_codes;
  p.v[at] = v_codes;
  if (i % COMPACT_BLOCK == 0) p.scales[block] = float2{m_largest, v_largest};
}

KERNEL(adamw_compact_f32, AdamWCompactParams, VEC_THREADS) { adamw_compact<float>(p); }
KERNEL(adamw_compact_bf16, AdamWCompactParams, VEC_THREADS) { adamw_compact<bf16>(p); }
