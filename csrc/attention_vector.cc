// Attention's two products on vector registers; each ISA's file includes it once under its own name.
#include "attention_steps.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace {

template <typename T>
struct Runs;
template <typename T>
inline void scores_of(const Attention& a, const T* q, int64_t rows, const T* k, const char* next,
                      float* out);
template <typename T>
inline void values_of(const Attention& a, const T* weights, int64_t rows, const Runs<T>& runs,
                      float* out);

struct State {};  // nothing to set up before an item

}  // namespace
}  // namespace ranvier

#include "attention_walk.h"

namespace ranvier {
namespace {

template <typename T>
constexpr int64_t kStep = kIsBf16<T> ? 2 : 1;  // inputs of one multiply-add

template <typename T>
inline void add(V16& sum, const T* w, const T* x) {
  if constexpr (!kIsBf16<T>) {
    sum += load16(reinterpret_cast<const float*>(w)) * *reinterpret_cast<const float*>(x);
    return;
  }
  uint32_t pair;
  std::memcpy(&pair, x, 4);
#if defined(__AVX512BF16__)
  const __m512i weights = _mm512_loadu_si512(w), inputs = _mm512_set1_epi32(pair);
  sum = (V16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)inputs);
#else
  U16 bits;
  std::memcpy(&bits, w, sizeof bits);
  sum += reinterpret_cast<V16>(bits << 16) * from_bf16(static_cast<uint16_t>(pair));
  sum += reinterpret_cast<V16>(bits & 0xffff0000u) * from_bf16(static_cast<uint16_t>(pair >> 16));
#endif
}

#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 8;
#else
constexpr int kRowsAtOnce = 2;
#endif

// The line of the next run that lies where `at` bytes of this one are used.
template <bool kFetches>
inline void fetch(const char* next, int64_t at) {
  if constexpr (kFetches) __builtin_prefetch(next + at, 0, 2);
}

template <typename T, int R, bool kFetches>
void scores_rows(const Attention& a, const T* q, const T* k, const char* next, float* out) {
  constexpr int64_t bytes = 16 * sizeof(T);
  V16 acc[R][2] = {};
  const T* high = k + 16 * a.size;
  for (int64_t e = 0; e < a.size; e += kStep<T>) {
    fetch<kFetches>(next, bytes * e);
    fetch<kFetches>(next, bytes * (a.size + e));
    for (int r = 0; r < R; ++r) {
      add(acc[r][0], k + 16 * e, q + r * a.size + e);
      add(acc[r][1], high + 16 * e, q + r * a.size + e);
    }
  }
  for (int r = 0; r < R; ++r) {
    store16(out + r * kChunk, acc[r][0]);
    store16(out + r * kChunk + 16, acc[r][1]);
  }
}

// A run of keys into the sums of values_tile.
template <typename T, int R, int W, bool kFetches>
void values_run(const Attention& a, const T* weights, const T* run, const char* next, int64_t e,
                V16 (&acc)[R][W]) {
  for (int64_t key = 0; key < kKeys; key += kStep<T>) {
    const int64_t at = key * a.size + e * kStep<T>;
    const T* const v = run + at;
    for (int c = 0; c < W; ++c) fetch<kFetches>(next, sizeof(T) * (at + 16 * kStep<T> * c));
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < W; ++c) add(acc[r][c], v + 16 * kStep<T> * c, weights + r * kChunk + key);
  }
}

// R rows by W columns of 16 values: enough sums at once to hide the latency of one.
template <typename T, int R, int W>
void values_tile(const Attention& a, const T* weights, const Runs<T>& runs, int64_t e, float* out) {
  V16 acc[R][W] = {};
  for (int64_t i = 0; i < runs.count; ++i) {
    const T* const own = weights + i * kKeys;
    if (runs.next[i] != nullptr) {
      values_run<T, R, W, true>(a, own, runs.v[i], runs.next[i], e, acc);
    } else {
      values_run<T, R, W, false>(a, own, runs.v[i], nullptr, e, acc);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < W; ++c) store16(out + r * a.size + e + 16 * c, acc[r][c]);
}

template <typename T, int R>
void values_rows(const Attention& a, const T* weights, const Runs<T>& runs, float* out) {
  constexpr int kWide = kRowsAtOnce >= 8 && R <= 4 ? 4 : 2;
  int64_t e = 0;
  for (; e + 16 * kWide <= a.size; e += 16 * kWide)
    values_tile<T, R, kWide>(a, weights, runs, e, out);
  for (; e < a.size; e += 16) values_tile<T, R, 1>(a, weights, runs, e, out);
}

template <typename T, int R = kRowsAtOnce>
inline void score_some(const Attention& a, const T* q, int64_t rows, const T* k, const char* next,
                       float* out) {
  if constexpr (R > 1) {
    if (rows < R) return score_some<T, R - 1>(a, q, rows, k, next, out);
  }
  if (next != nullptr) return scores_rows<T, R, true>(a, q, k, next, out);
  scores_rows<T, R, false>(a, q, k, nullptr, out);
}

template <typename T, int R = kRowsAtOnce>
inline void value_some(const Attention& a, const T* weights, int64_t rows, const Runs<T>& runs,
                       float* out) {
  if constexpr (R > 1) {
    if (rows < R) return value_some<T, R - 1>(a, weights, rows, runs, out);
  }
  values_rows<T, R>(a, weights, runs, out);
}

template <typename T>
inline void scores_of(const Attention& a, const T* q, int64_t rows, const T* k, const char* next,
                      float* out) {
  for (int64_t r = 0; r < rows; r += kRowsAtOnce)
    score_some<T>(a, q + r * a.size, rows - r, k, r ? nullptr : next, out + r * kChunk);
}

template <typename T>
inline void values_of(const Attention& a, const T* weights, int64_t rows, const Runs<T>& runs,
                      float* out) {
  Runs<T> fetched = runs;  // by the first rows
  for (const char*& next : fetched.next) next = nullptr;
  for (int64_t r = 0; r < rows; r += kRowsAtOnce)
    value_some<T>(a, weights + r * kChunk, rows - r, r ? fetched : runs, out + r * a.size);
}

}  // namespace

namespace RANVIER_ISA {

void attention(const Attention& a) {
  if (a.is_bf16) {
    attend<uint16_t>(a);
  } else {
    attend<float>(a);
  }
}

}  // namespace RANVIER_ISA

}  // namespace ranvier
