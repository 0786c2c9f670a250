// The groups of elements that an optimizer step treats alike: what op/adamw.cu and
// op/adamw_compact.cu share.
#pragma once
#include "lib/kernel.cuh"

constexpr int ADAMW_GROUPS = 160;

struct AdamWGroup {
  uint64_t start, end;
  float keep;       // 1 - lr * weight decay
  float step_size;  // lr / (1 - beta1^t)
};

// True if a weight that was finite is not any more.
DEV bool breaks(float old, float now) { return finite(old) && !finite(now); }

// The last of `p.group` (by start, disjoint) that starts at or before element i, or the first one.
template <class Params>
DEV const AdamWGroup& group_of(const Params& p, size_t i) {
  uint32_t low = 0, high = p.groups;
  while (low + 1 < high) {
    const uint32_t middle = (low + high) / 2;
    if (p.group[middle].start <= i)
      low = middle;
    else
      high = middle;
  }
  return p.group[low];
}
