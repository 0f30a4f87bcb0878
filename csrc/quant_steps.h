// Whole-number steps that the formats share: dot products of pairs and fours, halves to floats, the rows.
#ifndef RANVIER_QUANT_STEPS_H_
#define RANVIER_QUANT_STEPS_H_

#include <vector>

#include "linear_steps.h"
#include "quant.h"

// What a kernel's registers live across must be inlined, whatever its size.
#define RANVIER_INLINE inline __attribute__((always_inline))

namespace ranvier {
namespace {

typedef uint16_t W32 __attribute__((vector_size(64)));  // [16 outputs][2 inputs]
typedef int16_t S32 __attribute__((vector_size(64)));
typedef int8_t B32 __attribute__((vector_size(32)));
typedef uint8_t B16 __attribute__((vector_size(16)));

template <typename V>
RANVIER_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline I16 splat_int(int32_t x) { return I16{} + x; }

// sum[j] += w[j][0] * low half of x + w[j][1] * high half, as int16.
RANVIER_INLINE I16 dot2(I16 sum, W32 w, uint32_t x) {
#if defined(__AVX512VNNI__)
  return (I16)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(static_cast<int>(x)));
#elif defined(__AVX512BW__)
  return sum + (I16)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(static_cast<int>(x)));
#elif defined(__AVX2__)
  const __m256i inputs = _mm256_set1_epi32(static_cast<int>(x));
  __m256i halves[2];
  std::memcpy(halves, &w, sizeof w);
  for (__m256i& half : halves) half = _mm256_madd_epi16(half, inputs);
  I16 products;
  std::memcpy(&products, halves, sizeof products);
  return sum + products;
#else
  const I16 pairs = reinterpret_cast<I16>(w);
  const int32_t low = static_cast<int16_t>(x & 0xffff), high = static_cast<int16_t>(x >> 16);
  return sum + (pairs << 16 >> 16) * low + (pairs >> 16) * high;
#endif
}

// sum[j] += four products of int8 weights with uint8 inputs.
RANVIER_INLINE I16 dot4(I16 sum, I16 w, uint32_t x) {
#if defined(__AVX512VNNI__)
  return (I16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(static_cast<int>(x)), (__m512i)w);
#else
  for (int i = 0; i < 4; ++i)
    sum += (w << (24 - 8 * i) >> 24) * static_cast<int32_t>(x >> (8 * i) & 255);
  return sum;
#endif
}

inline V16 to_floats(I16 x) { return __builtin_convertvector(x, V16); }

inline V16 bytes_to_floats(const void* p) {
  return to_floats(__builtin_convertvector(load_as<B16>(p), I16));
}

inline V16 signed_to_floats(const void* p) {
  typedef int8_t C16 __attribute__((vector_size(16)));
  return to_floats(__builtin_convertvector(load_as<C16>(p), I16));
}

// Sixteen float16. Without the instruction: the exponent moved by a multiplication, which is exact.
RANVIER_INLINE V16 halves_to_floats(const void* p) {
  const H16 halves = load_as<H16>(p);
#if defined(__AVX512F__)
  return (V16)_mm512_cvtph_ps((__m256i)halves);
#else
  const U16 bits = __builtin_convertvector(halves, U16);
  const V16 size = reinterpret_cast<V16>((bits & 0x7fff) << 13) * 0x1p112f;
  return reinterpret_cast<V16>(reinterpret_cast<U16>(size) | (bits & 0x8000) << 16);
#endif
}

// Rows of activations as whole numbers: value = scale * code.
struct Rows {
  int64_t depth, segments;
  int16_t* wide;    // [rows][depth], 16 bits
  uint8_t* narrow;  // [rows][depth], 8 bits plus 128
  float* sums[kSegments];  // [rows][depth / group], of wide, in whole numbers: exact
  int64_t groups[kSegments];
  float* scales;  // [2][rows]: of wide, of narrow
};

// One row, normed, into `values` [depth], 0 behind its end. Returns the largest size; NaN where a value
// is not finite, so that it is not lost in the codes.
inline float norm_into(const Linear& a, int64_t row, float* values) {
  const float scale = row_scale(a, row);
  V16 top{}, nothing{};
  for (int64_t i = 0; i < a.depth; i += 16) {
    V16 v = i < a.inputs ? read_x(a, row, i) : V16{};
    if (a.norm != nullptr && i < a.inputs) v = v * scale * load_some(a.norm + i, a.inputs - i);
    store16(values + i, v);
    const V16 size = reinterpret_cast<V16>(reinterpret_cast<U16>(v) & 0x7fffffff);
    top = size > top ? size : top;
    nothing += v * 0.0f;
  }
  return max16(top) + sum16(nothing);
}

inline I16 to_codes(V16 v) {  // round to nearest even
#if defined(__AVX512F__)
  return (I16)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof v);
  const __m256i codes[2] = {_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
  return load_as<I16>(codes);
#else
  I16 codes;
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<int32_t>(std::nearbyint(v[i]));
  return codes;
#endif
}

inline int32_t sum_int(I16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
#endif
}

// Sums of one row's codes by each segment's groups.
inline void sum_groups(const Rows& to, int64_t row, const float* cells) {
  for (int64_t s = 0; s < to.segments; ++s) {
    const int64_t each = to.groups[s] / 16, count = to.depth / to.groups[s];
    for (int64_t g = 0; g < count; ++g) {
      float sum = 0;
      for (int64_t i = 0; i < each; ++i) sum += cells[g * each + i];
      to.sums[s][row * count + g] = sum;
    }
  }
}

inline void widen_row(const Rows& to, int64_t row, const float* values, float* cells, float rate) {
  typedef int16_t C16 __attribute__((vector_size(32)));
  for (int64_t i = 0; i < to.depth; i += 16) {
    const I16 codes = to_codes(load16(values + i) * rate);
    const C16 shorts = __builtin_convertvector(codes, C16);
    std::memcpy(to.wide + row * to.depth + i, &shorts, sizeof shorts);
    cells[i / 16] = static_cast<float>(sum_int(codes));
  }
  sum_groups(to, row, cells);
}

inline void narrow_row(const Rows& to, int64_t row, const float* values, float rate) {
  for (int64_t i = 0; i < to.depth; i += 16) {
    const B16 bytes = __builtin_convertvector(to_codes(load16(values + i) * rate) + 128, B16);
    std::memcpy(to.narrow + row * to.depth + i, &bytes, sizeof bytes);
  }
}

inline void quantise_row(const Linear& a, const Rows& to, int64_t row) {
  static thread_local std::vector<float> room;
  const auto cells = static_cast<size_t>(a.depth);
  if (room.size() < cells + cells / 16 + 16) room.resize(cells + cells / 16 + 16);
  float* const values = room.data();
  const float top = norm_into(a, row, values);
  const float wide = top > 0 ? 32767.0f / top : 0.0f, narrow = top > 0 ? 127.0f / top : 0.0f;
  if (to.wide != nullptr) widen_row(to, row, values, values + cells, wide);
  if (to.narrow != nullptr) narrow_row(to, row, values, narrow);
  to.scales[row] = top / 32767.0f;
  to.scales[a.rows + row] = top / 127.0f;
}

// Inputs of a group whose sum of codes a segment's kernel asks for.
inline int64_t sum_group(const Segment& segment, int64_t depth) {
  const FormatInfo& info = kInfo[static_cast<int32_t>(segment.format)];
  if (info.is_whole) return depth;
  return segment.format == Format::kK6 ? 16 : info.is_super ? kUnit : segment.group;
}

// Room for the rows of a step, in one allocation of this thread.
inline Rows rows_of(const Quantised& a, bool is_wide, bool is_narrow) {
  const int64_t cells = a.rows * a.depth, sums = a.rows * (a.depth / 16);
  const int64_t bytes = 2 * cells + 4 * sums * a.segment_count + 8 * a.rows + cells;
  auto* at = static_cast<uint8_t*>(scratch(bytes + 256));
  Rows r{};
  r.depth = a.depth;
  r.segments = is_wide ? a.segment_count : 0;
  if (is_wide) r.wide = reinterpret_cast<int16_t*>(at);
  at += 2 * cells;
  for (int64_t s = 0; s < a.segment_count; ++s, at += 4 * sums) {
    r.sums[s] = reinterpret_cast<float*>(at);
    r.groups[s] = sum_group(a.segments[s], a.depth);
  }
  r.scales = reinterpret_cast<float*>(at);
  if (is_narrow) r.narrow = at + 8 * a.rows;
  return r;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_STEPS_H_
