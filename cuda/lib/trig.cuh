// Sine and cosine of any finite f32 angle below 2^31, within two units in the last place. The C
// library's sincosf keeps a table on the stack for large angles; this reduces by multiples of pi /
// 2 in f64 instead.
#pragma once
#include "lib/kernel.cuh"

DEV void sin_cos(float angle, float& sin, float& cos) {
  const double n = rint(static_cast<double>(angle) * 0.63661977236758134308);
  // pi / 2 in two parts.
  const double near = fma(n, -1.5707963267948966192, static_cast<double>(angle));
  const float r = static_cast<float>(fma(n, -6.123233995736766036e-17, near));
  const int quadrant = static_cast<int>(static_cast<long long>(n) & 3);
  // The Taylor series; |r| <= pi / 4.
  const float u = r * r;
  float s = fmaf(u, 2.7557319e-6f, -1.9841270e-4f);
  s = fmaf(u, s, 8.3333333e-3f);
  s = fmaf(u, s, -0.16666667f);
  s = fmaf(u * r, s, r);
  float c = fmaf(u, -2.7557319e-7f, 2.4801587e-5f);
  c = fmaf(u, c, -1.3888889e-3f);
  c = fmaf(u, c, 4.1666667e-2f);
  c = fmaf(u, c, -0.5f);
  c = fmaf(u, c, 1.f);
  const float a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
  sin = quadrant & 2 ? -a : a;
  cos = (quadrant + 1) & 2 ? -b : b;
}
