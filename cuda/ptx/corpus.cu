// One small kernel per function of ptx.cuh, for one warp: reads words, writes words. On hardware
// they show that the emulator's notion of each instruction is the machine's
// (src/device/cuda/corpus.rs).
#include "lib/kernel.cuh"

struct CorpusParams {
  const uint32_t* input;
  uint32_t* out;
};

// Shared memory is filled with the first 256 words: 16 rows of 32 bf16, so four 8x8 matrices (two
// for x2) whose rows the lanes address as word 256 + lane says (in units of 16 bytes).
#define LDMATRIX(name, words)                                                                  \
  KERNEL(ptx_##name, CorpusParams, 32) {                                                       \
    SHARED(uint32_t, tile, 256);                                                               \
    for (int i = lane_id(); i < 256; i += WARP) tile[i] = p.input[i];                             \
    __syncthreads();                                                                           \
    uint32_t r[words];                                                                         \
    name(r, tile + 4 * p.input[256 + lane_id()]);                                                 \
    for (int i = 0; i < words; i++) p.out[lane_id() * words + i] = r[i];                       \
  }
LDMATRIX(ldmatrix_x4, 4)
LDMATRIX(ldmatrix_x4_trans, 4)
LDMATRIX(ldmatrix_x2, 2)
LDMATRIX(ldmatrix_x2_trans, 2)

// Per lane: 4 words of a, 2 of b, 4 of d.
KERNEL(ptx_mma_bf16, CorpusParams, 32) {
  const uint32_t* in = p.input + lane_id() * 10;
  uint32_t a[4];
  float d[4];
  for (int i = 0; i < 4; i++) {
    a[i] = in[i];
    d[i] = __uint_as_float(in[6 + i]);
  }
  mma_bf16(d, a, in[4], in[5]);
  for (int i = 0; i < 4; i++) p.out[lane_id() * 4 + i] = __float_as_uint(d[i]);
}

// Lane i copies 16 bytes in each of three groups, if bit i of the group's mask (words 384 to 386)
// is set.
KERNEL(ptx_cp_async, CorpusParams, 32) {
  SHARED(uint32_t, tile, 384);
  const int lane = lane_id();
  for (int group = 0; group < 3; group++) {
    const int at = (group * WARP + lane) * 4;
    cp_async16(tile + at, p.input + at, (p.input[384 + group] >> lane) & 1);
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncthreads();
  for (int i = lane; i < 256; i += WARP) p.out[i] = tile[i];
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 256 + lane; i < 384; i += WARP) p.out[i] = tile[i];
}

// Word lane moves by word 32: all four shuffles, then the ballot of odd words.
KERNEL(ptx_shuffle, CorpusParams, 32) {
  const uint32_t v = p.input[lane_id()];
  const int by = static_cast<int>(p.input[WARP]);
  uint32_t* out = p.out + lane_id() * 5;
  out[0] = __shfl_xor_sync(FULL, v, by);
  out[1] = __shfl_sync(FULL, v, by);
  out[2] = __shfl_down_sync(FULL, v, by);
  out[3] = __shfl_up_sync(FULL, v, by);
  out[4] = __ballot_sync(FULL, v & 1);
}

// The largest of 32 words and of what was there (word 32).
KERNEL(ptx_atomic_max, CorpusParams, 32) {
  if (lane_id() == 0) p.out[0] = p.input[WARP];
  __syncthreads();
  atomic_max_u32(p.out, p.input[lane_id()]);
}
