// Rows added back where an index says, the gradient of reading rows; see src/op/cuda/scatter.rs.
// Entries that name one row are linked in order, and one thread adds up all of them for its
// columns: no atomics, one order.
#include "lib/vector.cuh"

constexpr uint32_t SCATTER_FIRST = 0x80000000u;

struct ScatterLinksParams {
  const int32_t* index;
  uint32_t* links;  // of each entry: the next one with its index, or `count`; SCATTER_FIRST if
                    // there is none before it
  uint32_t count, pad;
};

// One warp for each entry.
KERNEL(scatter_links, ScatterLinksParams, VEC_THREADS) {
  const uint32_t entry = blockIdx.x * (blockDim.x / WARP) + warp_id(), lane = lane_id();
  if (entry >= p.count) return;
  const int32_t index = p.index[entry];
  uint32_t next = p.count, first = SCATTER_FIRST;
  for (uint32_t start = entry + 1; start < p.count; start += WARP) {
    const uint32_t found = __ballot_sync(
        FULL, start + lane < p.count && p.index[min(start + lane, p.count - 1)] == index);
    if (found) {
      next = start + __ffs(found) - 1;
      break;
    }
  }
  for (uint32_t start = 0; start < entry; start += WARP) {
    if (__ballot_sync(FULL, start + lane < entry && p.index[start + lane] == index)) {
      first = 0;
      break;
    }
  }
  if (lane == 0) p.links[entry] = next | first;
}

struct ScatterParams {
  const int32_t* index;
  const uint32_t* links;
  const void* from;  // [count, width]
  void* to;          // [rows, width]
  uint32_t count, width, rows, offset;
  float scale;
  uint32_t flags;
};

// to[index + offset] += scale * from, in order of entries, summed in f32. Entries outside `to` are
// left out; forward has reported them.
template <class T, class O>
DEV void scatter_add(const ScatterParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.count, p.width);
  if (at.n == 0 || !(p.links[at.row] & SCATTER_FIRST)) return;
  const int32_t index = p.index[at.row];
  const uint32_t row = static_cast<uint32_t>(index) + p.offset;
  if (index < 0 || row >= p.rows) return;
  const bool aligned = p.flags & FLAG_ALIGNED;
  const size_t to = static_cast<size_t>(row) * p.width + at.column;
  float sum[N] = {}, v[N];
  if (p.flags & FLAG_ADD) load_vec<O>(p.to, to, at.n, aligned, sum);
  for (uint32_t entry = at.row; entry < p.count; entry = p.links[entry] & ~SCATTER_FIRST) {
    load_vec<T>(p.from, static_cast<size_t>(entry) * p.width + at.column, at.n, aligned, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum[k] += p.scale * v[k];
  }
  store_vec<O>(p.to, to, at.n, aligned, sum);
}

KERNEL(scatter_add_f32, ScatterParams, VEC_THREADS) { scatter_add<float, float>(p); }
KERNEL(scatter_add_bf16, ScatterParams, VEC_THREADS) { scatter_add<bf16, bf16>(p); }
KERNEL(scatter_add_bf16_f32, ScatterParams, VEC_THREADS) { scatter_add<bf16, float>(p); }
