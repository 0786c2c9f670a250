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
// For many rows per sequence in tiles of ROWS, and for few.
#define BF16(D, ROWS)                                                     \
  KERNEL(cached_attention_many_bf16_d##D, AttendParams, ATTEND_THREADS) { \
    attend_forward_bf16<D, ROWS, PagedKeys>(p);                           \
  }                                                                       \
  KERNEL(cached_attention_few_bf16_d##D, AttendParams, ATTEND_THREADS) {  \
    attend_forward_bf16<D, FEW_ROWS, PagedKeys>(p);                             \
  }
#define EXPANDED(D, ROWS, ...) F32(D) BF16(D, ROWS)
// The macro of a tile becomes its numbers before they are told apart.
#define KERNELS(tile) EXPANDED(tile)

KERNELS(ATTEND_D32)
KERNELS(ATTEND_D64)
KERNELS(ATTEND_D96)
KERNELS(ATTEND_D128)
KERNELS(ATTEND_D256)
