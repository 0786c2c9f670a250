// Threads of a block as fibers on one host thread: their stacks, the switch between them, who runs
// next, the barrier.
#include <sys/mman.h>

#include <new>

#include "emu/runtime.hpp"

#ifndef __x86_64__
#error "the emulator's fiber switch is written for x86-64"
#endif

// emu_switch(save, to): keeps the registers that a call must keep on the present stack, stores the
// stack's pointer in *save, and goes on where `to` was kept.
asm(R"(
.text
.type emu_switch, @function
.globl emu_switch
.hidden emu_switch
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
)");
extern "C" void emu_switch(void** save, void* to);

namespace emu {

constinit thread_local Context* current = nullptr;

namespace {

#if defined(EMU_ASAN)
constexpr size_t STACK = 256 << 10;  // red zones make frames larger
#elif defined(EMU_TSAN)
constexpr size_t STACK = 64 << 10;  // one for every thread, see take_stack
#else
constexpr size_t STACK = 128 << 10;
#endif
constexpr size_t PAGE = 4096;

}  // namespace

uint64_t Machine::random() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1dull;
}

// The position of one of the bits of a mask that is not 0.
inline unsigned Machine::choose(uint32_t mask) {
  if (schedule == Schedule::Forward) return static_cast<unsigned>(__builtin_ctz(mask));
  if (schedule == Schedule::Reverse) return 31u - static_cast<unsigned>(__builtin_clz(mask));
  auto skip = static_cast<unsigned>(
      (random() >> 32) * static_cast<unsigned>(__builtin_popcount(mask)) >> 32);
  while (skip--) mask &= mask - 1;
  return static_cast<unsigned>(__builtin_ctz(mask));
}

// When shuffled, warps have ranks, at random but lasting: an even chance for all would keep them
// side by side, and the races that need one far ahead of another would never be seen. Now and then
// a warp gets a new rank.
inline unsigned Machine::choose_warp() {
  if (schedule != Schedule::Shuffled) return choose(ready_warps);
  uint64_t luck = random();
  unsigned best = choose(ready_warps);
  if (luck >> 55 == 0) ranks[best] = static_cast<uint32_t>(luck);
  for (uint32_t rest = ready_warps; rest; rest &= rest - 1) {
    auto w = static_cast<unsigned>(__builtin_ctz(rest));
    if (ranks[w] > ranks[best]) best = w;
  }
  return best;
}

// Takes the next thread to run from those that are ready; null if there is none. Warps go as far as
// they can before others have their turn: that is kind to the cache, and as unkind as can be to a
// missing barrier.
inline Thread* Machine::pick() {
  if (!ready_warps) return nullptr;
  unsigned w = choose_warp(), lane = choose(warps[w].ready);
  warps[w].ready &= ~(1u << lane);
  if (!warps[w].ready) ready_warps &= ~(1u << w);
  return &threads[w * 32 + lane];
}

void Machine::make_ready(unsigned warp, uint32_t lanes) {
  if (!lanes) return;
  warps[warp].ready |= lanes;
  ready_warps |= 1u << warp;
}

char* Machine::take_stack() {
#ifdef EMU_TSAN
  // A stack used before would bring races with its former owner; only new memory has no history.
  auto* fresh = static_cast<char*>(malloc(STACK));
  stacks.push_back(fresh);
  return fresh;
#else
  if (free_stacks.empty()) {
    void* raw = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    mprotect(raw, PAGE, PROT_NONE);  // an overflow stops the program
    char* fresh = static_cast<char*>(raw) + PAGE;
    stacks.push_back(fresh);
    return fresh;
  }
  char* used = free_stacks.back();
  free_stacks.pop_back();
  asan_unpoison(used, STACK);  // frames that were left, not returned from
  return used;
#endif
}

void Machine::start(Thread* thread) {
  Unwatched unwatched;
  thread->started = true;
  thread->stack = take_stack();
  // Stacks are apart by multiples of the page: without an offset the same local variable of all
  // lanes would fall into the same set of the cache.
  size_t colour = (thread->lane * 13 % 32) * 128;
  auto** top = reinterpret_cast<void**>(thread->stack + STACK - 64 - colour);
  *--top = nullptr;  // where fiber_main would return to
  *--top = reinterpret_cast<void*>(&fiber_main);
  top -= 6;
  memset(top, 0, 6 * sizeof(void*));
  thread->stack_pointer = top;
}

// From the running thread to another. Returns when somebody comes back.
inline void Machine::resume(Thread* to) {
  Thread* from = self();
  if (to == from) return;
  if (!to->started) start(to);
  current = to;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, STACK);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(to->fiber, 1);
#endif
  emu_switch(&from->stack_pointer, to->stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

// From a thread back to run_block.
void Machine::leave(Thread* from) {
  current = nullptr;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(nullptr, main_stack_bottom, main_stack_size);
#endif
#ifdef EMU_TSAN
  __tsan_switch_to_fiber(main_fiber, 1);
#endif
  emu_switch(&from->stack_pointer, main_stack_pointer);
}

void Machine::wait() {
  Thread* next = pick();
  if (!next) fail(deadlock());
  resume(next);
}

void Machine::yield() {
  Thread* me = self();
  make_ready(me->warp, 1u << me->lane);
  wait();
}

void Machine::fail(const std::string& what) {
  Unwatched unwatched;
  Thread* me = self();
  const Dim3& b = me->block;
  error = what + " (" + launch->kernel->name + ", block " + std::to_string(b.x) + "," +
          std::to_string(b.y) + "," + std::to_string(b.z) + ", thread " +
          std::to_string(me->thread.x) + ")";
  leave(me);
  __builtin_unreachable();
}

// What the waiting threads wait for: the barrier, and the first warp that is stuck in an operation.
std::string Machine::deadlock() const {
  std::string text = "deadlock: " + std::to_string(live) + " threads wait";
  if (barrier_arrived)
    text += ", " + std::to_string(barrier_arrived) + " at __syncthreads in line " +
            std::to_string(barrier_line);
  for (unsigned w = 0; w < MAX_THREADS / 32; w++) {
    if (!warps[w].arrived) continue;
    return text + ", " + std::to_string(__builtin_popcount(warps[w].arrived)) + " lanes of warp " +
           std::to_string(w) + " in " + name(warps[w].op);
  }
  return text;
}

// The end of a thread.
void Machine::finish(Thread* thread) {
  Unwatched unwatched;
  Warp& warp = warps[thread->warp];
  if (thread->copies.pending()) fail("a thread ends with cp.async under way");
  if (warp.arrived) fail(std::string("a lane ends while its warp waits in ") + name(warp.op));
  live--;
  warp.live &= ~(1u << thread->lane);
  // As on the hardware, threads that have ended are not waited for.
  if (live && barrier_arrived == live) release_barrier();
  tsan_release(&launch->end);
}

// Runs threads, one after another, on the stack it was started on.
void Machine::fiber_main() {
  Machine& m = *self()->machine;
#ifdef EMU_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (!m.main_stack_bottom) {  // the first switch of a block comes from run_block
    m.main_stack_bottom = bottom;
    m.main_stack_size = size;
  }
#endif
  tsan_acquire(&m.launch->begin);
  for (;;) {
    m.launch->kernel->entry(m.launch->params);
    Thread* me = self();
    m.finish(me);
    Thread* next = m.pick();
    if (!next) {
      if (m.live) m.fail(m.deadlock());
      m.leave(me);
    }
#ifndef EMU_TSAN
    // A thread that has not run yet goes on here: kernels without barriers never switch.
    if (!next->started) {
      next->started = true;
      next->stack = me->stack;
      current = next;
      continue;
    }
    m.free_stacks.push_back(me->stack);
#endif
    m.resume(next);
  }
}

void Machine::prepare(uint64_t index) {
  const Dim3& grid = launch->grid;
  Dim3 block{static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
             static_cast<unsigned>(index / (static_cast<uint64_t>(grid.x) * grid.y))};
  unsigned count = launch->threads;
  for (unsigned i = 0; i < count; i++) {
    Thread& t = threads[i];
    t.thread = {i, 0, 0};
    t.block = block;
    t.block_dim = {count, 1, 1};
    t.grid_dim = grid;
    t.machine = this;
    t.lane = i % 32;
    t.warp = i / 32;
    t.started = false;
    t.barriers = t.warp_syncs = 0;
    t.copies.clear();
    t.fake_stack = t.fiber = nullptr;
    t.unwatched = 0;
  }
  memset(warps, 0, sizeof warps);
  ready_warps = 0;
  for (unsigned w = 0; w * 32 < count; w++) {
    unsigned lanes = min(count - w * 32, 32u);
    warps[w].live = lanes == 32 ? ALL_LANES : (1u << lanes) - 1;
    make_ready(w, warps[w].live);
  }
  live = count;
  barrier_arrived = 0;
  schedule = launch->options.schedule;
  // A block's luck is its own, whichever host thread runs it.
  random_state =
      (launch->options.seed + 1) * 0x9e3779b97f4a7c15ull ^ (index + 1) * 0xd1342543de82ef95ull;
  if (!random_state) random_state = 1;
  for (uint32_t& rank : ranks) rank = static_cast<uint32_t>(random() >> 32);
  static_bytes = 0;
  error.clear();
  order = new Order;
  main_stack_bottom = nullptr;
}

bool Machine::run_block(uint64_t index) {
  Unwatched unwatched;
  prepare(index);
  if (!dynamic_shared.allocate(launch->shared_bytes)) {
    error = "no memory for a block's shared memory";
    delete order;
    return false;
  }
  Thread* first = pick();
  start(first);
  current = first;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&main_fake_stack, first->stack, STACK);
#endif
#ifdef EMU_TSAN
  main_fiber = __tsan_get_current_fiber();
  take_fibers();
  __tsan_switch_to_fiber(first->fiber, 1);
#endif
  emu_switch(&main_stack_pointer, first->stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(main_fake_stack, nullptr, nullptr);
#endif
  clean_up();
  return error.empty();
}

#ifdef EMU_TSAN
int& Unwatched::depth() {
  static thread_local int outside;
  return current ? self()->unwatched : outside;
}

// Gives every thread a fiber. They are made here, outside all threads: a fiber comes after what its
// maker has done.
void Machine::take_fibers() {
  fibers.resize(FIBERS);
  size_t sets = min(FIBERS / launch->threads, size_t{4});
  void** set = &fibers[blocks_run % sets * launch->threads];
  for (unsigned i = 0; i < launch->threads; i++) {
    if (!set[i]) set[i] = __tsan_create_fiber(0);
    threads[i].fiber = set[i];
  }
}

// After a failure, for the thread sanitizer: ends what threads were in the middle of, so that their
// fibers serve again.
void Machine::settle_fibers() {
  for (unsigned i = 0; i < launch->threads; i++) {
    Thread& t = threads[i];
    if (!t.started) continue;
    __tsan_switch_to_fiber(t.fiber, 1);
    for (; t.unwatched > 0; t.unwatched--) Unwatched::end();
    tsan_release(&launch->end);
    __tsan_switch_to_fiber(main_fiber, 1);
  }
}
#endif

void Machine::clean_up() {
  bool whole = dynamic_shared.intact();
  for (SharedArray& a : arrays) whole &= a.memory.intact();
  if (!whole && error.empty())
    error = std::string("write outside shared memory (") + launch->kernel->name + ")";
  dynamic_shared.release();
  for (SharedArray& a : arrays) a.memory.release();
  arrays.clear();
  delete order;
#ifdef EMU_TSAN
  for (char* s : stacks) free(s);
  stacks.clear();
  if (!error.empty()) settle_fibers();
  blocks_run++;
#else
  free_stacks = stacks;
#endif
}

void Machine::release_barrier() {
  barrier_arrived = 0;
  for (unsigned w = 0; w * 32 < launch->threads; w++) {
    make_ready(w, warps[w].at_barrier);
    warps[w].at_barrier = 0;
  }
}

void syncthreads(const char* file, int line) {
  Unwatched unwatched;
  Thread* me = self();
  Machine& m = *me->machine;
  if (m.barrier_arrived &&
      (m.barrier_line != line || (m.barrier_file != file && strcmp(m.barrier_file, file) != 0)))
    m.fail("divergent __syncthreads: lines " + std::to_string(m.barrier_line) + " and " +
           std::to_string(line));
  m.barrier_file = file;
  m.barrier_line = line;
  char* order = &m.order->barrier[me->barriers++ & 1];
  tsan_release(order);
  m.warps[me->warp].at_barrier |= 1u << me->lane;
  if (++m.barrier_arrived == m.live) m.release_barrier();
  m.wait();
  tsan_acquire(order);
}

}  // namespace emu
