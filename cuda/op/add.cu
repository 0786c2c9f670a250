// Elementwise sum; see src/op/add.rs.
#include "lib/vector.cuh"

struct AddParams {
  const void* a;
  const void* b;  // or null: y = a
  void* y;        // may be a or b
  uint64_t n;
  uint32_t flags, pad;
};

template <class T>
DEV void add(const AddParams& p) {
  constexpr int N = VEC<T>;
  const size_t i = vec_start<N>();
  if (i >= p.n) return;
  const int n = vec_count<N>(p.n - i);
  const bool aligned = p.flags & FLAG_ALIGNED;
  float a[N], b[N];
  load_vec<T>(p.a, i, n, aligned, a);
  if (p.b) {
    load_vec<T>(p.b, i, n, aligned, b);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += b[k];
  }
  store_vec<T>(p.y, i, n, aligned, a);
}

KERNEL(add_f32, AddParams, VEC_THREADS) { add<float>(p); }
KERNEL(add_bf16, AddParams, VEC_THREADS) { add<bf16>(p); }
