// A block's shared memory, and the asynchronous copies into it.
#include "emu/runtime.hpp"

namespace emu {

namespace {
// What a block may have in SHARED arrays; more must be asked for at the launch.
constexpr size_t MAX_STATIC = 48 << 10;
constexpr size_t MAX_SHARED = 227 << 10;
}  // namespace

bool Machine::is_shared(const void* p, size_t bytes) const {
  if (dynamic_shared.contains(p, bytes)) return true;
  for (const SharedArray& a : arrays)
    if (a.memory.contains(p, bytes)) return true;
  return false;
}

void* shared_array(const void* site, size_t bytes) {
  Machine& m = *self()->machine;
  for (const SharedArray& a : m.arrays)
    if (a.site == site) return a.memory.data;
  Unwatched unwatched;
  m.static_bytes += (bytes + 15) / 16 * 16;
  if (m.static_bytes > MAX_STATIC) m.fail("more than 48 KiB in shared arrays");
  if (m.static_bytes + m.dynamic_shared.bytes > MAX_SHARED)
    m.fail("more than 227 KiB of shared memory");
  SharedArray fresh{site, {}};
  if (!fresh.memory.allocate(bytes)) m.fail("no memory for a shared array");
  m.arrays.push_back(fresh);
  return fresh.memory.data;
}

void* dynamic_shared() { return self()->machine->dynamic_shared.data; }

namespace {

void perform(Copy& copy) {
  if (copy.done) return;
  copy.done = true;
  tsan_write(copy.shared, 16);
  if (copy.valid) tsan_read(copy.global, 16);
  Unwatched unwatched;
  if (copy.valid)
    memcpy(copy.shared, copy.global, 16);
  else
    memset(copy.shared, 0, 16);
}

}  // namespace

void copy_async(void* shared, const void* global, bool valid) {
  Thread* me = self();
  Machine& m = *me->machine;
  if (!m.is_shared(shared, 16)) m.fail("cp.async: address outside shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % 16)
    m.fail("cp.async: shared address not aligned to 16 bytes");
  if (valid && reinterpret_cast<uintptr_t>(global) % 16)
    m.fail("cp.async: global address not aligned to 16 bytes");
  Copy copy{shared, global, valid, false};
  Async async = m.launch->options.async;
  if (async == Async::Early || (async == Async::Random && m.random() >> 63)) perform(copy);
  Unwatched unwatched;
  me->copies.list.push_back(copy);
}

void copy_commit() {
  Unwatched unwatched;
  Copies& c = self()->copies;
  c.ends.push_back(c.list.size());
}

void copy_wait(int pending) {
  Copies& c = self()->copies;
  while (c.ends.size() > c.first + static_cast<size_t>(pending)) {
    for (size_t i = c.first ? c.ends[c.first - 1] : 0; i < c.ends[c.first]; i++) perform(c.list[i]);
    c.first++;
  }
  // Long loops never have nothing under way: forget what is done now and then.
  if (c.first < 16 && c.first < c.ends.size()) return;
  Unwatched unwatched;
  size_t done = c.first ? c.ends[c.first - 1] : 0;
  c.list.erase(c.list.begin(), c.list.begin() + static_cast<ptrdiff_t>(done));
  c.ends.erase(c.ends.begin(), c.ends.begin() + static_cast<ptrdiff_t>(c.first));
  for (size_t& end : c.ends) end -= done;
  c.first = 0;
}

void atomic_max(uint32_t* p, uint32_t v) {
  uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < v &&
         !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

}  // namespace emu
