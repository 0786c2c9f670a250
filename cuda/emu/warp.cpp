// Warp operations: the last lane to arrive does the work of all 32. They have full masks, and all
// lanes must come.
#include "emu/runtime.hpp"

namespace emu {

const char* name(Op op) {
  static const char* const names[] = {"__syncwarp",       "__shfl_xor_sync", "__shfl_sync",    "__shfl_down_sync", "__shfl_up_sync",
                                      "__ballot_sync",    "ldmatrix x2",     "ldmatrix x4",    "ldmatrix x2 trans",
                                      "ldmatrix x4 trans", "mma"};
  return names[static_cast<int>(op)];
}

namespace {

// Waits until all lanes of the warp have come to `op`; `perform` gets the 32 threads in order of
// their lanes.
template <class Perform>
inline void collective(Thread* me, Op op, Perform perform) {
  Machine& m = *me->machine;
  Warp& warp = m.warps[me->warp];
  if (warp.live != ALL_LANES) m.fail(std::string(name(op)) + " by a warp of less than 32 lanes");
  if (!warp.arrived) {
    warp.op = op;
  } else if (warp.op != op) {
    m.fail(std::string("divergent warp: lanes in ") + name(warp.op) + " and " + name(op));
  }
  warp.arrived |= 1u << me->lane;
  if (warp.arrived != ALL_LANES) return m.wait();
  warp.arrived = 0;
  perform(&m.threads[me->warp * 32]);
  m.make_ready(me->warp, ~(1u << me->lane));
  if (m.schedule == Schedule::Shuffled) m.yield();
}

void check_mask(Thread* me, uint32_t mask) {
  if (mask != ALL_LANES) me->machine->fail("a warp operation with a mask that is not full");
}

int source_lane(int lane, int argument, Shuffle kind) {
  int from = 0;
  switch (kind) {
    case Shuffle::Xor: from = lane ^ argument; break;
    case Shuffle::Index: return argument & 31;
    case Shuffle::Down: from = lane + argument; break;
    case Shuffle::Up: from = lane - argument; break;
  }
  return from < 0 || from > 31 ? lane : from;
}

}  // namespace

void syncwarp(uint32_t mask) {
  Unwatched unwatched;
  Thread* me = self();
  check_mask(me, mask);
  char* order = &me->machine->order->warp[me->warp][me->warp_syncs++ & 1];
  tsan_release(order);
  collective(me, Op::SyncWarp, [](Thread*) {});
  tsan_acquire(order);
}

// Shuffles and the operations below move values but order no memory, so the thread sanitizer is
// told nothing.
uint32_t shuffle(uint32_t mask, uint32_t value, int argument, Shuffle kind) {
  Unwatched unwatched;
  Thread* me = self();
  check_mask(me, mask);
  uint32_t result = 0;
  me->operands.value = value;
  me->operands.argument = argument;
  me->operands.out = &result;
  auto op = static_cast<Op>(static_cast<int>(Op::ShuffleXor) + static_cast<int>(kind));
  collective(me, op, [kind](Thread* lanes) {
    for (int i = 0; i < 32; i++) {
      Operands& o = lanes[i].operands;
      *o.out = lanes[source_lane(i, o.argument, kind)].operands.value;
    }
  });
  return result;
}

uint32_t ballot(uint32_t mask, bool predicate) {
  Unwatched unwatched;
  Thread* me = self();
  check_mask(me, mask);
  uint32_t result = 0;
  me->operands.value = predicate;
  me->operands.out = &result;
  collective(me, Op::Ballot, [](Thread* lanes) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= lanes[i].operands.value << i;
    for (int i = 0; i < 32; i++) *lanes[i].operands.out = bits;
  });
  return result;
}

// Matrix i has its rows at the addresses of lanes 8 i .. 8 i + 7. Lane l gets elements 2 (l % 4)
// and the next of row l / 4, in the transposed form of column l / 4.
void ldmatrix(uint32_t* r, const void* p, int matrices, bool transposed) {
  Thread* me = self();
  Machine& m = *me->machine;
  // Only the first 8 lanes per matrix give addresses.
  if (me->lane < 8u * static_cast<unsigned>(matrices)) {
    if (!m.is_shared(p, 16)) m.fail("ldmatrix: address outside shared memory");
    if (reinterpret_cast<uintptr_t>(p) % 16) m.fail("ldmatrix: address not aligned to 16 bytes");
    tsan_read(p, 16);
  }
  Unwatched unwatched;
  me->operands.out = r;
  me->operands.address = p;
  Op op = transposed ? (matrices == 4 ? Op::LdmatrixX4Trans : Op::LdmatrixX2Trans)
                     : (matrices == 4 ? Op::LdmatrixX4 : Op::LdmatrixX2);
  collective(me, op, [matrices, transposed](Thread* lanes) {
    for (int i = 0; i < matrices; i++) {
      uint16_t element[8][8];
      for (int row = 0; row < 8; row++)
        memcpy(element[row], lanes[i * 8 + row].operands.address, 16);
      for (int l = 0; l < 32; l++) {
        int a = l / 4, b = l % 4 * 2;
        uint16_t low = transposed ? element[b][a] : element[a][b];
        uint16_t high = transposed ? element[b + 1][a] : element[a][b + 1];
        lanes[l].operands.out[i] = low | static_cast<uint32_t>(high) << 16;
      }
    }
  });
}

namespace {

float low_half(uint32_t word) { return __uint_as_float(word << 16); }
float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

using Row = float __attribute__((vector_size(32)));  // 8 columns

// c += a b, k in order. Products of bf16 are exact in f32.
inline __attribute__((always_inline)) void multiply(Row* c, const float (*a)[16], const Row* b) {
  for (int i = 0; i < 16; i += 4) {
    Row c0 = c[i], c1 = c[i + 1], c2 = c[i + 2], c3 = c[i + 3];
    for (int k = 0; k < 16; k++) {
      c0 += a[i][k] * b[k];
      c1 += a[i + 1][k] * b[k];
      c2 += a[i + 2][k] * b[k];
      c3 += a[i + 3][k] * b[k];
    }
    c[i] = c0, c[i + 1] = c1, c[i + 2] = c2, c[i + 3] = c3;
  }
}
// The same bits with and without AVX: nothing is contracted.
__attribute__((target("avx2"), optimize("fp-contract=off"))) void multiply_avx2(
    Row* c, const float (*a)[16], const Row* b) {
  multiply(c, a, b);
}
void multiply_any(Row* c, const float (*a)[16], const Row* b) { multiply(c, a, b); }

const bool avx2 = __builtin_cpu_supports("avx2");

// Lane l holds, with g = l / 4 and t = 2 (l % 4): of a rows g and g + 8, columns t, t + 1, t + 8, t
// + 9; of b column g, the same k; of d rows g and g + 8, columns t and t + 1.
void mma_of_warp(Thread* lanes) {
  float a[16][16];
  alignas(32) float b[16][8], c[16][8];
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4 * 2;
    const Operands& o = lanes[l].operands;
    for (int i = 0; i < 4; i++) {
      float* at = &a[g + i % 2 * 8][t + i / 2 * 8];
      at[0] = low_half(o.a[i]);
      at[1] = high_half(o.a[i]);
    }
    b[t][g] = low_half(o.b0);
    b[t + 1][g] = high_half(o.b0);
    b[t + 8][g] = low_half(o.b1);
    b[t + 9][g] = high_half(o.b1);
    memcpy(&c[g][t], o.d, 8);
    memcpy(&c[g + 8][t], o.d + 2, 8);
  }
  auto* rows_c = reinterpret_cast<Row*>(c);
  auto* rows_b = reinterpret_cast<const Row*>(b);
  avx2 ? multiply_avx2(rows_c, a, rows_b) : multiply_any(rows_c, a, rows_b);
  for (int l = 0; l < 32; l++) {
    int g = l / 4, t = l % 4 * 2;
    float* d = lanes[l].operands.d;
    memcpy(d, &c[g][t], 8);
    memcpy(d + 2, &c[g + 8][t], 8);
  }
}

}  // namespace

void mma_16816(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  Unwatched unwatched;
  Thread* me = self();
  me->operands.d = d;
  me->operands.a = a;
  me->operands.b0 = b0;
  me->operands.b1 = b1;
  collective(me, Op::Mma, mma_of_warp);
}

}  // namespace emu
