// Causal self-attention over a paged cache: appends the new keys and values, then attends.
#include "tile/attend_append.cuh"
#include "tile/attend_forward.cuh"

KERNEL(cached_attention_append_f32, AttendParams, ATTEND_THREADS) { attend_append<float>(p); }
KERNEL(cached_attention_append_bf16, AttendParams, ATTEND_THREADS) { attend_append<bf16>(p); }

// Many rows per sequence, few rows per sequence.
#define FORWARD(D, MANY)                                            \
  KERNEL(cached_attention_many_bf16_d##D, AttendParams, ATTEND_THREADS) { \
    attend_forward_bf16<D, MANY, PagedKeys>(p);                     \
  }                                                                 \
  KERNEL(cached_attention_few_bf16_d##D, AttendParams, ATTEND_THREADS) { attend_forward_bf16<D, 16, PagedKeys>(p); }
FORWARD(32, 64)
FORWARD(64, 64)
FORWARD(96, 64)
FORWARD(128, 64)
FORWARD(256, 32)
