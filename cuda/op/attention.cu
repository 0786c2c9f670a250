// Causal self-attention over packed sequences.
#include "tile/attend_forward.cuh"

#define FORWARD(D, ROWS) \
  KERNEL(attention_forward_bf16_d##D, AttendParams, ATTEND_THREADS) { attend_forward_bf16<D, ROWS, PackedKeys>(p); }
FORWARD(32, 64)
FORWARD(64, 64)
FORWARD(96, 64)
FORWARD(128, 64)
FORWARD(256, 32)
