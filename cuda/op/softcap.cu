// Kernel of src/op/softcap.rs: a thread per logit, in place.
#include "lib/softmax.cuh"

constexpr int SOFTCAP_THREADS = 256;

struct SoftcapParams {
  float* logits;
  uint64_t n;
  float cap;
  uint32_t padding;
};

KERNEL(softcap_f32, SoftcapParams, SOFTCAP_THREADS) {
  uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < p.n) p.logits[i] = softcap(p.logits[i], p.cap);
}
