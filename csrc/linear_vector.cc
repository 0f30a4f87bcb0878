// The linear kernel on vector registers; compiled once for each ISA, RANVIER_ISA its namespace.
//
// Six rows by one group of 32 outputs live in registers; weights stream through once per block of rows.
#include "linear_steps.h"
#include "pool.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kAhead = 2048;  // bytes of weights fetched ahead of use

inline void add_pair(V16& sum, const uint16_t* w, uint32_t pair) {
#if defined(__AVX512BF16__)
  const __m512i weights = _mm512_loadu_si512(w), inputs = _mm512_set1_epi32(pair);
  sum = (V16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)inputs);
#else
  U16 bits;
  std::memcpy(&bits, w, sizeof bits);
  const V16 even = reinterpret_cast<V16>(bits << 16);
  const V16 odd = reinterpret_cast<V16>(bits & 0xffff0000u);
  sum += even * from_bf16(static_cast<uint16_t>(pair));
  sum += odd * from_bf16(static_cast<uint16_t>(pair >> 16));
#endif
}

template <int R>
void multiply(const uint16_t* x, int64_t depth, const uint16_t* w, float* sums) {
  V16 acc[R][2] = {};
  const uint16_t* high = w + 16 * depth;
  for (int64_t i = 0; i < depth; i += 2, w += 32, high += 32) {
    __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead);
    __builtin_prefetch(reinterpret_cast<const char*>(high) + kAhead);
    for (int r = 0; r < R; ++r) {
      uint32_t pair;
      std::memcpy(&pair, x + r * depth + i, 4);
      add_pair(acc[r][0], w, pair);
      add_pair(acc[r][1], high, pair);
    }
  }
  for (int r = 0; r < R; ++r) {
    store16(sums + 32 * r, acc[r][0]);
    store16(sums + 32 * r + 16, acc[r][1]);
  }
}

template <int R>
void multiply(const float* x, int64_t depth, const float* w, float* sums) {
  V16 acc[R][2] = {};
  const float* high = w + 16 * depth;
  for (int64_t i = 0; i < depth; ++i, w += 16, high += 16) {
    __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead);
    __builtin_prefetch(reinterpret_cast<const char*>(high) + kAhead);
    const V16 w0 = load16(w), w1 = load16(high);
    for (int r = 0; r < R; ++r) {
      const V16 v = splat(x[r * depth + i]);
      acc[r][0] += w0 * v;
      acc[r][1] += w1 * v;
    }
  }
  for (int r = 0; r < R; ++r) {
    store16(sums + 32 * r, acc[r][0]);
    store16(sums + 32 * r + 16, acc[r][1]);
  }
}

template <typename T>
void multiply_rows(int64_t rows, const T* x, int64_t depth, const T* w, float* sums) {
  switch (rows) {
    case 1: return multiply<1>(x, depth, w, sums);
    case 2: return multiply<2>(x, depth, w, sums);
    case 3: return multiply<3>(x, depth, w, sums);
    case 4: return multiply<4>(x, depth, w, sums);
    case 5: return multiply<5>(x, depth, w, sums);
    default: return multiply<6>(x, depth, w, sums);
  }
}

template <typename T>
void linear_of(const Linear& a) {
  T* const x = static_cast<T*>(scratch(a.rows * a.depth * static_cast<int64_t>(sizeof(T))));
  auto prepare = [&](int64_t row) { prepare_row(a, row, x + row * a.depth); };
  if (a.rows >= 16) {
    parallel_for(a.rows, prepare);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) prepare(row);
  }
  const T* const weight = static_cast<const T*>(a.weight);
  parallel_for(group_count(a), [&](int64_t group) {
    const T* const w = weight + group * kGroup * a.depth;
    for (int64_t row = 0; row < a.rows; row += kRows) {
      const int64_t count = a.rows - row < kRows ? a.rows - row : kRows;
      float sums[kRows * kGroup];
      multiply_rows<T>(count, x + row * a.depth, a.depth, w, sums);
      for (int64_t r = 0; r < count; ++r) finish(a, row + r, group, sums + kGroup * r);
    }
  });
}

}  // namespace

namespace RANVIER_ISA {

void linear(const Linear& a) {
  if (a.is_weight_bf16) {
    linear_of<uint16_t>(a);
  } else {
    linear_of<float>(a);
  }
}

}  // namespace RANVIER_ISA

}  // namespace ranvier
