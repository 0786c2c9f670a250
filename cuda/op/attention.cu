// Causal self-attention over packed sequences: forward and its gradients.
#include "tile/attend_backward.cuh"
#include "tile/attend_forward.cuh"

KERNEL(attention_delta_bf16, AttendParams, ATTEND_THREADS) { attend_delta<bf16>(p); }

// Head width in shared memory; rows of a forward tile; rows per step and columns per block of the pass over keys; keys per
// step and stages of the pass over queries.
#define BF16(D, FORWARD, ROWS, COLUMNS, PART, STAGES)                                                                 \
  KERNEL(attention_forward_bf16_d##D, AttendParams, ATTEND_THREADS) { attend_forward_bf16<D, FORWARD, PackedKeys>(p); } \
  KERNEL(attention_backward_keys_bf16_d##D, AttendParams, ATTEND_THREADS) {                                           \
    attend_backward_keys_bf16<D, ROWS, COLUMNS>(p);                                                                   \
  }                                                                                                                   \
  KERNEL(attention_backward_queries_bf16_d##D, AttendParams, ATTEND_THREADS) {                                        \
    attend_backward_queries_bf16<D, PART, STAGES>(p);                                                                 \
  }
BF16(32, 64, 64, 32, 64, 2)
BF16(64, 64, 64, 64, 64, 2)
BF16(96, 64, 32, 96, 64, 2)
BF16(128, 64, 32, 128, 64, 2)
BF16(256, 32, 32, 128, 32, 1)
