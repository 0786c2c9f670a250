// Values of several ranks become one, in the order of the ranks; see src/comm/nccl/reduction.rs.
#include "lib/vector.cuh"

struct RankSumParams {
  const void* held;  // rank r's values from element r * stride on
  const void* own;   // those of rank `rank`, which are not held; it may be y
  void* y;
  uint64_t n, stride;
  uint32_t ranks, rank;  // rank == ranks: all are held
  uint32_t max, flags;   // the largest instead of the sum
};

template <class T>
DEV void rank_sum(const RankSumParams& p) {
  constexpr int N = VEC<T>;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  const bool aligned = p.flags & FLAG_ALIGNED;
  float v[N] = {}, x[N];
  for (uint32_t r = 0; r < p.ranks; r++) {
    if (r == p.rank)
      load_vec<T>(p.own, i, n, aligned, x);
    else
      load_vec<T>(static_cast<const T*>(p.held) + r * p.stride, i, n, aligned, x);
#pragma unroll
    for (int k = 0; k < N; k++) {
      if (r == 0)
        v[k] = x[k];
      else if (!p.max)
        v[k] += x[k];
      else if (x[k] != x[k] || x[k] > v[k])  // a NaN stays
        v[k] = x[k];
    }
  }
  store_vec<T>(p.y, i, n, aligned, v);
}

KERNEL(rank_sum_f32, RankSumParams, VEC_THREADS) { rank_sum<float>(p); }
KERNEL(rank_sum_bf16, RankSumParams, VEC_THREADS) { rank_sum<bf16>(p); }
