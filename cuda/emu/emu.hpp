// The emulator as kernels see it: the CUDA names they use, in C++ for the host. Threads of a block
// are fibers, warp operations are collectives of 32 of them. The runtime is the .cpp files beside
// it, the driver API over it driver*.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define DEV static inline

namespace emu {

struct Dim3 {
  unsigned x, y, z;
};

// The running thread's place in its block and grid.
struct Context {
  Dim3 thread, block, block_dim, grid_dim;
};
extern constinit thread_local Context* current;  // constinit: read without a guard function

// Makes a kernel known by name.
struct Register {
  Register(const char* name, size_t params_size, size_t params_align, unsigned max_threads,
           void (*entry)(const void*));
};

// Shared memory of the running block, NaN at first: one array per call site; the part sized at the
// launch.
void* shared_array(const void* site, size_t bytes);
void* dynamic_shared();

void syncthreads(const char* file, int line);
void syncwarp(uint32_t mask);
enum class Shuffle { Xor, Index, Down, Up };
uint32_t shuffle(uint32_t mask, uint32_t value, int argument, Shuffle kind);
uint32_t ballot(uint32_t mask, bool predicate);
void ldmatrix(uint32_t* r, const void* p, int matrices, bool transposed);
void mma_16816(float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
void copy_async(void* shared, const void* global, bool valid);
void copy_commit();
void copy_wait(int pending);
void atomic_max(uint32_t* p, uint32_t v);

}  // namespace emu

#define threadIdx (emu::current->thread)
#define blockIdx (emu::current->block)
#define blockDim (emu::current->block_dim)
#define gridDim (emu::current->grid_dim)

#define __syncthreads() emu::syncthreads(__FILE__, __LINE__)
DEV void __syncwarp(uint32_t mask = 0xffffffffu) { emu::syncwarp(mask); }

template <class T>
DEV T emu_shuffle(uint32_t mask, T v, int argument, emu::Shuffle kind) {
  static_assert(sizeof(T) == 4, "shuffles move 32 bits");
  uint32_t bits;
  memcpy(&bits, &v, 4);
  bits = emu::shuffle(mask, bits, argument, kind);
  memcpy(&v, &bits, 4);
  return v;
}
template <class T>
DEV T __shfl_xor_sync(uint32_t mask, T v, int lanes) {
  return emu_shuffle(mask, v, lanes, emu::Shuffle::Xor);
}
template <class T>
DEV T __shfl_sync(uint32_t mask, T v, int lane) {
  return emu_shuffle(mask, v, lane, emu::Shuffle::Index);
}
template <class T>
DEV T __shfl_down_sync(uint32_t mask, T v, int lanes) {
  return emu_shuffle(mask, v, lanes, emu::Shuffle::Down);
}
template <class T>
DEV T __shfl_up_sync(uint32_t mask, T v, int lanes) {
  return emu_shuffle(mask, v, lanes, emu::Shuffle::Up);
}
DEV uint32_t __ballot_sync(uint32_t mask, bool p) { return emu::ballot(mask, p); }

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

struct __nv_bfloat16 {
  uint16_t x;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
DEV float __bfloat162float(__nv_bfloat16 v) {
  uint32_t bits = static_cast<uint32_t>(v.x) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
// Round to nearest, ties to even.
DEV __nv_bfloat16 __float2bfloat16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
DEV __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16(a), __float2bfloat16(b)};
}
DEV float __uint_as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
DEV uint32_t __float_as_uint(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}
DEV uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}
DEV int __popc(uint32_t v) { return __builtin_popcount(v); }
DEV int __ffs(uint32_t v) { return __builtin_ffs(static_cast<int>(v)); }
DEV float rsqrtf(float x) { return 1.f / sqrtf(x); }
using std::max;
using std::min;

DEV void ldmatrix_x4(uint32_t (&r)[4], const void* p) { emu::ldmatrix(r, p, 4, false); }
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], const void* p) { emu::ldmatrix(r, p, 4, true); }
DEV void ldmatrix_x2(uint32_t (&r)[2], const void* p) { emu::ldmatrix(r, p, 2, false); }
DEV void ldmatrix_x2_trans(uint32_t (&r)[2], const void* p) { emu::ldmatrix(r, p, 2, true); }
DEV void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emu::mma_16816(d, a, b0, b1);
}
DEV void cp_async16(void* shared, const void* global, bool valid) {
  emu::copy_async(shared, global, valid);
}
DEV void cp_async_commit() { emu::copy_commit(); }
template <int N>
DEV void cp_async_wait() {
  emu::copy_wait(N);
}
DEV void atomic_max_u32(uint32_t* p, uint32_t v) { emu::atomic_max(p, v); }
