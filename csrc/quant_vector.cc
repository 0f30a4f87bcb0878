// The whole-number linear kernel; compiled once for each ISA, RANVIER_ISA its namespace.
//
// A tile of 16 outputs by up to kRows rows lives in registers, as integers within a group and as floats
// across groups. Codes are unpacked once for all rows of a block of rows.
#include <algorithm>
#include <array>
#include <utility>

#include "pool.h"
#include "quant_fp8.h"

namespace ranvier {
namespace {

constexpr int64_t kCodesAhead = 2048;  // bytes

// More than one sum an output where there are few rows: a product's latency is several products long.
constexpr int sums_of(int rows, bool is_wide) {
  const int products = is_wide ? 2 * rows : rows;
  return products >= 4 ? 1 : 4 / products;
}

// What a tile's walk needs of the rows of this block of rows.
struct Part {
  const Rows* rows;
  int64_t first;
  const int32_t* sums;  // of the first row's inputs, by group
  const float* scales;  // of the rows
  const uint8_t* next;  // fetched while this tile is multiplied, or null
};

RANVIER_INLINE void fetch(const uint8_t*& at, int64_t bytes) {
  if (at == nullptr) return;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
  at += bytes;
}

// A unit's bytes with its share of the header of a block of `span` inputs.
RANVIER_INLINE int64_t line_bytes(Format f, int64_t span) {
  return unit_bytes(f) + info_of(f).header * kUnit / span;
}

template <bool kWide, int R>
struct Block {
  static constexpr int kEach = sums_of(R, kWide);
  Sums<kWide> of[R][kEach];

  // Each row's sums begin with what its group starts from.
  RANVIER_INLINE void start(const int32_t* at, int64_t stride) {
    for (int r = 0; r < R; ++r) of[r][0].start(at[r * stride]);
  }

  I16 total(int r) const {
    I16 sum = of[r][0].total();
    for (int i = 1; i < kEach; ++i) sum += of[r][i].total();
    return sum;
  }
};

// Steps [2 from, 2 end) of a unit of codes times the rows' inputs, x being those of the unit's first step.
template <int kBits, bool kWide, int R>
RANVIER_INLINE void add_steps(const uint8_t* unit, const uint8_t* x, int from, int end,
                              Block<kWide, R>& block) {
  constexpr int64_t kStep = step_bytes(kWide);
  for (int q = from; q < end; ++q) {
    const Codes codes = codes_of<kBits>(unit, q);
    for (int t = 0; t < 2; ++t)
      for (int r = 0; r < R; ++r)
        block.of[r][t % Block<kWide, R>::kEach].add(codes.of[t], x + kStep * ((2 * q + t) * R + r));
  }
}

template <int R>
struct Totals {
  V16 of[R] = {};
};

// The end of group `index` of all: its integers become floats.
template <Format F, int R>
RANVIER_INLINE void add_group(const Part& p, const Block<true, R>& block, Scales s, int64_t index,
                              int64_t groups, Totals<R>& totals) {
  for (int r = 0; r < R; ++r) {
    if constexpr (kHasShift<F>)
      totals.of[r] += s.shift * to_floats(splat_int(p.sums[r * groups + index]));
    totals.of[r] += s.scale * to_floats(block.total(r));
  }
}

// An empty block, or one that starts with the zero's share of group `index`.
template <Format F, int R>
RANVIER_INLINE Block<true, R> begin(const Part& p, int64_t index, int64_t groups) {
  Block<true, R> block;
  if constexpr (!kHasShift<F>) block.start(p.sums + index, groups);
  return block;
}

// What a walk over a tile carries from block to block.
template <int R>
struct Walk {
  const uint8_t* x;
  int64_t index, groups;  // the next group of all of them
  Totals<R> totals;
};

constexpr int64_t kUnitSteps = kUnit / 4;

// A block of `span` inputs in groups of `group`.
template <Format F, int R>
RANVIER_INLINE void walk_block(Part& p, const uint8_t* header, const uint8_t* unit, int64_t span,
                               int64_t group, Walk<R>& w) {
  const Scales shared = block_scales<F>(header);
  const int64_t line = line_bytes(F, span);
  int64_t own = 0;
  for (int64_t left = span; left > 0; left -= group, ++own, ++w.index) {
    auto block = begin<F, R>(p, w.index, w.groups);
    for (int64_t i = std::min(group, left); i > 0; i -= kUnit, unit += unit_bytes(F)) {
      fetch(p.next, line);
      add_steps<info_of(F).bits>(unit, w.x, 0, 4, block);
      w.x += R * kUnitSteps * step_bytes(true);
    }
    add_group<F>(p, block, group_scales<F>(header, own, shared), w.index, w.groups, w.totals);
  }
}

// Blocks of six bits: two groups a unit.
template <int R>
RANVIER_INLINE void walk_k6(Part& p, const uint8_t* header, const uint8_t* unit, Walk<R>& w) {
  constexpr Format kF = Format::kK6;
  const Scales shared = block_scales<kF>(header);
  for (int64_t g = 0; g < kSuper / 16; g += 2, w.index += 2, unit += unit_bytes(kF)) {
    fetch(p.next, line_bytes(kF, kSuper));
    auto low = begin<kF, R>(p, w.index, w.groups), high = begin<kF, R>(p, w.index + 1, w.groups);
    add_steps<6>(unit, w.x, 0, 2, low);
    add_group<kF>(p, low, group_scales<kF>(header, g, shared), w.index, w.groups, w.totals);
    add_steps<6>(unit, w.x, 2, 4, high);
    add_group<kF>(p, high, group_scales<kF>(header, g + 1, shared), w.index + 1, w.groups, w.totals);
    w.x += R * kUnitSteps * step_bytes(true);
  }
}

// 8-bit activations: one exact sum over all inputs.
template <int R>
void multiply_dynamic(Part p, const uint8_t* tile, float* out) {
  const uint8_t* x = inputs_of<false>(*p.rows, p.first);
  const uint8_t* unit = tile + info_of(Format::kI8D).header;
  Block<false, R> block;
  block.start(p.sums, 1);
  for (int64_t i = 0; i < p.rows->depth; i += kUnit, unit += unit_bytes(Format::kI8D)) {
    fetch(p.next, unit_bytes(Format::kI8D));
    add_steps<8>(unit, x, 0, 4, block);
    x += R * kUnitSteps * step_bytes(false);
  }
  const V16 scale = load_as<V16>(tile);
  for (int r = 0; r < R; ++r)
    store16(out + kGroup * r, to_floats(block.total(r)) * scale * p.scales[r]);
}

// 8-bit activations with a scale for each group of inputs.
template <int R>
void multiply_grouped(Part p, const uint8_t* tile, float* out) {
  constexpr int64_t kUnitBytes = unit_bytes(Format::kI8G);
  const int64_t depth = p.rows->depth, groups = groups_of(depth, kInputGroup);
  const uint8_t* x = p.rows->grouped + p.first * (depth / 4 * step_bytes(false));
  const uint8_t* unit = tile + info_of(Format::kI8G).header;
  const float* const scales = p.rows->group_scales + p.first * groups;
  Totals<R> totals;
  for (int64_t g = 0; g < groups; ++g) {
    Block<false, R> block;
    block.start(p.sums + g, groups);
    const int64_t end = std::min((g + 1) * kInputGroup, depth);
    for (int64_t i = g * kInputGroup; i < end; i += kUnit, unit += kUnitBytes) {
      fetch(p.next, kUnitBytes);
      add_steps<8>(unit, x, 0, 4, block);
      x += R * kUnitSteps * step_bytes(false);
    }
    for (int r = 0; r < R; ++r)
      totals.of[r] += to_floats(block.total(r)) * scales[r * groups + g];
  }
  const V16 scale = load_as<V16>(tile);
  for (int r = 0; r < R; ++r) store16(out + kGroup * r, totals.of[r] * scale);
}

template <Format F, int R>
void multiply(Part p, const uint8_t* tile, const Segment& segment, float* out) {
  if constexpr (F == Format::kI8D) {
    return multiply_dynamic<R>(p, tile, out);
  } else if constexpr (F == Format::kI8G) {
    return multiply_grouped<R>(p, tile, out);
  } else if constexpr (is_fp8(F)) {
    const int64_t depth = p.rows->depth;
    multiply_fp8<F, R>(p.rows->halves + p.first * depth, depth, tile, segment, p.next, out);
  } else {
    constexpr FormatInfo kOf = info_of(F);
    const int64_t depth = p.rows->depth, span = segment.block(depth);
    const int64_t group = kOf.is_whole ? kWholeGroup : kOf.is_super ? kUnit : segment.group;
    const int64_t bytes = span * kLanes * kOf.bits / 8;
    Walk<R> walk{inputs_of<true>(*p.rows, p.first), 0, groups_of(depth, kOf.bits == 6 ? 16 : group), {}};
    const uint8_t *header = tile, *codes = tile + segment.codes(depth);
    for (int64_t start = 0; start < depth; start += span, header += kOf.header, codes += bytes) {
      if constexpr (F == Format::kK6) {
        walk_k6<R>(p, header, codes, walk);
      } else {
        walk_block<F, R>(p, header, codes, span, group, walk);
      }
    }
    const V16 scale = kOf.is_whole ? load_as<V16>(tile) : splat(1.0f);
    for (int r = 0; r < R; ++r) store16(out + kGroup * r, walk.totals.of[r] * scale * p.scales[r]);
  }
}

using Multiply = void (*)(Part, const uint8_t*, const Segment&, float*);

template <int R, int... F>
constexpr std::array<Multiply, kFormats> all_formats(std::integer_sequence<int, F...>) {
  return {multiply<static_cast<Format>(F), R>...};
}

template <int R>
constexpr std::array<Multiply, kFormats> kKernels =
    all_formats<R>(std::make_integer_sequence<int, kFormats>{});

inline Multiply kernel_of(Format format, int64_t rows) {
  const auto f = static_cast<size_t>(format);
  switch (rows) {
#if defined(__AVX512F__)
    case 8: return kKernels<8>[f];
#endif
    case 4: return kKernels<4>[f];
    case 2: return kKernels<2>[f];
    default: return kKernels<1>[f];
  }
}

struct Tile {
  const Segment* segment;
  const uint8_t* at;
  const uint8_t* next;  // two tiles on in the order of work
};

// Tile t of a layer's weight. Gate and up are segments of their own and take turns.
inline Tile tile_of(const Quantised& a, int64_t t) {
  const bool is_gated = a.gate != Gate::kNone;
  int64_t s = 0, index = t;
  if (is_gated) {
    s = t % 2;
    index = t / 2;
  } else {
    while (s < a.segment_count && index >= a.segments[s].tiles) index -= a.segments[s++].tiles;
  }
  if (s >= a.segment_count || index >= a.segments[s].tiles) return {};
  const Segment& segment = a.segments[s];
  const int64_t bytes = a.strides[s];
  const uint8_t* const at = a.blob + int64_t{64} * segment.offset + index * bytes;
  return {&segment, at, at + (is_gated ? 1 : 2) * bytes};
}

void run_tile(const Quantised& a, const Rows& rows, const Tile& tile, int64_t row, int64_t count,
              bool is_fetching, float* sums) {
  const Format format = tile.segment->format;
  const int64_t s = tile.segment - a.segments;
  const float* const scales = rows.scales + (format == Format::kI8D ? a.rows : 0) + row;
  const int32_t* const inputs = rows.sums[s] + row * groups_of(a.depth, rows.groups[s]);
  // One stream is followed best a little ahead; headers beside codes are two, whose tiles are fetched whole.
  const bool is_stream = a.rows < 4 && info_of(format).is_whole;
  const uint8_t* const next = is_stream ? tile.at + kCodesAhead : tile.next;
  const Part part{&rows, row, inputs, scales, is_fetching ? next : nullptr};
  kernel_of(format, count)(part, tile.at, *tile.segment, sums);
}

void run_group(const Quantised& a, const Rows& rows, int64_t group) {
  const Tile tiles[2] = {tile_of(a, 2 * group), tile_of(a, 2 * group + 1)};
  alignas(64) float sums[kRows * kGroup];
  if (tiles[1].segment == nullptr) std::memset(sums, 0, sizeof sums);
  int64_t block = 0;
  for (int64_t row = 0, count; row < a.rows; row += count, ++block) {
    count = block_of(row, a.rows).count;
    const bool is_fetching = block == 1 || (block == 0 && count == a.rows);
    fetch_outputs(a, row, count, group);
    for (int64_t half = 0; half < 2; ++half)
      if (tiles[half].segment != nullptr)
        run_tile(a, rows, tiles[half], row, count, is_fetching, sums + kLanes * half);
    for (int64_t r = 0; r < count; ++r) finish(a, row + r, group, sums + kGroup * r);
  }
}

// One output's code for an input of a unit.
int32_t code_at(const uint8_t* unit, Format format, int64_t lane, int64_t input) {
  const int64_t step = input / 4, column = 4 * lane + input % 4;
  const int32_t bits = info_of(format).bits;
  if (is_fp8(format)) return unit[64 * step + 4 * lane + input % 2 * 2 + input / 2 % 2];
  if (bits == 8) return unit[64 * step + column];
  const int32_t low = unit[step / 2 * 64 + column] >> (step % 2 * 4) & 15;
  if (bits == 4) return low;
  if (bits == 5) return low | (unit[256 + column] >> step & 1) << 4;
  return low | (unit[256 + step / 4 * 64 + column] >> (step % 4 * 2) & 3) << 4;
}

// A group's scale and shift of one output.
template <Format F>
inline void scales_at(const uint8_t* header, int64_t group, int64_t lane, float out[2]) {
  if constexpr (is_fp8(F)) {
    out[0] = fp8_scale<F>(header)[lane];
    out[1] = 0.0f;
    return;
  }
  const Scales s = group_scales<F>(header, group, block_scales<F>(header));
  out[0] = s.scale[lane];
  out[1] = kHasShift<F> ? s.shift[lane] : -s.scale[lane] * (1 << zero_bits(F));
}

using ScalesAt = void (*)(const uint8_t*, int64_t, int64_t, float*);

template <int... F>
constexpr std::array<ScalesAt, kFormats> all_scales(std::integer_sequence<int, F...>) {
  return {scales_at<static_cast<Format>(F)>...};
}

constexpr std::array<ScalesAt, kFormats> kScalesAt =
    all_scales(std::make_integer_sequence<int, kFormats>{});

void row_out(const QuantisedRows& a, int64_t row) {
  const Segment& segment = a.segment;
  const FormatInfo& info = info_of(segment.format);
  const int64_t id = a.ids[row], lane = id % kLanes, span = segment.block(a.depth);
  const int64_t unit = kUnit * kLanes * info.bits / 8;
  const int64_t group = segment.format == Format::kK6 ? 16 : info.is_super ? kUnit : segment.group;
  const uint8_t* const tile =
      a.blob + int64_t{64} * segment.offset + id / kLanes * segment.tile_bytes(a.depth);
  const uint8_t* const codes = tile + segment.codes(a.depth);
  float* const out = a.out + row * a.size;
  float scales[2] = {1.0f, 0.0f};
  for (int64_t i = 0; i < a.size; ++i) {
    const uint8_t* const header = tile + i / span * info.header;
    if (info.is_whole) {
      scales[0] = load_as<float>(header + 4 * lane);
      scales[1] = is_fp8(segment.format) ? 0.0f : -128.0f * scales[0];
    } else if (i % group == 0) {
      kScalesAt[static_cast<size_t>(segment.format)](header, i % span / group, lane, scales);
    }
    const int32_t code = code_at(codes + i / kUnit * unit, segment.format, lane, i % kUnit);
    const float value = is_fp8(segment.format) ? fp8_value(code) : static_cast<float>(code);
    out[i] = a.scale * (scales[0] * value + scales[1]);
  }
}

}  // namespace

namespace RANVIER_ISA {

void quantised(const Quantised& a) {
  const Rows rows = rows_of(a);
  auto prepare = [&](int64_t row) { quantise_row(a, rows, row); };
  if (a.rows >= 4) {
    parallel_for(a.rows, prepare);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) prepare(row);
  }
  if (a.lora != nullptr) {
    if (a.lora->is_bf16) {
      shrink_prepared<uint16_t>(a);
    } else {
      shrink_prepared<float>(a);
    }
  }
  parallel_for(group_count(a), [&](int64_t group) { run_group(a, rows, group); });
}

void rows(const QuantisedRows& a) {
  parallel_for(a.count, [&](int64_t row) { row_out(a, row); });
}

}  // namespace RANVIER_ISA
}  // namespace ranvier
