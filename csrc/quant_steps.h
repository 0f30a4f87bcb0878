// Whole-number steps that the formats share: halves to floats, and rows as whole numbers.
#ifndef RANVIER_QUANT_STEPS_H_
#define RANVIER_QUANT_STEPS_H_

#include <algorithm>
#include <numeric>
#include <vector>

#include "quant.h"
#include "quant_dot.h"

namespace ranvier {
namespace {

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

#if defined(__AVX512F__)
constexpr int64_t kRows = 8;
#else
constexpr int64_t kRows = 4;
#endif

// Rows that a kernel takes at once.
struct RowBlock {
  int64_t first, count;
};

// The block of a row: as many of kRows as there are, then of 4, of 2, of 1.
inline RowBlock block_of(int64_t row, int64_t rows) {
  int64_t count = kRows, first = row / count * count;
  while (first + count > rows) {
    count /= 2;
    first = row / count * count;
  }
  return {first, count};
}

// Rows of activations as whole numbers: value = scale * code. The inputs of a block of rows lie together, step
// by step: [depth / 4][rows of the block][step_bytes].
struct Rows {
  int64_t depth;
  uint8_t* wide;    // 16 bits
  uint8_t* narrow;  // 8 bits
  uint8_t* grouped;  // 8 bits, with group_scales
  uint16_t* halves;  // bf16 [rows][depth]
  int32_t* sums[kSegments];  // [rows][groups]: of a segment's inputs
  int64_t groups[kSegments];  // inputs of a group
  int64_t cell;  // inputs of the smallest group: all are multiples of it
  int64_t input_group;
  float* scales;  // [2][rows]: of wide, of narrow
  float* group_scales;  // [rows][groups of input_group]
};

inline int64_t groups_of(int64_t depth, int64_t group) { return (depth + group - 1) / group; }

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

// What of a group's inputs a segment's kernel takes: their sum, or what it starts from, the zero's share.
inline int32_t start_of(Format format, int32_t sum) {
  const int zero = zero_bits(format);
  return zero == 0 ? sum : -(sum << zero);
}

// Sums of one row's inputs by the groups of each segment that has inputs of this width; `cells` are sums of
// `cell` inputs.
inline void sum_groups(const Quantised& a, const Rows& to, int64_t row, const int32_t* cells,
                       Inputs kind) {
  for (int64_t s = 0; s < a.segment_count; ++s) {
    const Format format = a.segments[s].format;
    if (inputs_of(format) != kind) continue;
    const int64_t each = to.groups[s] / to.cell, all = groups_of(to.depth, to.cell);
    int32_t* out = to.sums[s] + row * groups_of(to.depth, to.groups[s]);
    for (int64_t i = 0; i < all; i += each, ++out) {
      int32_t sum = 0;
      for (int64_t j = i; j < i + each && j < all; ++j) sum += cells[j];
      *out = start_of(format, sum);
    }
  }
}

// Where the inputs of a block of rows begin.
template <bool kWide>
inline uint8_t* inputs_of(const Rows& rows, int64_t first) {
  return (kWide ? rows.wide : rows.narrow) + first * (rows.depth / 4 * step_bytes(kWide));
}

template <bool kWide>
inline void code_row(const Quantised& a, const Rows& to, int64_t row, const float* values, float rate,
                     int32_t* cells) {
  const RowBlock block = block_of(row, a.rows);
  const int64_t stride = block.count * step_bytes(kWide);
  uint8_t* out = inputs_of<kWide>(to, block.first) + (row - block.first) * step_bytes(kWide);
  for (int64_t i = 0; i < to.depth; ++cells) {
    I16 sum{};
    for (const int64_t end = std::min(i + to.cell, to.depth); i < end; i += 16, out += 4 * stride) {
      const I16 codes = to_codes(load16(values + i) * rate);
      store_codes<kWide>(out, stride, codes);
      sum += codes;
    }
    *cells = sum_int(sum);
  }
  sum_groups(a, to, row, cells - groups_of(to.depth, to.cell), kWide ? Inputs::kWide : Inputs::kNarrow);
}

// One row with a scale for each group of inputs. `nothing`: 0, or NaN where a value is not finite.
inline void code_groups(const Quantised& a, const Rows& to, int64_t row, const float* values,
                        float nothing, int32_t* cells) {
  const RowBlock block = block_of(row, a.rows);
  const int64_t step = step_bytes(false), stride = block.count * step;
  uint8_t* out = to.grouped + block.first * (to.depth / 4 * step) + (row - block.first) * step;
  float* scale = to.group_scales + row * groups_of(to.depth, to.input_group);
  for (int64_t start = 0; start < to.depth; start += to.input_group, ++scale) {
    const int64_t end = std::min(start + to.input_group, to.depth);
    V16 most{};
    for (int64_t i = start; i < end; i += 16) {
      const V16 v = load16(values + i), size = v < 0.0f ? -v : v;
      most = size > most ? size : most;
    }
    const float top = max16(most), rate = top > 0 ? kNarrowTop / top : 0.0f;
    *scale = top / kNarrowTop + nothing;
    for (int64_t i = start; i < end; ++cells) {
      I16 sum{};
      for (const int64_t last = i + to.cell; i < last && i < end; i += 16, out += 4 * stride) {
        const I16 codes = to_codes(load16(values + i) * rate);
        store_codes<false>(out, stride, codes);
        sum += codes;
      }
      *cells = sum_int(sum);
    }
  }
  sum_groups(a, to, row, cells - groups_of(to.depth, to.cell), Inputs::kGrouped);
}

inline void quantise_row(const Quantised& a, const Rows& to, int64_t row) {
  if (to.halves != nullptr) prepare_row(a, row, to.halves + row * a.depth);
  if (to.wide == nullptr && to.narrow == nullptr && to.grouped == nullptr) return;
  static thread_local std::vector<float> room;
  static thread_local std::vector<int32_t> cells;
  const auto size = static_cast<size_t>(a.depth);
  if (room.size() < size) {
    room.resize(size);
    cells.resize(size / 16 + 1);
  }
  const float top = norm_into(a, row, room.data());
  const float wide = top > 0 ? kWideTop / top : 0.0f, narrow = top > 0 ? kNarrowTop / top : 0.0f;
  if (to.wide != nullptr) code_row<true>(a, to, row, room.data(), wide, cells.data());
  if (to.narrow != nullptr) code_row<false>(a, to, row, room.data(), narrow, cells.data());
  if (to.grouped != nullptr) code_groups(a, to, row, room.data(), top - top, cells.data());
  to.scales[row] = top / kWideTop;
  to.scales[a.rows + row] = top / kNarrowTop;
}

// Inputs of a whole block that are summed before they become floats; of 8-bit inputs all are.
constexpr int64_t kWholeGroup = 256;

// Inputs of a group whose sum a segment's kernel asks for.
inline int64_t sum_group(const Segment& segment, int64_t depth, int64_t input_group) {
  const FormatInfo& info = kInfo[static_cast<int32_t>(segment.format)];
  if (segment.format == Format::kI8D) return groups_of(depth, kWholeGroup) * kWholeGroup;
  if (segment.format == Format::kI8G) return input_group;
  if (info.is_whole || is_fp8(segment.format)) return kWholeGroup;
  if (info.is_super) return segment.format == Format::kK6 ? 16 : kUnit;
  if (inputs_of(segment.format) == Inputs::kWide) return segment.group;
  return std::gcd(int64_t{segment.group}, input_group);
}

inline bool uses(const Quantised& a, Inputs kind) {
  for (int64_t s = 0; s < a.segment_count; ++s)
    if (inputs_of(a.segments[s].format) == kind) return true;
  return false;
}

// Room for the rows of a step, in one allocation of this thread.
inline Rows rows_of(const Quantised& a) {
  const int64_t cells = a.rows * a.depth, sums = a.rows * (a.depth / 16);
  const int64_t bytes = 8 * cells + 4 * sums * (a.segment_count + 1) + 8 * a.rows;
  auto* at = static_cast<uint8_t*>(scratch(bytes + 256));
  Rows r{};
  r.depth = a.depth;
  r.cell = kWholeGroup;
  r.input_group = input_group(Format::kI8G);
  for (int64_t s = 0; s < a.segment_count; ++s)
    r.input_group = std::min(r.input_group, input_group(a.segments[s].format));
  if (uses(a, Inputs::kWide)) r.wide = at;
  if (uses(a, Inputs::kNarrow)) r.narrow = at + 2 * cells;
  if (uses(a, Inputs::kHalves)) r.halves = reinterpret_cast<uint16_t*>(at + 4 * cells);
  if (uses(a, Inputs::kGrouped)) r.grouped = at + 6 * cells;
  at += 8 * cells;
  for (int64_t s = 0; s < a.segment_count; ++s, at += 4 * sums) {
    r.sums[s] = reinterpret_cast<int32_t*>(at);
    r.groups[s] = sum_group(a.segments[s], a.depth, r.input_group);
    r.cell = std::gcd(r.cell, r.groups[s]);
  }
  r.group_scales = reinterpret_cast<float*>(at);
  r.scales = reinterpret_cast<float*>(at + 4 * sums);
  return r;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_STEPS_H_
