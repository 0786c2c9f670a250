// How a kernel is declared: an entry takes one plain struct by value and nothing else.
//
//   struct ScaleParams { const void* x; void* y; uint32_t n; float scale; };
//   KERNEL(scale_f32, ScaleParams, 256) { ... p.x ... }
//
// The third argument is the largest block it is launched with.
#pragma once
#include "ptx/ptx.cuh"

#ifdef __CUDACC__
// How functions of structs are declared; free ones are DEV.
#define METHOD __device__ __forceinline__
#define KERNEL(name, Params, threads) \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Params p)
// Shared memory of fixed size; of a size given at the launch.
#define SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define DYN_SHARED(T, name)                                        \
  extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(dynamic_shared)
#else
#define METHOD inline
#define KERNEL(name, Params, threads)                               \
  static void name(const Params& p);                                \
  static const emu::Register name##_registered{                     \
      #name, sizeof(Params), alignof(Params), threads,              \
      [](const void* p) { name(*static_cast<const Params*>(p)); }}; \
  static void name(const Params& p)
#define SHARED(T, name, n)             \
  static const char name##_site = 0;   \
  T(&name)[n] = *reinterpret_cast<T(*)[n]>(emu::shared_array(&name##_site, sizeof(T) * (n)))
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(emu::dynamic_shared())
#endif

// Threads of a warp.
constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;

DEV int lane_id() { return static_cast<int>(threadIdx.x) % WARP; }
DEV int warp_id() { return static_cast<int>(threadIdx.x) / WARP; }

DEV bool finite(float x) { return fabsf(x) < INFINITY; }
