// Rows of a paged cache in order: out[s, t, :] = pages[table[s, t / 16], t % 16, :] for t <
// lengths[s], else zeros. One warp a token: blocks of 128 threads, grid (ceil(tokens / 4),
// sequences).
#include "emu/bugs/bugs.cuh"

namespace bugs {

struct GatherParams {
  const float* pages;       // [pages, 16, width]
  const uint32_t* table;    // [sequences, ceil(tokens / 16)]
  const uint32_t* lengths;  // [sequences]
  float* out;               // [sequences, tokens, width]
  uint32_t tokens, width, cache, unused;  // cache: pages there are
};

constexpr uint32_t PAGE = 16;

template <Bug bug>
DEV void gather(const GatherParams& p) {
  SHARED(uint32_t, page_of_warp, 4);
  uint32_t sequence = blockIdx.y, token = blockIdx.x * 4 + static_cast<uint32_t>(warp_id());
  if (token >= p.tokens) return;
  uint32_t length = p.lengths[sequence];
  float* out = p.out + (size_t(sequence) * p.tokens + token) * p.width;
  if (bug == Bug::ReadPastEnd ? token > length : token >= length) {
    for (auto i = static_cast<uint32_t>(lane_id()); i < p.width; i += WARP) out[i] = 0.f;
    return;
  }
  const uint32_t* table = p.table + size_t(sequence) * ((p.tokens + PAGE - 1) / PAGE);
  uint32_t entry = bug == Bug::WrongPage ? (token + 1) / PAGE : token / PAGE;
  if (lane_id() == 0) page_of_warp[warp_id()] = table[entry];
  if (bug != Bug::MissingSyncwarp) __syncwarp();
  uint32_t page = page_of_warp[warp_id()];
  const float* row = p.pages + (size_t(page) * PAGE + token % PAGE) * p.width;
  for (auto i = static_cast<uint32_t>(lane_id()); i < p.width; i += WARP)
    out[i] = page < p.cache ? row[i] : NAN;
}

KERNEL(bug_gather_clean, GatherParams, 128) { gather<Bug::None>(p); }
KERNEL(bug_gather_wrong_page, GatherParams, 128) { gather<Bug::WrongPage>(p); }
KERNEL(bug_gather_missing_syncwarp, GatherParams, 128) { gather<Bug::MissingSyncwarp>(p); }
KERNEL(bug_gather_read_past_end, GatherParams, 128) { gather<Bug::ReadPastEnd>(p); }

}  // namespace bugs
