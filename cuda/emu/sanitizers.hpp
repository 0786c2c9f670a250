// What AddressSanitizer and ThreadSanitizer must be told of fibers and of memory made by hand. In a
// plain build all of it is empty.
//
// ThreadSanitizer: the runtime is compiled without instrumentation but with -DEMU_TSAN, kernels
// with -fsanitize=thread. Each CUDA thread is then a fiber of its own to the sanitizer, ordered
// with others by barriers alone; what the runtime does for a thread (the copy of a cp.async, the
// reads of an ldmatrix) is reported by hand.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#endif

#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, size_t);
void __tsan_write_range(void*, size_t);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace emu {

// While one lives, the thread sanitizer looks away: it watches malloc, free and memcpy even in code
// that is not instrumented. Memory allocated or freed meanwhile starts with no history.
struct Unwatched {
#ifdef EMU_TSAN
  Unwatched() {
    begin();
    depth()++;
  }
  ~Unwatched() {
    depth()--;
    end();
  }
  static void begin() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  static void end() {
    AnnotateIgnoreReadsEnd("", 0);
    AnnotateIgnoreWritesEnd("", 0);
  }
  // How many the running CUDA thread is in.
  static int& depth();
#else
  Unwatched() {}
#endif
  Unwatched(const Unwatched&) = delete;
};

// Happens-before: what a thread did before release() precedes what another does after acquire() of
// the same object.
inline void tsan_acquire([[maybe_unused]] void* object) {
#ifdef EMU_TSAN
  __tsan_acquire(object);
#endif
}
inline void tsan_release([[maybe_unused]] void* object) {
#ifdef EMU_TSAN
  __tsan_release(object);
#endif
}
inline void tsan_read([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMU_TSAN
  __tsan_read_range(const_cast<void*>(p), bytes);
#endif
}
inline void tsan_write([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMU_TSAN
  __tsan_write_range(p, bytes);
#endif
}

inline void asan_poison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMU_ASAN
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void asan_unpoison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(p, bytes);
#endif
}

}  // namespace emu
