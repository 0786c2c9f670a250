// What the files of the emulated driver API share. The functions have the names of cuda.h with the
// prefix emu_, the same arguments and the same results.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = struct EmuContext*;
using CUmodule = struct EmuModule*;
using CUfunction = struct EmuFunction*;
using CUstream = struct EmuStream*;
using CUevent = struct EmuEvent*;
using CUgraph = struct EmuGraph*;
using CUgraphExec = struct EmuGraphExec*;
using CUmemoryPool = struct EmuMemoryPool*;

constexpr CUresult CUDA_SUCCESS = 0;
constexpr CUresult CUDA_ERROR_INVALID_VALUE = 1;
constexpr CUresult CUDA_ERROR_OUT_OF_MEMORY = 2;
constexpr CUresult CUDA_ERROR_NOT_INITIALIZED = 3;
constexpr CUresult CUDA_ERROR_INVALID_DEVICE = 101;
constexpr CUresult CUDA_ERROR_INVALID_CONTEXT = 201;
constexpr CUresult CUDA_ERROR_INVALID_HANDLE = 400;
constexpr CUresult CUDA_ERROR_NOT_FOUND = 500;
constexpr CUresult CUDA_ERROR_ILLEGAL_ADDRESS = 700;
constexpr CUresult CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712;
constexpr CUresult CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713;
constexpr CUresult CUDA_ERROR_LAUNCH_FAILED = 719;
constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900;
constexpr CUresult CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901;
constexpr CUresult CUDA_ERROR_ILLEGAL_STATE = 401;

namespace emu {

// Returns `code`; emu_last_error() tells `text` until the next error on this host thread.
CUresult error(CUresult code, const std::string& text);

// Success if this host thread has a current context.
CUresult need_context();

// Does `work` now, or keeps it where the stream is being captured. A device that has failed does no
// more work.
CUresult submit(CUstream stream, std::function<CUresult()> work);

// An error, for ever, once a kernel has failed as `DUPLEX_EMU_FAIL_AT` asks.
CUresult check_device();

// An error, which also spoils the capture, if this host thread is capturing.
CUresult forbid_capture(const char* what);

// An error if something was written beside memory that this host thread allocated.
CUresult check_guards();

}  // namespace emu
