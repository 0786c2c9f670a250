// Activation functions of the MLP by number.
#pragma once
#include "lib/kernel.cuh"

enum Kind : uint32_t { RELU, GELU_TANH, GELU_ERF, SILU };

// act(x) and its derivative.
DEV void value_and_slope(uint32_t kind, float x, float& value, float& slope) {
  if (kind == RELU) {
    // In this order a NaN passes.
    value = 0.f > x ? 0.f : x;
    slope = 0.f < x ? 1.f : 0.f;
  } else if (kind == GELU_TANH) {
    // u = c (x + 0.044715 x^3) with c = sqrt(2 / pi).
    const float c = 0.7978846f, xx = x * x;
    const float t = tanhf(c * fmaf(0.044715f * xx, x, x));
    const float cdf = fmaf(0.5f, t, 0.5f);
    value = x * cdf;
    slope = fmaf(x, 0.5f * ((1.f - t * t) * (c * fmaf(3.f * 0.044715f, xx, 1.f))), cdf);
  } else if (kind == GELU_ERF) {
    const float z = x * 0.70710678f;
    const float cdf = fmaf(0.5f, erff(z), 0.5f);
    // The normal density: exp(-x^2 / 2) / sqrt(2 pi).
    value = x * cdf;
    slope = fmaf(x, expf(-z * z) * 0.3989423f, cdf);
  } else {
    const float p = 1.f / (1.f + expf(-x));
    value = x * p;
    slope = p * fmaf(x, 1.f - p, 1.f);
  }
}
