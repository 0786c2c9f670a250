// Rows less their mean: y[r, i] = x[r, i] - mean(x[r, :]). Two blocks a row, grid (2, rows), 256
// threads; each block sums the whole row and writes one half of it.
#include "emu/bugs/bugs.cuh"

namespace bugs {

struct ReduceParams {
  const float* x;  // [rows, cols]
  float* y;        // [rows, cols]
  uint32_t rows, cols;
};

template <Bug bug>
DEV void reduce(const ReduceParams& p) {
  constexpr int WARPS = 8;
  constexpr int SLOTS = bug == Bug::Uninitialised ? 32 : WARPS;
  SHARED(float, partial, SLOTS);
  const float* x = p.x + size_t(blockIdx.y) * p.cols;
  float* y = p.y + size_t(blockIdx.y) * p.cols;

  float sum = 0.f;
  uint32_t read_end = bug == Bug::ReadPastEnd ? p.cols + 1 : p.cols;
  for (uint32_t i = threadIdx.x; i < read_end; i += blockDim.x) sum += x[i];
  sum = warp_sum(sum);

  if (bug == Bug::WarpRace) {
    if (threadIdx.x < WARPS) partial[threadIdx.x] = 0.f;
    __syncthreads();
    if (lane_id() == 0) partial[0] += sum;
  } else if (bug == Bug::SharedPastEnd) {
    if (lane_id() == 0) partial[warp_id()] = sum;
    if (threadIdx.x == 0) partial[blockDim.x / WARP] = sum;
  } else if (lane_id() == 0) {
    partial[warp_id()] = sum;
  }
  if (bug == Bug::DivergentBarrier) {
    if (warp_id() == 0) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (bug != Bug::MissingBarrierBefore) {
    __syncthreads();
  }
  float total = 0.f;
  for (int w = 0; w < SLOTS; w++) total += partial[w];
  float mean = total / static_cast<float>(p.cols);

  uint32_t half = (p.cols + 1) / 2;
  uint32_t begin = blockIdx.x * half, end = min(begin + half, p.cols);
  if (bug == Bug::WritePastEnd) end++;
  if (bug == Bug::BlockRace && blockIdx.x == 0) end++;
  for (uint32_t i = begin + threadIdx.x; i < end; i += blockDim.x)
    y[i] = x[i < p.cols ? i : 0] - mean;
}

KERNEL(bug_reduce_clean, ReduceParams, 256) { reduce<Bug::None>(p); }
KERNEL(bug_reduce_missing_barrier_before, ReduceParams, 256) {
  reduce<Bug::MissingBarrierBefore>(p);
}
KERNEL(bug_reduce_divergent_barrier, ReduceParams, 256) { reduce<Bug::DivergentBarrier>(p); }
KERNEL(bug_reduce_read_past_end, ReduceParams, 256) { reduce<Bug::ReadPastEnd>(p); }
KERNEL(bug_reduce_write_past_end, ReduceParams, 256) { reduce<Bug::WritePastEnd>(p); }
KERNEL(bug_reduce_shared_past_end, ReduceParams, 256) { reduce<Bug::SharedPastEnd>(p); }
KERNEL(bug_reduce_uninitialised, ReduceParams, 256) { reduce<Bug::Uninitialised>(p); }
KERNEL(bug_reduce_warp_race, ReduceParams, 256) { reduce<Bug::WarpRace>(p); }
KERNEL(bug_reduce_block_race, ReduceParams, 256) { reduce<Bug::BlockRace>(p); }

}  // namespace bugs
