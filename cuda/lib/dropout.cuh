// Dropout (Srivastava et al. 2014) without a stored mask, as in src/op/cpu/dropout.rs: whether an element is kept follows
// from (seed, site, element index).
#pragma once
#include "lib/philox.cuh"

struct Dropout {
  uint64_t seed, site;
  uint32_t limit;  // the probability of dropping, in units of 2^-24
  float factor;    // what kept elements are multiplied by
};

// Which of the elements 4 group..4 group + 4 are kept.
DEV void dropout_keeps(const Dropout& d, uint64_t group, bool (&keeps)[4]) {
  const PhiloxBlock random = philox(d.seed, static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32),
                                    static_cast<uint32_t>(d.site), static_cast<uint32_t>(d.site >> 32));
#pragma unroll
  for (int k = 0; k < 4; k++) keeps[k] = random.word[k] >> 8 >= d.limit;
}
