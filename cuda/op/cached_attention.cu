// Causal self-attention over a paged cache: appends the new keys and values, then attends. The
// kernels of op/attention.cu but for where keys are.
#include "tile/attend_append.cuh"
#include "tile/attend_f32.cuh"
#include "tile/attend_forward.cuh"

KERNEL(cached_attention_append_f32, AttendParams, ATTEND_THREADS) { attend_append<float>(p); }
KERNEL(cached_attention_append_bf16, AttendParams, ATTEND_THREADS) { attend_append<bf16>(p); }

#define F32(D)                                                              \
  KERNEL(cached_attention_forward_f32_d##D, AttendParams, ATTEND_THREADS) { \
    attend_forward_f32<D, PagedKeys>(p);                                    \
  }
F32(32)
F32(64)
F32(96)
F32(128)
F32(256)

// For many rows per sequence in tiles of ROWS, and for few.
#define BF16(D, ROWS)                                                     \
  KERNEL(cached_attention_many_bf16_d##D, AttendParams, ATTEND_THREADS) { \
    attend_forward_bf16<D, ROWS, PagedKeys>(p);                           \
  }                                                                       \
  KERNEL(cached_attention_few_bf16_d##D, AttendParams, ATTEND_THREADS) {  \
    attend_forward_bf16<D, 16, PagedKeys>(p);                             \
  }
BF16(32, 64)
BF16(64, 64)
BF16(96, 64)
BF16(128, 64)
BF16(256, 32)
