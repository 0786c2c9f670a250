// Causal self-attention over packed sequences: forward and its gradients. Kernels are named after
// the width of a head in shared memory, the least that holds it.
#include "tile/attend_backward.cuh"
#include "tile/attend_f32.cuh"
#include "tile/attend_forward.cuh"

KERNEL(attention_delta_f32, AttendParams, ATTEND_THREADS) { attend_delta<float>(p); }
KERNEL(attention_delta_bf16, AttendParams, ATTEND_THREADS) { attend_delta<bf16>(p); }

#define F32(D)                                                                \
  KERNEL(attention_forward_f32_d##D, AttendParams, ATTEND_THREADS) {          \
    attend_forward_f32<D, PackedKeys>(p);                                     \
  }                                                                           \
  KERNEL(attention_backward_keys_f32_d##D, AttendParams, ATTEND_THREADS) {    \
    attend_backward_keys_f32<D>(p);                                           \
  }                                                                           \
  KERNEL(attention_backward_queries_f32_d##D, AttendParams, ATTEND_THREADS) { \
    attend_backward_queries_f32<D>(p);                                        \
  }
#define BF16(D, FORWARD, ROWS, COLUMNS, KEYS_SHARE, STAGES, QUERIES_SHARE)                    \
  KERNEL(attention_forward_bf16_d##D, AttendParams, ATTEND_THREADS) {                         \
    attend_forward_bf16<D, FORWARD, PackedKeys>(p);                                           \
  }                                                                                           \
  KERNEL(attention_backward_keys_bf16_d##D, AttendParams, ATTEND_THREADS * KEYS_SHARE) {      \
    attend_backward_keys_bf16<D, ROWS, COLUMNS, KEYS_SHARE>(p);                               \
  }                                                                                           \
  KERNEL(attention_backward_queries_bf16_d##D, AttendParams, ATTEND_THREADS * QUERIES_SHARE) { \
    attend_backward_queries_bf16<D, STAGES, QUERIES_SHARE>(p);                                \
  }
#define EXPANDED(D, ...) F32(D) BF16(D, __VA_ARGS__)
// The macro of a tile becomes its numbers before they are told apart.
#define KERNELS(tile) EXPANDED(tile)

KERNELS(ATTEND_D32)
KERNELS(ATTEND_D64)
KERNELS(ATTEND_D96)
KERNELS(ATTEND_D128)
KERNELS(ATTEND_D256)
