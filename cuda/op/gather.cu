// Rows picked by index; see src/op/gather.rs. The gradient is scatter.cu.
#include "lib/fault.cuh"
#include "lib/vector.cuh"

struct GatherParams {
  const void* x;  // [rows, width]
  const int32_t* index;
  void* y;  // [count, width]
  uint32_t* fault;
  uint32_t count, rows, width, flags;
};

template <class T>
DEV void gather(const GatherParams& p) {
  constexpr int N = VEC<T>;
  const RowVec at = row_vec<N>(p.count, p.width);
  if (at.n == 0) return;
  const bool aligned = p.flags & FLAG_ALIGNED;
  const uint32_t row = static_cast<uint32_t>(p.index[at.row]);
  float v[N];
  if (row < p.rows) {
    load_vec<T>(p.x, static_cast<size_t>(row) * p.width + at.column, at.n, aligned, v);
  } else {
    report_fault(p.fault, FAULT_ROW);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = NAN;
  }
  store_vec<T>(p.y, static_cast<size_t>(at.row) * p.width + at.column, at.n, aligned, v);
}

KERNEL(gather_f32, GatherParams, VEC_THREADS) { gather<float>(p); }
KERNEL(gather_bf16, GatherParams, VEC_THREADS) { gather<bf16>(p); }
