// Memory of the emulated device: NaN at first, with a zone on both sides that nobody may write.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emu/sanitizers.hpp"

namespace emu {

// A heap allocation of its own, aligned to 256 bytes. It and the zones around it are filled with
// 0xff, a NaN in every float type: a read outside it spoils the result, a write outside it is found
// by intact(). Under AddressSanitizer either stops the program.
template <size_t zone>
struct Guarded {
  char* data = nullptr;
  size_t bytes = 0;

  // False if there is no memory.
  bool allocate(size_t size) {
    void* raw = nullptr;
    if (size > SIZE_MAX / 2 || posix_memalign(&raw, 256, size + 2 * zone)) return false;
    data = static_cast<char*>(raw) + zone;
    bytes = size;
    memset(raw, 0xff, size + 2 * zone);
    asan_poison(raw, zone);
    asan_poison(data + bytes, zone);
    return true;
  }

  // Whether nothing was written beside it; repairs the zones, so that damage is reported once.
  bool intact() {
    unpoison();
    bool whole = clean(data - zone) & clean(data + bytes);
    asan_poison(data - zone, zone);
    asan_poison(data + bytes, zone);
    return whole;
  }

  void release() {
    unpoison();
    free(data - zone);
    data = nullptr;
  }

  bool contains(const void* p, size_t size) const {
    size_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(data);
    return offset <= bytes && size <= bytes - offset;
  }

 private:
  void unpoison() {
    asan_unpoison(data - zone, zone);
    asan_unpoison(data + bytes, zone);
  }
  static bool clean(char* p) {
    uint64_t all = ~0ull;
    for (size_t i = 0; i < zone; i += 8) {
      uint64_t word;
      memcpy(&word, p + i, 8);
      all &= word;
    }
    if (all == ~0ull) return true;
    memset(p, 0xff, zone);
    return false;
  }
};

}  // namespace emu
