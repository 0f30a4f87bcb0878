// Products of e4m3 weights, widened to bf16 in registers, and rows in bf16.
#ifndef RANVIER_QUANT_FP8_H_
#define RANVIER_QUANT_FP8_H_

#include "fp8.h"
#include "quant_formats.h"

namespace ranvier {
namespace {

// Sums of one output, as many whatever the rows are: they are floats, and their order shows.
#if defined(__AVX512F__)
constexpr int kSums = 2;
#else
constexpr int kSums = 1;  // a sum takes two of sixteen registers
#endif

constexpr uint16_t kFp8Sign = 0x8000, kFp8Exponent = 0x7800;
constexpr uint16_t kHalfSize = 0x07f0, kHalfBias = 120 << 7;  // of the code's bits in a bf16's place

// Codes in the high bytes of words, none of them below 2^-6, as bf16.
RANVIER_INLINE W32 widen_normal(W32 words) {
  return ((words >> 4 & kHalfSize) + kHalfBias) | (words & kFp8Sign);
}

#if defined(__AVX512BW__)
RANVIER_INLINE bool has_small(W32 line) {
  return _mm512_testn_epi8_mask((__m512i)line, _mm512_set1_epi8(kFp8Exponent >> 8)) != 0;
}

// bf16 of the eight codes below 2^-6, in steps of 2^-9.
alignas(64) constexpr uint16_t kSmall[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                             0x3c00, 0x3c20, 0x3c40, 0x3c60};

RANVIER_INLINE W32 widen_any(W32 words) {
  const __mmask32 is_small = _mm512_testn_epi16_mask((__m512i)words, _mm512_set1_epi16(kFp8Exponent));
  const __m512i codes = (__m512i)(words >> 8 & 7);
  const W32 small = (W32)_mm512_permutexvar_epi16(codes, load_as<__m512i>(kSmall));
  const W32 signed_small = small | (words & kFp8Sign);
  return (W32)_mm512_mask_mov_epi16((__m512i)widen_normal(words), is_small, (__m512i)signed_small);
}
#else
RANVIER_INLINE bool has_small(W32 line) {
  const W32 low = (line & (kFp8Exponent >> 8)) == 0, high = (line & kFp8Exponent) == 0;
  const auto any = reinterpret_cast<I16>(low | high);
  int32_t found = 0;
  for (int i = 0; i < 16; ++i) found |= any[i];
  return found != 0;
}

inline W32 widen_any(W32 words) {
  for (int i = 0; i < 32; ++i)
    words[i] = static_cast<uint16_t>(fp8_bits(static_cast<uint8_t>(words[i] >> 8)) >> 16);
  return words;
}
#endif

inline float fp8_value(int32_t code) {
  const uint32_t bits = fp8_bits(static_cast<uint8_t>(code));
  return load_as<float>(&bits);
}

// Two steps of two inputs in bf16.
struct Pairs {
  U16 of[2];
};

RANVIER_INLINE Pairs pairs_of(const uint8_t* codes) {
  const W32 line = load_line(codes);
  W32 first, second;
  if (__builtin_expect(has_small(line), false)) {
    first = widen_any(line << 8);
    second = widen_any(line);
  } else {
    first = widen_normal(line << 8);
    second = widen_normal(line);
  }
  return {{reinterpret_cast<U16>(first), reinterpret_cast<U16>(second)}};
}

template <Format F>
RANVIER_INLINE V16 fp8_scale(const uint8_t* header) {
  return F == Format::kF8Block ? splat(load_as<float>(header)) : load_as<V16>(header);
}

// R rows [depth] of x times one tile; `next` is fetched meanwhile, or null.
template <Format F, int R>
RANVIER_INLINE void multiply_fp8(const uint16_t* x, int64_t depth, const uint8_t* tile,
                                 const Segment& segment, const uint8_t* next, float* out) {
  const int64_t span = segment.block(depth);
  const uint8_t *header = tile, *line = tile + segment.codes(depth);
  V16 totals[R] = {};
  for (int64_t start = 0; start < depth; start += span, header += info_of(F).header) {
    V16 sums[R][kSums] = {};
    for (int64_t i = start; i < start + span; i += 4, line += 64) {
      if (next != nullptr) __builtin_prefetch(next + (line - tile), 0, 2);
      const Pairs weights = pairs_of(line);
      for (int t = 0; t < 2; ++t)
        for (int r = 0; r < R; ++r) add_pair(sums[r][t % kSums], weights.of[t], x + r * depth + i + 2 * t);
    }
    const V16 scale = fp8_scale<F>(header);
    for (int r = 0; r < R; ++r) {
      V16 sum = sums[r][0];
      for (int s = 1; s < kSums; ++s) sum += sums[r][s];
      totals[r] += scale * sum;
    }
  }
  for (int r = 0; r < R; ++r) store16(out + kGroup * r, totals[r]);
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_FP8_H_
