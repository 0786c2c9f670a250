// The emulated driver API: errors, the device, contexts, modules, functions, launches.
#include "emu/driver.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "emu/runtime.hpp"

namespace emu {

namespace {

constexpr int MAX_OPTIN_SHARED = 232448;  // bytes, as on compute capability 9.0
constexpr int MAX_STATIC_SHARED = 48 << 10;

thread_local std::string last_error;
thread_local bool context_is_current = false;
std::atomic<bool> initialized{false};

// One of the words that an environment variable may have; 0 without it.
uint32_t word_of(const char* variable, std::initializer_list<const char*> words) {
  const char* value = getenv(variable);
  if (!value || !*value) return 0;
  uint32_t i = 0;
  for (const char* w : words) {
    if (strcmp(value, w) == 0) return i;
    i++;
  }
  fprintf(stderr, "%s=%s is not known to the emulator\n", variable, value);
  abort();
}

Options read_environment() {
  Options o;
  o.schedule =
      static_cast<Schedule>(word_of("DUPLEX_EMU_SCHEDULE", {"forward", "reverse", "shuffled"}));
  o.async = static_cast<Async>(word_of("DUPLEX_EMU_ASYNC", {"late", "early", "random"}));
  if (const char* seed = getenv("DUPLEX_EMU_SEED")) o.seed = strtoull(seed, nullptr, 10);
  return o;
}

Options& options() {
  static const Options of_process = read_environment();
  thread_local Options of_thread = of_process;
  return of_thread;
}

Kernel* kernel_of(CUfunction f) { return reinterpret_cast<Kernel*>(f); }

struct ErrorText {
  CUresult code;
  const char *name, *text;
};
constexpr ErrorText error_texts[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "operation not permitted in this state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS",
     "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
};

const ErrorText* find_error(CUresult code) {
  for (const ErrorText& e : error_texts)
    if (e.code == code) return &e;
  return nullptr;
}

// A card answers every call with the error of a kernel that failed, until the process ends.
std::atomic<bool> device_failed = false;

// Whether the kernel that is to be started is the one that fails: the number `DUPLEX_EMU_FAIL_AT`
// of this process.
bool fails_now() {
  static const uint64_t fails_at = [] {
    const char* n = getenv("DUPLEX_EMU_FAIL_AT");
    return n ? strtoull(n, nullptr, 10) : 0;
  }();
  static std::atomic<uint64_t> started = 0;
  return fails_at && ++started == fails_at;
}

// The parameters of a launch, at the alignment that the kernel expects.
struct Parameters {
  explicit Parameters(const Kernel& k, const void* from) {
    bytes = aligned_alloc(64, (k.params_size + 63) / 64 * 64);
    if (bytes) memcpy(bytes, from, k.params_size);
  }
  ~Parameters() { free(bytes); }
  Parameters(const Parameters&) = delete;
  void* bytes;
};

}  // namespace

CUresult error(CUresult code, const std::string& text) {
  last_error = text;
  return code;
}

CUresult check_device() {
  if (!device_failed) return CUDA_SUCCESS;
  return error(CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel has failed before, as was asked for");
}

CUresult need_context() {
  if (context_is_current) return CUDA_SUCCESS;
  return error(CUDA_ERROR_INVALID_CONTEXT, "no context is current on this host thread");
}

}  // namespace emu

using namespace emu;

extern "C" {

// Text of the last error on this host thread; never null.
const char* emu_last_error() { return last_error.c_str(); }

// How the launches of this host thread run; workers 0 means one host thread per core.
void emu_configure(uint32_t schedule, uint32_t async, uint64_t seed, uint32_t workers) {
  Options& o = options();
  o.schedule = static_cast<Schedule>(schedule % 3);
  o.async = static_cast<Async>(async % 3);
  o.seed = seed;
  o.workers = workers;
}

CUresult emu_cuInit(unsigned flags) {
  if (flags) return error(CUDA_ERROR_INVALID_VALUE, "cuInit: flags must be 0");
  initialized = true;
  return CUDA_SUCCESS;
}

CUresult emu_cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}

CUresult emu_cuDeviceGetCount(int* count) {
  if (!initialized) return error(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult emu_cuDeviceGet(CUdevice* device, int ordinal) {
  if (!initialized) return error(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
  if (ordinal != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult emu_cuDeviceGetName(char* name, int length, CUdevice device) {
  if (device != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  snprintf(name, static_cast<size_t>(length), "emulated");
  return CUDA_SUCCESS;
}

CUresult emu_cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  if (device != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  switch (attribute) {
    // MAX_THREADS_PER_BLOCK
    case 1: *value = MAX_THREADS; break;
    // MAX_SHARED_MEMORY_PER_BLOCK
    case 8: *value = MAX_STATIC_SHARED; break;
    // WARP_SIZE
    case 10: *value = 32; break;
    // MULTIPROCESSOR_COUNT
    case 16: *value = static_cast<int>(std::thread::hardware_concurrency()); break;
    // COMPUTE_CAPABILITY_MAJOR
    case 75: *value = 8; break;
    // COMPUTE_CAPABILITY_MINOR
    case 76: *value = 0; break;
    // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 97: *value = MAX_OPTIN_SHARED; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult emu_cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (device != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  static char only;
  *context = reinterpret_cast<CUcontext>(&only);
  return CUDA_SUCCESS;
}

CUresult emu_cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

CUresult emu_cuCtxSetCurrent(CUcontext context) {
  context_is_current = context != nullptr;
  return CUDA_SUCCESS;
}

// All registered kernels are in one module, whatever the image.
CUresult emu_cuModuleLoadData(CUmodule* module, const void*) {
  if (CUresult e = need_context()) return e;
  static char only;
  *module = reinterpret_cast<CUmodule>(&only);
  return CUDA_SUCCESS;
}

CUresult emu_cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

CUresult emu_cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  Kernel* k = find_kernel(name);
  if (!k) return error(CUDA_ERROR_NOT_FOUND, std::string("no kernel is called ") + name);
  *function = reinterpret_cast<CUfunction>(k);
  return CUDA_SUCCESS;
}

constexpr int FUNC_MAX_THREADS = 0;
constexpr int FUNC_MAX_DYNAMIC_SHARED = 8;

CUresult emu_cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  if (attribute != FUNC_MAX_DYNAMIC_SHARED) return CUDA_SUCCESS;
  if (value < 0 || value > MAX_OPTIN_SHARED)
    return error(CUDA_ERROR_INVALID_VALUE,
                 std::to_string(value) + " bytes of shared memory for one block");
  kernel_of(function)->max_dynamic_shared = static_cast<unsigned>(value);
  return CUDA_SUCCESS;
}

CUresult emu_cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
  switch (attribute) {
    case FUNC_MAX_THREADS: *value = static_cast<int>(kernel_of(function)->max_threads); break;
    case FUNC_MAX_DYNAMIC_SHARED:
      *value = static_cast<int>(kernel_of(function)->max_dynamic_shared);
      break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult emu_cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* size) {
  if (index > 0) return error(CUDA_ERROR_INVALID_VALUE, "kernels have one parameter");
  *offset = 0;
  if (size) *size = kernel_of(function)->params_size;
  return CUDA_SUCCESS;
}

CUresult emu_cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                            unsigned block_x, unsigned block_y, unsigned block_z,
                            unsigned shared_bytes, CUstream stream, void** params, void** extra) {
  if (CUresult e = need_context()) return e;
  if (!function) return error(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernel: no function");
  Kernel& k = *kernel_of(function);
  auto invalid = [&](const std::string& what) {
    return error(CUDA_ERROR_INVALID_VALUE, what + " (" + k.name + ")");
  };
  if (!grid_x || !grid_y || !grid_z || grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535)
    return invalid("a grid of " + std::to_string(grid_x) + " x " + std::to_string(grid_y) + " x " +
                   std::to_string(grid_z));
  if (block_y != 1 || block_z != 1) return invalid("blocks are one-dimensional");
  if (!block_x || block_x > k.max_threads || block_x > MAX_THREADS)
    return invalid("a block of " + std::to_string(block_x) + " threads where at most " +
                   std::to_string(k.max_threads) + " are allowed");
  if (shared_bytes > k.max_dynamic_shared)
    return invalid(std::to_string(shared_bytes) +
                   " bytes of dynamic shared memory, more than were asked for");
  if (!params || !params[0] || extra) return invalid("a launch takes one parameter");

  auto copy = std::make_shared<Parameters>(k, params[0]);
  if (!copy->bytes) return error(CUDA_ERROR_OUT_OF_MEMORY, "no memory for parameters");
  Dim3 grid{grid_x, grid_y, grid_z};
  return submit(stream, [&k, grid, block_x, shared_bytes, copy] {
    if (fails_now()) {
      device_failed = true;
      return error(CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel fails, as was asked for");
    }
    std::string what = run(k, grid, block_x, shared_bytes, copy->bytes, options());
    if (!what.empty()) return error(CUDA_ERROR_LAUNCH_FAILED, what);
    static const bool check_always = getenv("DUPLEX_EMU_GUARDS") != nullptr;
    return check_always ? check_guards() : CUDA_SUCCESS;
  });
}

CUresult emu_cuGetErrorName(CUresult code, const char** text) {
  const ErrorText* e = find_error(code);
  *text = e ? e->name : nullptr;
  return e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult emu_cuGetErrorString(CUresult code, const char** text) {
  const ErrorText* e = find_error(code);
  *text = e ? e->text : nullptr;
  return e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // extern "C"
