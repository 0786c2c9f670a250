// Counter-based random numbers, bit for bit those of src/base/rng.rs: Philox4x32-10 (Salmon et al., SC 2011). A value
// depends on (seed, stream, index) only.
#pragma once
#include "lib/kernel.cuh"

struct Philox {
  uint32_t key[2];
};

// Four random words for one 128-bit counter.
DEV void philox_block(uint64_t seed, const uint32_t (&counter)[4], uint32_t (&out)[4]) {
  constexpr uint32_t MUL0 = 0xD2511F53u, MUL1 = 0xCD9E8D57u, WEYL0 = 0x9E3779B9u, WEYL1 = 0xBB67AE85u;
  Philox philox = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(MUL0, c0), low0 = MUL0 * c0, high1 = __umulhi(MUL1, c2), low1 = MUL1 * c2;
    c0 = high1 ^ c1 ^ philox.key[0];
    c1 = low1;
    c2 = high0 ^ c3 ^ philox.key[1];
    c3 = low0;
    philox.key[0] += WEYL0;
    philox.key[1] += WEYL1;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// One uniform number in [0, 1) for the pair (stream, index).
DEV float philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  const uint32_t counter[4] = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t words[4];
  philox_block(seed, counter, words);
  return static_cast<float>(words[0] >> 8) * (1.f / 16777216.f);
}
