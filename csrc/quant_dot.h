// Products of whole numbers: a step is four inputs of each of 16 outputs, codes of 8 bits without sign
// times signed inputs of a row.
//
// Inputs of 16 bits are 256 * high + low. Where the machine multiplies bytes (VNNI) a step's inputs of one row
// are four low bytes, then four high ones, each summed for itself; elsewhere codes are widened to 16 bits and
// a step's inputs are four 16-bit numbers. All sums are exact.
#ifndef RANVIER_QUANT_DOT_H_
#define RANVIER_QUANT_DOT_H_

#include "linear_steps.h"

// What a kernel's registers live across must be inlined, whatever its size.
#define RANVIER_INLINE inline __attribute__((always_inline))

namespace ranvier {
namespace {

typedef uint8_t W64 __attribute__((vector_size(64)));  // [16 outputs][4 inputs]
typedef uint16_t W32 __attribute__((vector_size(64)));
typedef uint8_t B16 __attribute__((vector_size(16)));

constexpr int32_t kWideTop = 127 * 256 + 127;  // largest input of 16 bits: high and low fit in 8 each
constexpr int32_t kNarrowTop = 127;

template <typename V>
RANVIER_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline I16 splat_int(int32_t x) { return I16{} + x; }

#if defined(__AVX512VNNI__)
constexpr int64_t step_bytes(bool is_wide) { return is_wide ? 8 : 4; }

RANVIER_INLINE I16 dot4(I16 sum, W64 codes, const uint8_t* x) {
  const __m512i inputs = _mm512_set1_epi32(load_as<int32_t>(x));
  return (I16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, inputs);
}

// The sums of one row.
template <bool kWide>
struct Sums {
  I16 low{}, high{};

  RANVIER_INLINE void start(int32_t from) { low = splat_int(from); }
  RANVIER_INLINE void add(W64 codes, const uint8_t* x) {
    low = dot4(low, codes, x);
    if constexpr (kWide) high = dot4(high, codes, x + 4);
  }
  RANVIER_INLINE I16 total() const { return kWide ? (high << 8) + low : low; }
};

// Sixteen inputs: four steps, `stride` bytes apart.
template <bool kWide>
inline void store_codes(uint8_t* out, int64_t stride, I16 codes) {
  const B16 low = __builtin_convertvector(codes, B16);  // the lowest eight bits
  const B16 high = __builtin_convertvector((codes + 128) >> 8, B16);
  for (int s = 0; s < 4; ++s, out += stride) {
    std::memcpy(out, reinterpret_cast<const char*>(&low) + 4 * s, 4);
    if (kWide) std::memcpy(out + 4, reinterpret_cast<const char*>(&high) + 4 * s, 4);
  }
}
#else
constexpr int64_t step_bytes(bool) { return 8; }

#if defined(__AVX512BW__)
RANVIER_INLINE I16 dot_half(I16 sum, const uint8_t* codes, int64_t x) {
  const __m512i wide = _mm512_cvtepu8_epi16(load_as<__m256i>(codes));
  return sum + (I16)_mm512_madd_epi16(wide, _mm512_set1_epi64(x));
}
#elif defined(__AVX2__)
RANVIER_INLINE I16 dot_half(I16 sum, const uint8_t* codes, int64_t x) {
  __m256i products[2];
  for (int i = 0; i < 2; ++i)
    products[i] = _mm256_madd_epi16(_mm256_cvtepu8_epi16(load_as<__m128i>(codes + 16 * i)),
                                    _mm256_set1_epi64x(x));
  return sum + load_as<I16>(products);
}
#else
RANVIER_INLINE I16 dot_half(I16 sum, const uint8_t* codes, int64_t x) {
  int16_t inputs[4];
  std::memcpy(inputs, &x, sizeof inputs);
  for (int i = 0; i < 16; ++i)
    sum[i] += codes[2 * i] * inputs[i % 2 * 2] + codes[2 * i + 1] * inputs[i % 2 * 2 + 1];
  return sum;
}
#endif

// The sums of one row: of outputs 0 to 7 and of 8 to 15, two lanes an output.
template <bool kWide>
struct Sums {
  I16 low{}, high{};

  RANVIER_INLINE void start(int32_t from) {
    for (int i = 0; i < 16; i += 2) low[i] = high[i] = from;
  }
  RANVIER_INLINE void add(W64 codes, const uint8_t* x) {
    alignas(64) uint8_t bytes[64];
    std::memcpy(bytes, &codes, sizeof bytes);
    const auto inputs = load_as<int64_t>(x);
    low = dot_half(low, bytes, inputs);
    high = dot_half(high, bytes + 32, inputs);
  }
  RANVIER_INLINE I16 total() const {
    I16 sum;
    for (int i = 0; i < 8; ++i) {
      sum[i] = low[2 * i] + low[2 * i + 1];
      sum[8 + i] = high[2 * i] + high[2 * i + 1];
    }
    return sum;
  }
};

template <bool kWide>
inline void store_codes(uint8_t* out, int64_t stride, I16 codes) {
  typedef int16_t C16 __attribute__((vector_size(32)));
  const C16 shorts = __builtin_convertvector(codes, C16);
  for (int s = 0; s < 4; ++s, out += stride)
    std::memcpy(out, reinterpret_cast<const char*>(&shorts) + 8 * s, 8);
}
#endif

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_DOT_H_
