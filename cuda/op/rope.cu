// Rotary position embedding; see src/op/rope.rs.
#include "lib/trig.cuh"
#include "lib/vector.cuh"

// Most rotary pairs of a head.
constexpr int ROPE_PAIRS = 128;
constexpr int ROPE_THREADS = 128;

struct RopeParams {
  const void* x;  // [tokens, width], q|k|v
  const int32_t* at;
  void* out;
  uint32_t width;     // elements of a token
  uint32_t turned;    // query and key heads
  uint32_t head_dim;
  uint32_t half;      // rotary pairs of a head, at most ROPE_PAIRS
  float sign, scale;  // of the angle; of sine and cosine
  uint32_t flags, pad;
  float inv_freq[ROPE_PAIRS];
};
constexpr uint32_t FLAG_INTERLEAVED = FLAG_OWN;

// Turns pairs i..i + n of the head that begins at element `head`.
template <class T>
DEV void rope_turn(const RopeParams& p, size_t head, uint32_t i, int n, const float* sines,
                   const float* cosines) {
  constexpr int N = VEC<T>;
  const bool aligned = p.flags & FLAG_ALIGNED, interleaved = p.flags & FLAG_INTERLEAVED;
  // Two runs of memory hold the pairs: first halves and second halves, or the first pairs and the
  // rest.
  const size_t low = head + (interleaved ? 2 * i : i), high = interleaved ? low + N : low + p.half;
  const int n_low = interleaved ? min(2 * n, N) : n, n_high = interleaved ? 2 * n - n_low : n;
  float x[2][N], y[2][N];
  load_vec<T>(p.x, low, n_low, aligned, x[0]);
  load_vec<T>(p.x, high, n_high, aligned, x[1]);
#pragma unroll
  for (int k = 0; k < N; k++) {
    const uint32_t angle = min(i + k, p.half - 1);
    const float sin = sines[angle], cos = cosines[angle];
    if (interleaved) {
      float(&from)[N] = x[2 * k / N];
      float(&to)[N] = y[2 * k / N];
      const float a = from[2 * k % N], b = from[2 * k % N + 1];
      to[2 * k % N] = a * cos - b * sin;
      to[2 * k % N + 1] = b * cos + a * sin;
    } else {
      y[0][k] = x[0][k] * cos - x[1][k] * sin;
      y[1][k] = x[1][k] * cos + x[0][k] * sin;
    }
  }
  put_vec<T>(p.out, low, n_low, p.flags, y[0]);
  put_vec<T>(p.out, high, n_high, p.flags, y[1]);
}

// Copies elements from..from + count, a vector a thread.
template <class T>
DEV void rope_copy(const RopeParams& p, size_t from, uint32_t i, uint32_t count) {
  constexpr int N = VEC<T>;
  const int n = vec_count<N>(count - i);
  float v[N];
  load_vec<T>(p.x, from + i, n, p.flags & FLAG_ALIGNED, v);
  put_vec<T>(p.out, from + i, n, p.flags, v);
}

// One block for each token.
template <class T>
DEV void rope(const RopeParams& p) {
  constexpr int N = VEC<T>;
  SHARED(float, sines, ROPE_PAIRS);
  SHARED(float, cosines, ROPE_PAIRS);
  const float position = static_cast<float>(p.at[blockIdx.x]);
  for (uint32_t i = threadIdx.x; i < p.half; i += blockDim.x) {
    float sin, cos;
    sin_cos(position * p.inv_freq[i], sin, cos);
    sines[i] = p.sign * sin * p.scale;
    cosines[i] = cos * p.scale;
  }
  __syncthreads();
  const size_t token = static_cast<size_t>(blockIdx.x) * p.width;
  const uint32_t turns = (p.half + N - 1) / N, rest = p.head_dim - 2 * p.half,
                 copies = (rest + N - 1) / N;
  for (uint32_t u = threadIdx.x; u < p.turned * turns; u += blockDim.x) {
    const uint32_t i = u % turns * N;
    rope_turn<T>(p, token + u / turns * p.head_dim, i, vec_count<N>(p.half - i), sines, cosines);
  }
  for (uint32_t u = threadIdx.x; u < p.turned * copies; u += blockDim.x)
    rope_copy<T>(p, token + u / copies * p.head_dim + 2 * p.half, u % copies * N, rest);
  const uint32_t v = p.turned * p.head_dim;
  for (uint32_t i = threadIdx.x * N; i < p.width - v; i += blockDim.x * N)
    rope_copy<T>(p, token + v, i, p.width - v);
}

KERNEL(rope_f32, RopeParams, ROPE_THREADS) { rope<float>(p); }
KERNEL(rope_bf16, RopeParams, ROPE_THREADS) { rope<bf16>(p); }
