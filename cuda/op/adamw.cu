// Adam with decoupled weight decay on a flat partition; see src/op/adamw.rs, whose arithmetic this
// repeats.
#include "lib/adamw.cuh"
#include "lib/vector.cuh"

struct AdamWParams {
  void* w;
  const float* grad;
  const float* clip;
  float* m;
  float* v;
  float* master;        // or null
  uint32_t* broken;     // 1 once a number is not finite any more
  uint64_t start, end;  // the elements of this launch; start is a multiple of 4
  float one_minus_beta1, beta2, one_minus_beta2, v_factor, eps;
  uint32_t groups, flags, pad;
  AdamWGroup group[ADAMW_GROUPS];  // by start, disjoint
};

// One element: the weight w (or master weight), its gradient, its moments. True if one of these is
// not finite any more, the weight as T.
template <class T>
DEV bool adamw_step(const AdamWParams& p, const AdamWGroup& group, float clip, float grad, float& w,
                    float& m, float& v) {
  const float old = w;
  const float g = grad * clip;
  m += p.one_minus_beta1 * (g - m);
  v = p.beta2 * v + p.one_minus_beta2 * g * g;
  const float denominator = sqrtf(v) * p.v_factor + p.eps;
  w = w * group.keep - group.step_size * (m / denominator);
  return !finite(m) || !finite(v) || breaks(old, to_f32(from_f32<T>(w)));
}

// Four elements of one group.
template <class T>
DEV void adamw_vec(const AdamWParams& p, const AdamWGroup& group, size_t i) {
  const float clip = *p.clip;
  float grad[4], w[4], m[4], v[4];
  bool broken = false;
  load_vec<float>(p.grad, i, 4, true, grad);
  load_vec<float>(p.m, i, 4, true, m);
  load_vec<float>(p.v, i, 4, true, v);
  if (p.master)
    load_vec<float>(p.master, i, 4, true, w);
  else
    load_vec<T>(p.w, i, 4, true, w);
#pragma unroll
  for (int k = 0; k < 4; k++)
    broken |= adamw_step<T>(p, group, clip, grad[k], w[k], m[k], v[k]);
  if (broken) atomic_max_u32(p.broken, 1);
  store_vec<float>(p.m, i, 4, true, m);
  store_vec<float>(p.v, i, 4, true, v);
  if (p.master) store_vec<float>(p.master, i, 4, true, w);
  store_vec<T>(p.w, i, 4, true, w);
}

template <class T>
DEV void adamw(const AdamWParams& p) {
  size_t i = p.start + vec_start<4>();
  const AdamWGroup& group = group_of(p, i);
  if ((p.flags & FLAG_ALIGNED) && group.start <= i && i + 4 <= group.end) {
    adamw_vec<T>(p, group, i);
    return;
  }
  const size_t end = i + 4 < p.end ? i + 4 : p.end;
  for (; i < end; i++) {
    const AdamWGroup& group = group_of(p, i);
    if (i < group.start || i >= group.end) continue;
    float w = p.master ? p.master[i] : load<T>(p.w, i);
    if (adamw_step<T>(p, group, *p.clip, p.grad[i], w, p.m[i], p.v[i]))
      atomic_max_u32(p.broken, 1);
    if (p.master) p.master[i] = w;
    store<T>(p.w, i, w);
  }
}

KERNEL(adamw_f32, AdamWParams, VEC_THREADS) { adamw<float>(p); }
KERNEL(adamw_bf16, AdamWParams, VEC_THREADS) { adamw<bf16>(p); }
