// How functions of structs are declared in kernels; free ones are DEV.
#pragma once
#include "lib/kernel.cuh"

#ifdef __CUDACC__
#define METHOD __device__ __forceinline__
#else
#define METHOD inline
#endif
