// Storage types and their conversion to and from f32, in which everything is computed.
#pragma once
#include "lib/kernel.cuh"

using bf16 = __nv_bfloat16;

DEV float to_f32(float x) { return x; }
DEV float to_f32(bf16 x) { return __bfloat162float(x); }

DEV void round_to(float& to, float x) { to = x; }
DEV void round_to(bf16& to, float x) { to = __float2bfloat16(x); }
template <class T>
DEV T from_f32(float x) {
  T out;
  round_to(out, x);
  return out;
}

// Two values as the halves of a word, the first in the lower half.
DEV uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

// Element i of an array of T behind an untyped pointer, as f32.
template <class T>
DEV float load(const void* p, size_t i) {
  return to_f32(static_cast<const T*>(p)[i]);
}

// Sets element i, or with `add` adds to it, rounding once.
template <class T>
DEV void store(void* p, size_t i, float v, bool add = false) {
  T* at = static_cast<T*>(p) + i;
  *at = from_f32<T>(add ? to_f32(*at) + v : v);
}
