// The emulator's inside: the machine that runs one block at a time on one host thread. Kernels
// never see it.
#pragma once
#include <atomic>
#include <string>
#include <vector>

#include "emu/emu.hpp"
#include "emu/guarded.hpp"
// The names that kernels use for their place would be in the way here.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emu {

constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr unsigned MAX_THREADS = 1024;
// Of the thread sanitizer for one machine; it can have some 8000 in all.
constexpr size_t FIBERS = 2048;

// In which order threads that could run do: lowest warp and lane first, highest first, or any.
enum class Schedule : uint32_t { Forward, Reverse, Shuffled };
// When a cp.async takes effect: in the wait that guarantees it, at once, or either. Code must be
// right for all.
enum class Async : uint32_t { Late, Early, Random };

struct Options {
  Schedule schedule = Schedule::Forward;
  Async async = Async::Late;
  uint64_t seed = 1;
  unsigned workers = 0;  // host threads, 0 for one per core
};

// A registered kernel.
struct Kernel {
  const char* name;
  size_t params_size, params_align;
  unsigned max_threads;
  void (*entry)(const void*);
  std::atomic<unsigned> max_dynamic_shared{48 << 10};
};
Kernel* find_kernel(const std::string& name);

// One launch, read by all host threads that run its blocks.
struct Launch {
  const Kernel* kernel;
  const void* params;
  Dim3 grid;
  unsigned threads;
  size_t shared_bytes;
  Options options;

  // The order of blocks follows the schedule.
  uint64_t first_block = 0, block_step = 1;
  std::atomic<uint64_t> next_block{0};
  std::atomic<bool> failed{false};
  std::string error;  // of the first block that failed
  // For the thread sanitizer: what precedes the launch precedes its threads, and they what follows
  // it.
  char begin, end;

  uint64_t blocks() const { return static_cast<uint64_t>(grid.x) * grid.y * grid.z; }
};
// Runs all blocks; what went wrong, or nothing.
std::string run(const Kernel& kernel, Dim3 grid, unsigned threads, size_t shared_bytes,
                const void* params, const Options& options);

// A cp.async that was issued by a thread.
struct Copy {
  void* shared;
  const void* global;
  bool valid, done;
};

// The copies of one thread: those of groups first, each up to its end, then those not yet
// committed.
struct Copies {
  std::vector<Copy> list;
  std::vector<size_t> ends;
  size_t first = 0;  // groups before it have been waited for

  bool pending() const { return list.size() > (first ? ends[first - 1] : 0); }
  void clear() {
    list.clear();
    ends.clear();
    first = 0;
  }
};

// Warp operations. Lanes that meet must have come with the same one.
enum class Op : uint8_t {
  SyncWarp,
  ShuffleXor,
  ShuffleIndex,
  ShuffleDown,
  ShuffleUp,
  Ballot,
  LdmatrixX2,
  LdmatrixX4,
  LdmatrixX2Trans,
  LdmatrixX4Trans,
  Mma
};

// What a lane brings to a warp operation, and where it wants the result.
struct Operands {
  uint32_t value, b0, b1;
  int argument;
  uint32_t* out;
  float* d;
  const uint32_t* a;
  const void* address;
};

// A CUDA thread. It has a stack from the moment it first runs.
struct Thread : Context {
  struct Machine* machine;
  void* stack_pointer;
  char* stack;
  unsigned lane, warp;
  bool started;
  Operands operands;
  unsigned barriers, warp_syncs;
  Copies copies;
  void* fake_stack;  // of the address sanitizer
  void* fiber;       // of the thread sanitizer
  int unwatched;     // see Unwatched
};

// Lanes as bits. A lane that is live is running, ready, at the barrier, or arrived at a warp
// operation.
struct Warp {
  uint32_t live, ready, at_barrier, arrived;
  Op op;
};

// Objects by which barriers order threads for the thread sanitizer; two of each, used in turn, so
// that a fast thread's next barrier is not taken for the present one. New for every block: blocks
// are not ordered.
struct Order {
  char barrier[2];
  char warp[MAX_THREADS / 32][2];
};

using SharedMemory = Guarded<256>;

struct SharedArray {
  const void* site;
  SharedMemory memory;
};

struct Machine {
  Thread threads[MAX_THREADS];
  Warp warps[MAX_THREADS / 32];
  uint32_t ready_warps;
  unsigned live;
  unsigned barrier_arrived;
  const char* barrier_file;
  int barrier_line;

  SharedMemory dynamic_shared;
  std::vector<SharedArray> arrays;
  size_t static_bytes;

  Launch* launch = nullptr;
  Schedule schedule;
  uint64_t random_state;
  uint32_t ranks[MAX_THREADS / 32];
  std::string error;
  Order* order = nullptr;

  std::vector<char*> stacks, free_stacks;
  // Of the thread sanitizer. Making one is slow, so they are used again, but not in blocks that
  // follow each other: those would seem to come one before the other, and a race between them would
  // be missed.
  std::vector<void*> fibers;
  unsigned blocks_run = 0;
  void* main_stack_pointer;
  void* main_fake_stack;
  const void* main_stack_bottom;
  size_t main_stack_size;
  void* main_fiber;

  // Runs a block to its end; false, with `error` set, if it failed.
  bool run_block(uint64_t index);

  // For the running thread: gives way until made ready again. It may be woken only by others.
  void wait();
  // Gives way, staying ready.
  void yield();
  // Ends the block. Threads are left where they are.
  [[noreturn]] void fail(const std::string& what);
  void make_ready(unsigned warp, uint32_t lanes);
  void release_barrier();
  uint64_t random();
  // Whether a range lies in the block's shared memory.
  bool is_shared(const void* p, size_t bytes) const;

 private:
  Thread* pick();
  unsigned choose(uint32_t mask);
  unsigned choose_warp();
  void start(Thread* thread);
  void resume(Thread* to);
  void leave(Thread* from);
  void finish(Thread* thread);
  void prepare(uint64_t index);
  void clean_up();
  void take_fibers();
  void settle_fibers();
  char* take_stack();
  std::string deadlock() const;
  static void fiber_main();
};

// From now on a wild address in a kernel fails its launch, not the program.
void catch_faults();

const char* name(Op op);
inline Thread* self() { return static_cast<Thread*>(current); }

}  // namespace emu
