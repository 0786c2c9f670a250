// A library with NCCL's functions, for ranks that are processes of one machine with emulated
// devices: every byte is a message, and a message is a file in the folder that DUPLEX_FAKE_NCCL
// names. As the real one with communicators that do not block: calls come back at once and go on in
// a thread; nothing is told of a rank that is gone, and only an abort ends a call that waits for
// it. Memory of the emulated device is the host's, and its streams are done with all before a call
// is made. Sums are taken from the last rank to the first: whoever needs another order has to see
// to it.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum Result { SUCCESS = 0, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum Type { INT8 = 0, UINT8 = 1, F32 = 7, BF16 = 9 };
enum Op { SUM = 0, MAX = 2 };

struct Comm {
  std::string folder;
  int rank = 0, size = 0;
  std::map<int, uint64_t> sent, received;  // messages so far, by the other rank
  uint64_t splits = 0;
  std::atomic<int> state{IN_PROGRESS};
  std::atomic<bool> aborted{false};
  std::thread work;
};

struct Id {
  char folder[128];
};

struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

struct Failed {
  Result why;
};

void nap(const Comm& c) {
  if (c.aborted) throw Failed{SYSTEM};
  usleep(50);
}

std::string letter(const Comm& c, int from, int to, uint64_t number) {
  return c.folder + "/" + std::to_string(from) + "-" + std::to_string(to) + "-" + std::to_string(number);
}

void give(Comm& c, int to, const void* data, size_t bytes) {
  const std::string name = letter(c, c.rank, to, c.sent[to]++), draft = name + ".draft";
  int file = open(draft.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
  if (file < 0) throw Failed{SYSTEM};
  for (size_t at = 0; at < bytes;) {
    ssize_t n = write(file, static_cast<const char*>(data) + at, bytes - at);
    if (n <= 0) throw Failed{SYSTEM};
    at += static_cast<size_t>(n);
  }
  close(file);
  if (rename(draft.c_str(), name.c_str())) throw Failed{SYSTEM};
}

void take(Comm& c, int from, void* data, size_t bytes) {
  const std::string name = letter(c, from, c.rank, c.received[from]++);
  int file;
  while ((file = open(name.c_str(), O_RDONLY)) < 0) nap(c);
  struct stat about;
  if (fstat(file, &about) || static_cast<size_t>(about.st_size) != bytes) throw Failed{INVALID_ARGUMENT};
  for (size_t at = 0; at < bytes;) {
    ssize_t n = read(file, static_cast<char*>(data) + at, bytes - at);
    if (n <= 0) throw Failed{SYSTEM};
    at += static_cast<size_t>(n);
  }
  close(file);
  unlink(name.c_str());
}

// Gives `own` to all and takes what they give, one behind the other.
void gather(Comm& c, const void* own, void* all, size_t bytes) {
  char* to = static_cast<char*>(all);
  memmove(to + bytes * static_cast<size_t>(c.rank), own, bytes);
  for (int r = 0; r < c.size; r++)
    if (r != c.rank) give(c, r, to + bytes * static_cast<size_t>(c.rank), bytes);
  for (int r = 0; r < c.size; r++)
    if (r != c.rank) take(c, r, to + bytes * static_cast<size_t>(r), bytes);
}

float load(const char* p, size_t i, int type) {
  if (type == F32) {
    float x;
    memcpy(&x, p + 4 * i, 4);
    return x;
  }
  uint16_t half;
  memcpy(&half, p + 2 * i, 2);
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

void store(char* p, size_t i, int type, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (type == F32) {
    memcpy(p + 4 * i, &bits, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  memcpy(p + 2 * i, &half, 2);
}

size_t size_of(int type) { return type == F32 ? 4 : type == BF16 ? 2 : 1; }

// The reduction of `count` values from `first` on of what all ranks give.
void reduce(Comm& c, const void* from, size_t values, size_t first, void* to, size_t count, int type, int op) {
  const size_t bytes = values * size_of(type);
  std::vector<char> all(bytes * static_cast<size_t>(c.size));
  gather(c, from, all.data(), bytes);
  for (size_t i = 0; i < count; i++) {
    float sum = 0;
    for (int r = c.size - 1; r >= 0; r--) {
      float x = load(all.data() + bytes * static_cast<size_t>(r), first + i, type);
      sum = r == c.size - 1 ? x : op == SUM ? sum + x : x > sum ? x : sum;
    }
    store(static_cast<char*>(to), i, type, sum);
  }
}

using Steps = std::vector<std::function<void()>>;

// Calls of this thread that wait for the end of their group, by communicator. None of a group waits
// for another: what is given goes first.
struct Group {
  Steps gives, takes;
};
thread_local int depth = 0;
thread_local std::map<Comm*, Group> grouped;

// Lets `steps` go on in the communicator's thread, which is done with what it had.
Result begin(Comm* c, Steps steps) {
  if (c->state != SUCCESS) return INVALID_USAGE;
  if (c->work.joinable()) c->work.join();
  c->state = IN_PROGRESS;
  c->work = std::thread([c, steps = std::move(steps)] {
    try {
      for (const auto& step : steps) step();
      c->state = SUCCESS;
    } catch (Failed f) {
      c->state = f.why;
    }
  });
  return IN_PROGRESS;
}

Result put(Comm* c, void* stream, std::function<void()> step, bool gives = false) {
  if (!c || !stream) return INVALID_ARGUMENT;
  if (depth > 0) {
    (gives ? grouped[c].gives : grouped[c].takes).push_back(std::move(step));
    return SUCCESS;
  }
  return begin(c, {std::move(step)});
}

// Waits until all ranks of a new communicator are there.
void arrive(Comm& c) {
  mkdir(c.folder.c_str(), 0700);
  auto sign = [&](int r) { return c.folder + "/here-" + std::to_string(r); };
  int file = open(sign(c.rank).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0600);
  if (file < 0) throw Failed{SYSTEM};
  close(file);
  for (int r = 0; r < c.size; r++)
    while (access(sign(r).c_str(), F_OK)) nap(c);
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = 22809;
  return SUCCESS;
}

const char* ncclGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    default: return "unhandled system error";
  }
}

int ncclGetUniqueId(Id* id) {
  const char* folder = getenv("DUPLEX_FAKE_NCCL");
  if (!folder) return SYSTEM;
  unsigned long long word = 0;
  FILE* random = fopen("/dev/urandom", "r");
  if (!random || fread(&word, sizeof word, 1, random) != 1) return SYSTEM;
  fclose(random);
  memset(id->folder, 0, sizeof id->folder);
  int n = snprintf(id->folder, sizeof id->folder, "%s/%016llx", folder, word);
  return n < static_cast<int>(sizeof id->folder) ? SUCCESS : INVALID_ARGUMENT;
}

int ncclCommInitRankConfig(Comm** made, int size, Id id, int rank, const Config* config) {
  if (!config || config->magic != 0xcafebeef || config->blocking != 0) return INVALID_ARGUMENT;
  auto* c = new Comm;
  c->folder = id.folder, c->rank = rank, c->size = size;
  c->state = SUCCESS;
  *made = c;
  return begin(c, {[c] { arrive(*c); }});
}

int ncclCommSplit(Comm* parent, int color, int key, Comm** made, const Config*) {
  *made = nullptr;
  return put(parent, made, [=] {
    const int own[2] = {color, key};
    std::vector<int> all(2 * static_cast<size_t>(parent->size));
    gather(*parent, own, all.data(), sizeof own);
    const uint64_t number = parent->splits++;
    if (color < 0) return;
    auto* c = new Comm;
    c->folder = parent->folder + "-" + std::to_string(number) + "." + std::to_string(color);
    for (int r = 0; r < parent->size; r++) {
      const int *other = &all[2 * static_cast<size_t>(r)];
      if (other[0] != color) continue;
      c->size++;
      if (other[1] < key) c->rank++;
    }
    c->state = SUCCESS;
    arrive(*c);
    __atomic_store_n(made, c, __ATOMIC_RELEASE);
  });
}

int ncclCommGetAsyncError(Comm* c, int* state) {
  if (!c) return INVALID_ARGUMENT;
  *state = c->state;
  return SUCCESS;
}

int ncclCommAbort(Comm* c) {
  c->aborted = true;
  if (c->work.joinable()) c->work.join();
  delete c;
  return SUCCESS;
}

int ncclCommDestroy(Comm* c) {
  if (c->state != SUCCESS) return INVALID_USAGE;
  return ncclCommAbort(c);
}

int ncclGroupStart() {
  depth++;
  return SUCCESS;
}

int ncclGroupEnd() {
  if (depth == 0) return INVALID_USAGE;
  if (--depth > 0) return SUCCESS;
  int result = SUCCESS;
  for (auto& [c, group] : std::exchange(grouped, {})) {
    Steps steps = group.gives;
    steps.insert(steps.end(), group.takes.begin(), group.takes.end());
    int code = begin(c, std::move(steps));
    if (code != IN_PROGRESS || result == SUCCESS) result = code;
  }
  return result;
}

int ncclSend(const void* from, size_t count, int type, int to, Comm* c, void* stream) {
  return put(c, stream, [=] { give(*c, to, from, count * size_of(type)); }, true);
}

int ncclRecv(void* to, size_t count, int type, int from, Comm* c, void* stream) {
  return put(c, stream, [=] { take(*c, from, to, count * size_of(type)); });
}

int ncclAllGather(const void* from, void* to, size_t count, int type, Comm* c, void* stream) {
  return put(c, stream, [=] { gather(*c, from, to, count * size_of(type)); });
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Comm* c, void* stream) {
  return put(c, stream, [=] { reduce(*c, from, count, 0, to, count, type, op); });
}

int ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, Comm* c, void* stream) {
  return put(c, stream, [=] {
    const size_t ranks = static_cast<size_t>(c->size), rank = static_cast<size_t>(c->rank);
    reduce(*c, from, count * ranks, count * rank, to, count, type, op);
  });
}

int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Comm* c, void* stream) {
  return put(c, stream, [=] {
    const size_t bytes = count * size_of(type);
    if (c->rank != root) return take(*c, root, to, bytes);
    memmove(to, from, bytes);
    for (int r = 0; r < c->size; r++)
      if (r != root) give(*c, r, from, bytes);
  });
}

}  // extern "C"
