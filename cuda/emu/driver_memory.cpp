// The emulated driver API: device memory, copies, fills. A device address is a host address.
#include <unistd.h>

#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "emu/driver.hpp"
#include "emu/guarded.hpp"

namespace emu {

namespace {

// The zones hold a row of most tensors, the common overrun.
struct Allocation {
  Guarded<4096> memory;
  std::thread::id owner;
};

struct Heap {
  std::mutex mutex;
  std::map<uint64_t, Allocation> live;  // by address
  size_t used = 0;
  std::set<void*> registered;  // host memory, by its beginning

  // The allocation that a range lies in, or null.
  Allocation* find(uint64_t address, size_t bytes) {
    auto after = live.upper_bound(address);
    if (after == live.begin()) return nullptr;
    Allocation& a = std::prev(after)->second;
    return a.memory.contains(reinterpret_cast<void*>(address), bytes) ? &a : nullptr;
  }
};

Heap& heap() {
  static auto* h = new Heap;  // outlives whatever frees memory late
  return *h;
}

size_t physical_memory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

CUresult check_range(const char* what, CUdeviceptr address, size_t bytes) {
  std::lock_guard lock(heap().mutex);
  if (heap().find(address, bytes)) return CUDA_SUCCESS;
  return error(CUDA_ERROR_INVALID_VALUE,
               std::string(what) + " of " + std::to_string(bytes) + " bytes outside device memory");
}

void* host(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

std::string damage(const Allocation& a) {
  return "a kernel wrote beside an allocation of " + std::to_string(a.memory.bytes) + " bytes";
}

}  // namespace

CUresult check_guards() {
  std::lock_guard lock(heap().mutex);
  for (auto& [address, a] : heap().live)
    if (a.owner == std::this_thread::get_id() && !a.memory.intact())
      return error(CUDA_ERROR_ILLEGAL_ADDRESS, damage(a));
  return CUDA_SUCCESS;
}

}  // namespace emu

using namespace emu;

extern "C" {

CUresult emu_cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  if (device != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  *bytes = physical_memory();
  return CUDA_SUCCESS;
}

CUresult emu_cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  if (CUresult e = need_context()) return e;
  std::lock_guard lock(heap().mutex);
  *total = physical_memory();
  *free_bytes = *total > heap().used ? *total - heap().used : 0;
  return CUDA_SUCCESS;
}

CUresult emu_cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  if (device != 0) return error(CUDA_ERROR_INVALID_DEVICE, "there is one emulated device");
  *pool = reinterpret_cast<CUmemoryPool>(&heap());
  return CUDA_SUCCESS;
}

// The heap gives memory back at once, whatever it is told to keep.
CUresult emu_cuMemPoolSetAttribute(CUmemoryPool pool, int, void* value) {
  if (pool == reinterpret_cast<CUmemoryPool>(&heap()) && value) return CUDA_SUCCESS;
  return error(CUDA_ERROR_INVALID_VALUE, "not a pool of this device, or no value");
}

CUresult emu_cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream) {
  if (CUresult e = need_context()) return e;
  if (CUresult e = forbid_capture("an allocation")) return e;
  if (!bytes) return error(CUDA_ERROR_INVALID_VALUE, "an allocation of 0 bytes");
  {
    std::lock_guard lock(heap().mutex);
    size_t total = physical_memory();
    if (bytes > total || heap().used > total - bytes)
      return error(CUDA_ERROR_OUT_OF_MEMORY, "no more device memory");
    heap().used += bytes;
  }
  Allocation a{{}, std::this_thread::get_id()};
  bool made = a.memory.allocate(bytes);
  std::lock_guard lock(heap().mutex);
  if (!made) {
    heap().used -= bytes;
    return error(CUDA_ERROR_OUT_OF_MEMORY, "no more host memory");
  }
  *address = reinterpret_cast<uint64_t>(a.memory.data);
  heap().live.emplace(*address, a);
  return CUDA_SUCCESS;
}

CUresult emu_cuMemFreeAsync(CUdeviceptr address, CUstream) {
  if (CUresult e = need_context()) return e;
  if (CUresult e = forbid_capture("a free")) return e;
  if (!address) return CUDA_SUCCESS;
  Allocation a;
  {
    std::lock_guard lock(heap().mutex);
    auto at = heap().live.find(address);
    if (at == heap().live.end())
      return error(CUDA_ERROR_INVALID_VALUE, "free of what was not allocated");
    a = at->second;
    heap().live.erase(at);
    heap().used -= a.memory.bytes;
  }
  bool whole = a.memory.intact();
  a.memory.release();
  return whole ? CUDA_SUCCESS : error(CUDA_ERROR_ILLEGAL_ADDRESS, damage(a));
}

CUresult emu_cuMemHostAlloc(void** p, size_t bytes, unsigned) {
  if (CUresult e = need_context()) return e;
  *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *p ? CUDA_SUCCESS : error(CUDA_ERROR_OUT_OF_MEMORY, "no more host memory");
}

CUresult emu_cuMemFreeHost(void* p) {
  free(p);
  return CUDA_SUCCESS;
}

CUresult emu_cuMemHostRegister_v2(void* p, size_t bytes, unsigned) {
  if (CUresult e = need_context()) return e;
  if (!p || !bytes) return error(CUDA_ERROR_INVALID_VALUE, "no host memory to register");
  std::lock_guard lock(heap().mutex);
  if (heap().registered.insert(p).second) return CUDA_SUCCESS;
  return error(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "host memory is registered twice");
}

CUresult emu_cuMemHostUnregister(void* p) {
  if (CUresult e = need_context()) return e;
  std::lock_guard lock(heap().mutex);
  if (heap().registered.erase(p)) return CUDA_SUCCESS;
  return error(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "host memory was not registered");
}

CUresult emu_cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  if (CUresult e = check_range("copy to the device", to, bytes)) return e;
  return submit(stream, [=] {
    memcpy(host(to), from, bytes);
    return CUDA_SUCCESS;
  });
}

CUresult emu_cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  if (CUresult e = check_range("copy from the device", from, bytes)) return e;
  return submit(stream, [=] {
    memcpy(to, host(from), bytes);
    return CUDA_SUCCESS;
  });
}

CUresult emu_cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  if (CUresult e = check_range("copy on the device", to, bytes)) return e;
  if (CUresult e = check_range("copy on the device", from, bytes)) return e;
  return submit(stream, [=] {
    memmove(host(to), host(from), bytes);
    return CUDA_SUCCESS;
  });
}

CUresult emu_cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  if (CUresult e = check_range("fill", to, count)) return e;
  return submit(stream, [=] {
    memset(host(to), value, count);
    return CUDA_SUCCESS;
  });
}

CUresult emu_cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  if (count > SIZE_MAX / 4 || to % 4)
    return error(CUDA_ERROR_INVALID_VALUE, "fill of words: bad address or count");
  if (CUresult e = check_range("fill", to, count * 4)) return e;
  return submit(stream, [=] {
    auto* words = static_cast<uint32_t*>(host(to));
    for (size_t i = 0; i < count; i++) words[i] = value;
    return CUDA_SUCCESS;
  });
}

}  // extern "C"
