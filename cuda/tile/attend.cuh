// What all attention kernels share: the parameters, which rows a block works on, and what becomes
// of a score.
//
// Rows are (token, head of the group) pairs of one kv head, counted within a sequence: row r is
// token r / group, head r % group. So keys and values are read once for all heads that share them.
#pragma once
#include "lib/fault.cuh"
#include "lib/types.cuh"

// Most heads with ALiBi slopes.
constexpr int MAX_SLOPES = 256;
// Keys per block, and per page of the cache; blocks start with the sequence.
constexpr int BLOCK_KEYS = 64;
constexpr float LOG2E = 1.44269504088896340736f;
// Threads that share no rows.
constexpr int ATTEND_THREADS = 128;
// Query rows of a forward tile over the cache where each sequence has few.
constexpr int FEW_ROWS = 16;
// Tiles in bf16 by the width of a head in shared memory, the first number. Then rows of a forward
// tile; rows per step, columns per block and warps per 16 keys of the pass over keys; stages and
// warps per 16 rows of the pass over queries. In f32 only the width counts.
#define ATTEND_D32 32, 64, 64, 32, 1, 2, 1
#define ATTEND_D64 64, 64, 64, 64, 1, 2, 1
#define ATTEND_D96 96, 64, 64, 96, 2, 2, 1
#define ATTEND_D128 128, 64, 64, 128, 2, 2, 1
#define ATTEND_D256 256, 32, 32, 128, 2, 1, 2

// Every row of every tensor starts at a multiple of 16 bytes.
constexpr uint32_t ATTEND_ALIGNED = 1;
constexpr uint32_t ATTEND_ADD = 2;      // add to dqkv
constexpr uint32_t ATTEND_ALIBI = 4;

// Parameters of all attention kernels. Those that a kernel does not use are null or 0.
struct AttendParams {
  const void* qkv;            // [tokens, q|k|v]
  const int32_t* cu_seqlens;  // [sequences + 1]
  const int32_t* starts;      // [sequences]: tokens already cached
  const int32_t* page_table;  // [sequences, columns]
  void* kcache;               // [pages, kv_heads, 64, head_dim]
  void* vcache;
  void* o;            // [tokens, heads, head_dim]
  float* lse;         // [tokens, heads]
  const void* d_o;    // [tokens, heads, head_dim]
  float* delta;       // [tokens, heads]
  void* dqkv;         // [tokens, q|k|v]
  uint32_t* fault;
  uint32_t tokens, sequences, heads, kv_heads, head_dim, columns, pages;
  uint32_t reach;  // keys that a query sees at most, itself included
  uint32_t flags;
  float scale, softcap;
  uint32_t padding;
  float slopes[MAX_SLOPES];
};

DEV int group_of(const AttendParams& p) { return static_cast<int>(p.heads / p.kv_heads); }
DEV size_t width_of(const AttendParams& p) {
  return static_cast<size_t>(p.heads + 2 * p.kv_heads) * p.head_dim;
}

// Division of rows by the group without dividing; exact while rows * group < 2^32.
struct Group {
  uint32_t size, magic;
  METHOD explicit Group(int group)
      : size(static_cast<uint32_t>(group)), magic(0xffffffffu / size + 1) {}
  METHOD int token(int row) const {
    return size == 1 ? row : static_cast<int>(__umulhi(static_cast<uint32_t>(row), magic));
  }
  METHOD int head(int row) const { return row - token(row) * static_cast<int>(size); }
};

// One tile of a sequence.
struct Work {
  bool found;
  int sequence;
  int first;   // the sequence's first token in the batch
  int length;  // tokens of the sequence in the batch
  int tile;    // counted within the sequence
};

// The `index`-th tile of `rows` rows when every sequence is cut on its own, each token making
// `group` rows. All lanes of the warp call this and get the same answer. Sequences outside the
// batch are faults and have no tiles.
DEV Work find_work(const AttendParams& p, int group, int rows, int index) {
  const int lane = lane_id(), sequences = static_cast<int>(p.sequences),
            tokens = static_cast<int>(p.tokens);
  bool bad = sequences == 0;
  for (int base = 0; base < sequences; base += WARP) {
    const int s = base + lane;
    const int first = s < sequences ? p.cu_seqlens[s] : 0,
              end = s < sequences ? p.cu_seqlens[s + 1] : 0;
    const bool outside = first < 0 || end < first || end > tokens;
    bad = bad || outside || (s == 0 && first != 0) || (s == sequences - 1 && end != tokens);
    const int length = outside ? 0 : end - first;
    int upto = (length * group + rows - 1) / rows;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
      const int before = __shfl_up_sync(FULL, upto, step);
      if (lane >= step) upto += before;
    }
    const int found = __ffs(static_cast<int>(__ballot_sync(FULL, upto > index))) - 1;
    if (bad) report_fault(p.fault, FAULT_LENGTHS);
    if (found >= 0) {
      const int before = __shfl_sync(FULL, upto, found > 0 ? found - 1 : 0);
      return {true, base + found, __shfl_sync(FULL, first, found), __shfl_sync(FULL, length, found),
              index - (found > 0 ? before : 0)};
    }
    index -= __shfl_sync(FULL, upto, WARP - 1);
  }
  if (bad) report_fault(p.fault, FAULT_LENGTHS);
  return {false, 0, 0, 0, 0};
}

// The query rows of one sequence and kv head.
struct QueryRows {
  const AttendParams& p;
  Group group;
  int first, kv_head, start;  // the sequence's first token in the batch, and its position
  METHOD QueryRows(const AttendParams& p, const Work& w, int kv_head, int start)
      : p(p), group(group_of(p)), first(w.first), kv_head(kv_head), start(start) {}
  METHOD int position(int row) const { return start + group.token(row); }
  METHOD int head(int row) const {
    return kv_head * static_cast<int>(group.size) + group.head(row);
  }
  METHOD size_t token(int row) const { return first + group.token(row); }
  // Where the row starts in qkv, in elements; in o and d_o, in rows of one head, which is its place
  // in lse and delta.
  METHOD size_t in_qkv(int row) const {
    return token(row) * width_of(p) + static_cast<size_t>(head(row)) * p.head_dim;
  }
  METHOD size_t in_o(int row) const { return token(row) * p.heads + head(row); }
};

// Later tiles of a sequence see more keys, so they go first and the last blocks to run are short
// ones.
DEV int tile_index() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

// Keys of one block and their values, row i at i * stride. Not `ok`: there is no such memory.
template <class T>
struct Keys {
  const T *k, *v;
  size_t stride;
  bool ok;
};

// Keys of the packed batch itself. Position 0 is the sequence's first token.
template <class T>
struct PackedKeys {
  const T* first;
  size_t v, width;
  int start = 0;
  METHOD PackedKeys(const AttendParams& p, const Work& w, int kv_head)
      : first(static_cast<const T*>(p.qkv) + w.first * width_of(p) +
              (p.heads + kv_head) * p.head_dim),
        v(static_cast<size_t>(p.kv_heads) * p.head_dim),
        width(width_of(p)) {}
  METHOD bool fits() const { return true; }
  METHOD Keys<T> at(int key) const {
    return {first + key * width, first + key * width + v, width, true};
  }
};

// Keys in the pages of the cache.
template <class T>
struct PagedKeys {
  const AttendParams& p;
  const int32_t* pages;
  int kv_head, start, length;
  METHOD PagedKeys(const AttendParams& p, const Work& w, int kv_head)
      : p(p),
        pages(p.page_table + static_cast<size_t>(w.sequence) * p.columns),
        kv_head(kv_head),
        start(p.starts[w.sequence]),
        length(w.length) {}
  // Whether the sequence fits its row of the page table.
  METHOD bool fits() const {
    const int64_t room = static_cast<int64_t>(p.columns) * BLOCK_KEYS;
    const bool ok = start >= 0 && static_cast<int64_t>(start) + length <= room;
    if (!ok) report_fault(p.fault, FAULT_PAGE);
    return ok;
  }
  // Element of the caches where `key` starts; negative if its page is none.
  METHOD int64_t offset(int key) const {
    const int page = pages[key / BLOCK_KEYS];
    if (page < 0 || page >= static_cast<int>(p.pages)) {
      report_fault(p.fault, FAULT_PAGE);
      return -1;
    }
    const int64_t head = static_cast<int64_t>(page) * p.kv_heads + kv_head;
    return (head * BLOCK_KEYS + key % BLOCK_KEYS) * p.head_dim;
  }
  METHOD Keys<T> at(int key) const {
    const int64_t at = offset(key);
    const int64_t safe = at < 0 ? 0 : at;
    return {static_cast<const T*>(p.kcache) + safe, static_cast<const T*>(p.vcache) + safe,
            p.head_dim, at >= 0};
  }
};

// Keys first..end that some row of positions low..high sees; first is a multiple of `step`.
struct Span {
  int first, end;
  METHOD Span(const AttendParams& p, int low, int high, int step) : first(0), end(high + 1) {
    const int reach = static_cast<int>(p.reach);
    if (low + 1 > reach) first = (low + 1 - reach) / step * step;
  }
};

DEV bool visible(const AttendParams& p, int key, int position) {
  return key <= position && position - key < static_cast<int>(p.reach);
}

// Whether rows of positions low..high all see all of keys first..end.
DEV bool all_visible(const AttendParams& p, int first, int end, int low, int high) {
  return end - 1 <= low && high - first < static_cast<int>(p.reach);
}

DEV float slope_of(const AttendParams& p, int head) {
  return p.flags & ATTEND_ALIBI ? p.slopes[head] : 0.f;
}

// From the product of query and key to the score, and the derivative of the one by the scaled
// other.
DEV float score(const AttendParams& p, float dot, float slope, int key, int position,
                float& derivative) {
  float x = dot * p.scale;
  derivative = 1.f;
  if (p.softcap != 0.f) {
    const float t = tanhf(x / p.softcap);
    x = p.softcap * t;
    derivative = 1.f - t * t;
  }
  return fmaf(slope, static_cast<float>(key - position), x);
}

// Probability and gradient of a score, from the products q k and dO v.
struct Gradient {
  float p, ds;
};
DEV Gradient gradient(const AttendParams& p, float dot, float dp, int key, int position,
                      float slope, float lse, float delta) {
  if (!visible(p, key, position)) return {0.f, 0.f};
  float derivative;
  const float probability = exp2f((score(p, dot, slope, key, position, derivative) - lse) * LOG2E);
  return {probability, probability * (dp - delta) * derivative};
}
