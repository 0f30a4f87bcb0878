// Sixteen lanes of float as one value, on any ISA: the compiler splits it where the registers are smaller.
#ifndef RANVIER_VEC_H_
#define RANVIER_VEC_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ranvier {
namespace {  // each file is built for an ISA of its own: nothing here may be shared between them

typedef float V16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));

inline V16 load16(const float* p) {
  V16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store16(float* p, V16 v) { std::memcpy(p, &v, sizeof v); }

inline V16 splat(float x) { return V16{} + x; }

// First `n` lanes from memory, the others 0.
inline V16 load_some(const float* p, int64_t n) {
  if (n >= 16) return load16(p);
  V16 v{};
  std::memcpy(&v, p, sizeof(float) * n);
  return v;
}

inline void store_some(float* p, V16 v, int64_t n) {
  if (n >= 16) return store16(p, v);
  std::memcpy(p, &v, sizeof(float) * n);
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 64);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even, for finite values.
inline void store_bf16(uint16_t* p, V16 v, int64_t n) {
#if defined(__AVX512BF16__)
  const H16 halves = (H16)_mm512_cvtneps_pbh((__m512)v);
#else
  U16 bits = reinterpret_cast<U16>(v);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const H16 halves = __builtin_convertvector(bits, H16);
#endif
  if (n >= 16) {
    std::memcpy(p, &halves, sizeof halves);
  } else {
    std::memcpy(p, &halves, sizeof(uint16_t) * n);
  }
}

inline V16 load_bf16(const uint16_t* p, int64_t n) {
  H16 halves{};
  if (n >= 16) {
    std::memcpy(&halves, p, sizeof halves);
  } else {
    std::memcpy(&halves, p, sizeof(uint16_t) * n);
  }
  return reinterpret_cast<V16>(__builtin_convertvector(halves, U16) << 16);
}

// e^r for |r| <= ln 2 / 2, to 1e-7: Chebyshev interpolation of degree 6.
inline V16 exp_near_0(V16 r) {
  V16 p = splat(1.3941108436e-03f);
  p = p * r + 8.3751263981e-03f;
  p = p * r + 4.1666352897e-02f;
  p = p * r + 1.6666415515e-01f;
  p = p * r + 5.0000000471e-01f;
  p = p * r + 1.0000000377e+00f;
  return p * r + 1.0f;
}

constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;

// e^x to about 1e-7 relative; exactly 0 for x of -150 and below, -inf too.
inline V16 exp16(V16 x) {
#if defined(__AVX512F__)
  x = x < -150.0f ? splat(-150.0f) : x;
  const V16 n = (V16)_mm512_roundscale_ps((__m512)(x * kLog2E), _MM_FROUND_TO_NEAREST_INT);
  const V16 r = (x - n * kLn2High) - n * kLn2Low;
  return (V16)_mm512_scalef_ps((__m512)exp_near_0(r), (__m512)n);
#else
  const I16 is_tiny = x < -87.0f;
  x = x > 88.0f ? splat(88.0f) : x;
  x = is_tiny ? splat(-87.0f) : x;
  const V16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V16 n = (x * kLog2E + magic) - magic;
  const V16 r = (x - n * kLn2High) - n * kLn2Low;
  const I16 scale = (__builtin_convertvector(n, I16) + 127) << 23;
  const V16 y = exp_near_0(r) * reinterpret_cast<V16>(scale);
  return is_tiny ? V16{} : y;
#endif
}

inline float sum16(V16 v) {  // a fixed tree, so that every call adds in one order
  float s[16];
  store16(s, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

inline float max16(V16 v) {
  float m = v[0];
  for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_VEC_H_
