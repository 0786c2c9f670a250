// Counter-based random numbers, Philox4x32-10: bit for bit src/base/rng.rs.
#pragma once
#include "lib/kernel.cuh"

struct PhiloxBlock {
  uint32_t word[4];
};

// Four random words for one 128-bit counter.
DEV PhiloxBlock philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// One uniform number in [0, 1) for the pair (stream, index).
DEV float philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
  PhiloxBlock b = philox(seed, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                         static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32));
  return static_cast<float>(b.word[0] >> 8) * (1.f / 16777216.f);
}
