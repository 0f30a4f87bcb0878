// The two products of an adapter, shared by all ISAs' files of the linears.
#ifndef RANVIER_LORA_STEPS_H_
#define RANVIER_LORA_STEPS_H_

#include "linear.h"
#include "lora.h"
#include "pool.h"
#include "vec.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace {

#if defined(__AVX512F__)
constexpr int kShrinkRows = 4;
#else
constexpr int kShrinkRows = 1;
#endif
constexpr int kChains = 4;  // sums of one output, so that they don't wait for each other
constexpr int64_t kStreamAhead = 4096;  // bytes
constexpr int64_t kFewRows = 4;

// sum += the 16 outputs' products of two inputs, whose bf16 are a lane's low and high half.
inline void add_pair(V16& sum, U16 weights, const uint16_t* x) {
  uint32_t pair;
  std::memcpy(&pair, x, 4);
#if defined(__AVX512BF16__)
  const __m512i inputs = _mm512_set1_epi32(pair);
  sum = (V16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)inputs);
#else
  const V16 even = reinterpret_cast<V16>(weights << 16);
  const V16 odd = reinterpret_cast<V16>(weights & 0xffff0000u);
  sum += even * from_bf16(static_cast<uint16_t>(pair));
  sum += odd * from_bf16(static_cast<uint16_t>(pair >> 16));
#endif
}

// sum += the 16 outputs' products of one input (f32), or of two (bf16).
inline void add_product(V16& sum, const uint16_t* w, const uint16_t* x) {
  U16 weights;
  std::memcpy(&weights, w, sizeof weights);
  add_pair(sum, weights, x);
}

inline void add_product(V16& sum, const float* w, const float* x) { sum += load16(w) * splat(*x); }

inline void put16(float* out, V16 v) { store16(out, v); }
inline void put16(uint16_t* out, V16 v) { store_bf16(out, v, 16); }

// 16 ranks of R rows; every sum has the same chains whatever R is.
template <typename T, int R>
inline void shrink_rows(const T* const (&x)[R], const T* a, int64_t depth, T* const (&out)[R]) {
  constexpr int64_t kInputs = 4 / sizeof(T);
  V16 sums[R][kChains] = {};
  for (int64_t i = 0; i < depth; i += kInputs * kChains) {
    for (int c = 0; c < kChains; ++c, a += 16 * kInputs) {
      __builtin_prefetch(reinterpret_cast<const char*>(a) + kStreamAhead, 0, 2);
      for (int r = 0; r < R; ++r) add_product(sums[r][c], a, x[r] + i + c * kInputs);
    }
  }
  for (int r = 0; r < R; ++r)
    put16(out[r], (sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]));
}

template <typename T, int R>
inline void shrink_some(const Lora& lora, const LoraUnit& unit, int64_t done, const T* x,
                        int64_t stride, const T* a) {
  const T* from[R];
  T* to[R];
  for (int r = 0; r < R; ++r) {
    const int64_t row = lora.order[unit.first + done + r];
    from[r] = x + row * stride;
    to[r] = static_cast<T*>(lora.hidden) + row * lora.stride + unit.part * lora.span + 16 * unit.tile;
  }
  shrink_rows<T, R>(from, a, lora.depth, to);
}

// A x of every row that has an adapter. x: prepared rows, `stride` apart, zero up to lora.depth.
template <typename T>
void shrink(const Lora& lora, const T* x, int64_t stride) {
  parallel_for(lora.unit_count, [&](int64_t i) {
    const LoraUnit& unit = lora.units[i];
    const T* const a =
        static_cast<const T*>(lora.groups[unit.group].a[unit.part]) + unit.tile * 16 * lora.depth;
    int64_t done = 0;
    for (; done + kShrinkRows <= unit.count; done += kShrinkRows)
      shrink_some<T, kShrinkRows>(lora, unit, done, x, stride, a);
    for (; done < unit.count; ++done) shrink_some<T, 1>(lora, unit, done, x, stride, a);
  });
}

// 16 outputs of one row: the tile of B times the row's ranks.
template <typename T>
inline void expand_tile(const Lora& lora, const LoraGroup& group, int64_t part, int64_t tile,
                        const T* hidden, V16& out) {
  constexpr int64_t kInputs = 4 / sizeof(T);
  const int64_t rank = group.rank[part];
  if (rank == 0 || tile < 0 || tile >= lora.tiles[part]) return;
  const T* b = static_cast<const T*>(group.b[part]) + tile * 16 * rank;
  const bool is_streamed = group.count <= kFewRows;
  V16 sum{};
  for (int64_t r = 0; r < rank; r += kInputs, b += 16 * kInputs) {
    if (is_streamed) __builtin_prefetch(b + 32 * rank, 0, 2);
    add_product(sum, b, hidden + part * lora.span + r);
  }
  out += sum;
}

template <typename T>
inline void expand(const Lora& lora, int64_t row, int64_t group, bool is_gated, V16& low, V16& high) {
  if (lora.group_of[row] < 0) return;
  const LoraGroup& own = lora.groups[lora.group_of[row]];
  const T* const hidden = static_cast<const T*>(lora.hidden) + row * lora.stride;
  for (int64_t p = 0; p < lora.part_count; ++p) {
    if (is_gated) {
      expand_tile(lora, own, p, group, hidden, lora.tile[p] == 0 ? low : high);
    } else {
      expand_tile(lora, own, p, 2 * group - lora.tile[p], hidden, low);
      expand_tile(lora, own, p, 2 * group + 1 - lora.tile[p], hidden, high);
    }
  }
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_LORA_STEPS_H_
