// Kernels with known defects: proof that the emulator finds what it is there to find. Each bug_*.cu
// holds one algorithm, once clean and once per defect. They are no part of the product.
//
// Names are bug_<algorithm>_<bug>. How each was seen to be found, on odd shapes with NaN-filled
// outputs:
//   plain       x: the result differs from the reference (NaN included), the launch fails, or memory beside an allocation
//               was written. Schedule and timing of copies: Forward, Reverse, Shuffled; Late, Early, Random
//   ASan, TSan  X: the sanitizer stops the program; r: it does not, but the result is wrong, or the launch fails
//
//                                      plain            ASan  TSan
//   kernel                             FL RL RE SE SR   FL    FL RE
//   reduce_missing_barrier_before      x  x  x  x  x    r     X  X
//   reduce_divergent_barrier           x  x  x  x  x    r     r  r
//   reduce_read_past_end               x  x  x  x  x    X     r  r
//   reduce_write_past_end              x  x  x  x  x    X     X  X
//   reduce_shared_past_end             x  x  x  x  x    X     r  r
//   reduce_uninitialised               x  x  x  x  x    r     r  r
//   reduce_warp_race                   .  .  .  .  .    .     X  X    the sum is right as long as warps take turns
//   reduce_block_race                  .  .  .  .  .    .     X  X    both blocks write the same value
//   gemm_missing_barrier_before        x  x  x  x  x    r     X  X
//   gemm_missing_barrier_after         x  x  x  x  x    r     X  X
//   gemm_missing_wait                  x  x  .  .  x    r     r  .    early copies need no wait
//   gemm_wait_too_little               x  x  .  .  x    r     r  .
//   gemm_write_past_end                x  x  x  x  x    X     r  r
//   gemm_no_transpose                  x  x  x  x  x    r     r  r
//   gemm_swapped_fragment              x  x  x  x  x    r     r  r
//   gemm_missing_zero_fill             x  x  x  x  x    r     r  r
//   gemm_stale_accumulator             x  x  x  x  x    r     r  r
//   attention_missing_barrier_before   x  x  .  .  x    r     X  .    from the second tile on
//   attention_missing_barrier_after    .  .  x  x  x    .     .  X    late copies land after the next barrier
//   attention_missing_wait             x  x  .  .  x    r     r  .
//   attention_stale_accumulator        x  x  x  x  x    r     r  r
//   attention_mask_off_by_one          x  x  x  x  x    r     r  r
//   gather_wrong_page                  x  x  x  x  x    r     r  r
//   gather_missing_syncwarp            .  x  x  x  x    .     X  X    lane 0 goes first in FL
//   gather_read_past_end               x  x  x  x  x    r     r  r
//
// So: plain builds want at least forward/late, reverse/early and shuffled/random; races that leave
// results right need the thread sanitizer. The clean kernels pass everywhere.
#pragma once
#include "lib/kernel.cuh"
#include "lib/reduce.cuh"
#include "lib/types.cuh"

namespace bugs {

enum class Bug {
  None,
  MissingBarrierBefore,  // data of other threads is used before it is there
  MissingBarrierAfter,   // data is overwritten while other threads use it
  MissingSyncwarp,
  DivergentBarrier,
  MissingWait,      // cp.async is never waited for
  WaitTooLittle,    // one group more may be under way than the data allows
  ReadPastEnd,      // one element too many is read from global memory
  WritePastEnd,     // one element too many is written to global memory
  SharedPastEnd,    // an element beyond a shared array is written
  Uninitialised,    // shared memory that nobody wrote is read
  WarpRace,         // warps change one element of shared memory without a barrier between
  BlockRace,        // two blocks write one element, the same value
  NoTranspose,      // ldmatrix without .trans
  SwappedFragment,  // b0 and b1 of an mma exchanged
  MissingZeroFill,  // the tail of K is left as it was
  StaleAccumulator,  // not reset, or not rescaled
  MaskOffByOne,
  WrongPage,
};

}  // namespace bugs
