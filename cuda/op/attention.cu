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
F32(32)
F32(64)
F32(96)
F32(128)
F32(256)

// The numbers are those of `Shape` in src/op/attention/cuda.rs: rows of a forward tile; rows per
// step, columns per block and warps per 16 keys of the pass over keys; stages and warps per 16 rows
// of the pass over queries.
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
BF16(32, 64, 64, 32, 1, 2, 1)
BF16(64, 64, 64, 64, 1, 2, 1)
BF16(96, 64, 64, 96, 2, 2, 1)
BF16(128, 64, 64, 128, 2, 2, 1)
BF16(256, 32, 32, 128, 2, 1, 2)
