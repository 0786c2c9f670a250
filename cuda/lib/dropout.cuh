// Dropout (Srivastava et al. 2014) without a stored mask, as in src/op/cpu/dropout.rs: whether an
// element is kept follows from (seed, site, element index).
#pragma once
#include "lib/philox.cuh"

struct Dropout {
  uint64_t seed, site;
  uint32_t limit;  // the probability of dropping, in units of 2^-24
  float factor;    // what kept elements are multiplied by
};

// Which of the elements 4 group..4 group + 4 are kept, a bit each.
DEV uint32_t dropout_group(const Dropout& d, uint64_t group) {
  const PhiloxBlock random =
      philox(d.seed, static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32),
             static_cast<uint32_t>(d.site), static_cast<uint32_t>(d.site >> 32));
  uint32_t keeps = 0;
#pragma unroll
  for (int k = 0; k < 4; k++) keeps |= static_cast<uint32_t>(random.word[k] >> 8 >= d.limit) << k;
  return keeps;
}

// Which of the elements first..first + 4 are kept: all in one group wherever rows have a multiple
// of 4 elements.
DEV uint32_t dropout_keeps(const Dropout& d, uint64_t first) {
  const uint32_t shift = first % 4;
  uint32_t keeps = dropout_group(d, first / 4);
  if (shift != 0) keeps |= dropout_group(d, first / 4 + 1) << 4;
  return keeps >> shift;
}
