// Launches: the kernels known by name, and blocks spread over host threads.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "emu/runtime.hpp"

namespace emu {

namespace {

std::map<std::string, Kernel>& kernels() {
  // Filled while the program starts, never freed.
  static auto* all = new std::map<std::string, Kernel>;
  return *all;
}

}  // namespace

Register::Register(const char* name, size_t params_size, size_t params_align, unsigned max_threads,
                   void (*entry)(const void*)) {
  auto [at, fresh] = kernels().try_emplace(name);
  if (!fresh) {
    fprintf(stderr, "two kernels are called %s\n", name);
    abort();
  }
  Kernel& k = at->second;
  k.name = name;
  k.params_size = params_size;
  k.params_align = params_align;
  k.max_threads = max_threads;
  k.entry = entry;
}

Kernel* find_kernel(const std::string& name) {
  auto at = kernels().find(name);
  return at == kernels().end() ? nullptr : &at->second;
}

namespace {

// Host threads that help with launches, and the machines, which are kept for their stacks.
struct Pool {
  std::mutex mutex;
  std::condition_variable work, done;
  struct Job {
    Launch* launch;
    unsigned helpers, most;
  };
  std::vector<Job*> jobs;
  std::vector<Machine*> idle;
  // Asked once: it reads files.
  const unsigned cores = max(1u, std::thread::hardware_concurrency());

  Pool() {
    catch_faults();
    for (unsigned i = 1; i < cores; i++) std::thread([this] { help(); }).detach();
  }

  Machine* take_machine() {
    std::lock_guard lock(mutex);
    if (idle.empty()) return new Machine;
    Machine* m = idle.back();
    idle.pop_back();
    return m;
  }
  void give_machine(Machine* m) {
    std::lock_guard lock(mutex);
    idle.push_back(m);
  }

  Job* find_job() {
    for (Job* j : jobs)
      if (!j->launch->failed && j->helpers < j->most && j->launch->next_block < j->launch->blocks())
        return j;
    return nullptr;
  }
  void help();
};

Pool& pool() {
  static auto* p = new Pool;  // its threads live as long as the process
  return *p;
}

// Runs one more block of the launch; false if there is none left.
bool run_next(Machine& m, Launch& launch) {
  uint64_t count = launch.blocks(), i = launch.next_block.fetch_add(1);
  if (i >= count || launch.failed) return false;
  // 128-bit: the product of two block numbers.
  auto index = static_cast<uint64_t>(
      (launch.first_block + static_cast<unsigned __int128>(i) * launch.block_step) % count);
  m.launch = &launch;
  if (m.run_block(index)) return true;
  std::lock_guard lock(pool().mutex);
  if (!launch.failed.exchange(true)) launch.error = m.error;
  return false;
}

void Pool::help() {
  std::unique_lock lock(mutex);
  for (;;) {
    Job* job;
    while (!(job = find_job())) work.wait(lock);
    job->helpers++;
    lock.unlock();
    Machine* m = take_machine();
    while (run_next(*m, *job->launch)) {
    }
    give_machine(m);
    lock.lock();
    job->helpers--;
    done.notify_all();
  }
}

// Greatest step that visits all blocks, near the golden section so that neighbours come far apart.
uint64_t shuffled_step(uint64_t blocks) {
  auto step = static_cast<uint64_t>(static_cast<double>(blocks) * 0.618);
  while (step > 1 && std::gcd(step, blocks) != 1) step--;
  return step ? step : 1;
}

}  // namespace

std::string run(const Kernel& kernel, Dim3 grid, unsigned threads, size_t shared_bytes,
                const void* params, const Options& options) {
  Launch launch{};
  launch.kernel = &kernel;
  launch.params = params;
  launch.grid = grid;
  launch.threads = threads;
  launch.shared_bytes = shared_bytes;
  launch.options = options;
  tsan_release(&launch.begin);
  uint64_t blocks = launch.blocks();
  if (options.schedule == Schedule::Reverse) {
    launch.first_block = blocks - 1;
    launch.block_step = blocks > 1 ? blocks - 1 : 1;
  } else if (options.schedule == Schedule::Shuffled) {
    launch.first_block = options.seed % blocks;
    launch.block_step = shuffled_step(blocks);
  }

  Pool& p = pool();
  Pool::Job job{&launch, 0, (options.workers ? options.workers : p.cores) - 1};
  Machine* m = p.take_machine();
  // Help is called only for a launch that lasts longer than waking a thread.
  auto start = std::chrono::steady_clock::now();
  bool more = true;
  while (more && std::chrono::steady_clock::now() - start < std::chrono::microseconds(30))
    more = run_next(*m, launch);
  if (more && job.most > 0) {
    {
      std::lock_guard lock(p.mutex);
      p.jobs.push_back(&job);
    }
    p.work.notify_all();
    while (run_next(*m, launch)) {
    }
    std::unique_lock lock(p.mutex);
    p.jobs.erase(std::find(p.jobs.begin(), p.jobs.end(), &job));
    p.done.wait(lock, [&] { return job.helpers == 0; });
  } else {
    while (more) more = run_next(*m, launch);
  }
  p.give_machine(m);
  tsan_acquire(&launch.end);
  return launch.error;
}

}  // namespace emu
