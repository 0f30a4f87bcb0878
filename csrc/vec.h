// Sixteen lanes of float as one value, on any ISA: the compiler splits it where the registers are smaller.
#ifndef RANVIER_VEC_H_
#define RANVIER_VEC_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ranvier {
namespace {  // each file is built for an ISA of its own: nothing here may be shared between them

typedef float V16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));

inline V16 load16(const float* p) {
  V16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store16(float* p, V16 v) { std::memcpy(p, &v, sizeof v); }

inline V16 splat(float x) { return V16{} + x; }

// First `n` lanes from memory, the others 0.
inline V16 load_some(const float* p, int64_t n) {
  V16 v{};
  std::memcpy(&v, p, sizeof(float) * (n < 16 ? n : 16));
  return v;
}

inline void store_some(float* p, V16 v, int64_t n) {
  std::memcpy(p, &v, sizeof(float) * (n < 16 ? n : 16));
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
  U16 bits = reinterpret_cast<U16>(v);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  uint16_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<uint16_t>(bits[i]);
  std::memcpy(p, lanes, sizeof(uint16_t) * (n < 16 ? n : 16));
}

inline V16 load_bf16(const uint16_t* p, int64_t n) {
  uint16_t lanes[16] = {};
  std::memcpy(lanes, p, sizeof(uint16_t) * (n < 16 ? n : 16));
  U16 bits;
  for (int i = 0; i < 16; ++i) bits[i] = static_cast<uint32_t>(lanes[i]) << 16;
  return reinterpret_cast<V16>(bits);
}

// e^x to about 1e-7 relative; 0 below -87, clamped above 88. Cephes' polynomial, by Horner.
inline V16 exp16(V16 x) {
  const I16 is_tiny = x < -87.0f;
  x = x > 88.0f ? splat(88.0f) : x;
  x = is_tiny ? splat(-87.0f) : x;
  const V16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V16 n = (x * 1.44269504f + magic) - magic;
  const V16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I16 scale = (__builtin_convertvector(n, I16) + 127) << 23;
  const V16 y = p * reinterpret_cast<V16>(scale);
  return is_tiny ? V16{} : y;
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
