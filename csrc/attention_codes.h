// A cache narrower than its products: how k and v become bytes, and runs of keys elements again.
//
// fp8: e4m3 of the value itself; beyond +-448 saturates. int8: value / scale, with one scale for each
// token and kv head. An int8 head's block ends with its tokens' scales, f32 [Bt]. Scales meet scores and
// weights, not elements: codes up to 127 are exact in bf16.
#ifndef RANVIER_ATTENTION_CODES_H_
#define RANVIER_ATTENTION_CODES_H_

#include "attention.h"
#include "fp8.h"
#include "vec.h"

namespace ranvier {
namespace {

constexpr uint32_t kFp8Max = 0x43e00000;     // 448
constexpr uint32_t kFp8Normal = 0x3c800000;  // 2^-6, below which e4m3 is in steps of 2^-9
constexpr float kTiniest = 1e-30f;           // a head smaller than this has no int8 scale: it is 0

inline uint8_t to_fp8(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 24 & 0x80;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return 0;  // NaN
  if (bits >= kFp8Max) return static_cast<uint8_t>(sign | 0x7e);
  if (bits >= kFp8Normal) {
    bits = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
    return static_cast<uint8_t>(sign | (bits - (120 << 3)));
  }
  const float base = 16384.0f;  // whose own steps are 2^-9: the sum rounds to one
  float sum;
  std::memcpy(&sum, &bits, 4);
  sum += base;
  uint32_t raised, start;
  std::memcpy(&raised, &sum, 4);
  std::memcpy(&start, &base, 4);
  return static_cast<uint8_t>(sign | (raised - start));
}

// Largest magnitude / 127; what is not finite counts as the largest float, NaN as nothing.
inline float int8_scale(const float* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    bits = bits > 0x7f800000 ? 0 : bits;
    most = bits > most ? bits : most;
  }
  most = most > 0x7f7fffff ? 0x7f7fffff : most;
  float largest;
  std::memcpy(&largest, &most, 4);
  return largest < kTiniest ? 0.0f : largest / 127.0f;
}

inline uint8_t to_int8(float x, float inverse) {
  float y = x * inverse;
  y = y == y ? y : 0.0f;
  y = y > 127.0f ? 127.0f : y;
  y = y < -127.0f ? -127.0f : y;
  return static_cast<uint8_t>(static_cast<int8_t>(__builtin_nearbyintf(y)));
}

inline int64_t scale_at(const Attention& a, int64_t offset) {
  return a.block_tokens * a.size + 4 * offset;
}

// One token's k or v into its head's block; at(e) is the place of element e.
template <typename At>
inline void write_codes(const Attention& a, const float* x, int64_t offset, uint8_t* head, At at) {
  if (a.codes == Codes::kFp8) {
    for (int64_t e = 0; e < a.size; ++e) head[at(e)] = to_fp8(x[e]);
    return;
  }
  const float scale = int8_scale(x, a.size), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int64_t e = 0; e < a.size; ++e) head[at(e)] = to_int8(x[e], inverse);
  std::memcpy(head + scale_at(a, offset), &scale, 4);
}

inline void widen_fp8(const uint8_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = fp8_bits(from[i]);
    std::memcpy(to + i, &bits, 4);
  }
}

inline void widen_int8(const uint8_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(static_cast<int8_t>(from[i]));
}

#if defined(__AVX512BW__)

// n is a multiple of 32.
inline void widen_fp8(const uint8_t* from, int64_t n, uint16_t* to) {
  alignas(64) uint16_t few[32] = {};
  for (int i = 0; i < 8; ++i) few[i] = static_cast<uint16_t>(fp8_bits(i) >> 16);
  const __m512i small = _mm512_load_si512(few), bias = _mm512_set1_epi16(120 << 7);
  const __m512i low = _mm512_set1_epi16(0x7f), top = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i code =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    const __m512i magnitude = _mm512_and_si512(code, low);
    const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), bias);
    const __mmask32 is_small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
    const __m512i value = _mm512_mask_permutexvar_epi16(normal, is_small, magnitude, small);
    const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), top);
    _mm512_storeu_si512(to + i, _mm512_or_si512(value, sign));
  }
}

inline void widen_int8(const uint8_t* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; i += 16) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    const U16 bits = (U16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    const H16 halves = __builtin_convertvector(bits >> 16, H16);
    std::memcpy(to + i, &halves, sizeof halves);
  }
}

#else

inline void widen_fp8(const uint8_t* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(fp8_bits(from[i]) >> 16);
}

inline void widen_int8(const uint8_t* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = static_cast<float>(static_cast<int8_t>(from[i]));
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to[i] = static_cast<uint16_t>(bits >> 16);
  }
}

#endif

// A run of keys as the products take it: the cache itself, or its codes widened into `room`.
template <typename T>
inline const T* opened(const Attention& a, const char* run, T* room) {
  if (a.codes == Codes::kNone) return reinterpret_cast<const T*>(run);
  const auto* const codes = reinterpret_cast<const uint8_t*>(run);
  if (a.codes == Codes::kFp8) {
    widen_fp8(codes, kKeys * a.size, room);
  } else {
    widen_int8(codes, kKeys * a.size, room);
  }
  return room;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_ATTENTION_CODES_H_
