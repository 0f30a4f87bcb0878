// The quantised linear kernel; compiled once for each ISA, RANVIER_ISA its namespace.
#include <algorithm>
#include <array>
#include <utility>

#include "pool.h"
#include "quant_fp8.h"
#include "quant_grouped.h"
#include "quant_wide.h"

namespace ranvier {
namespace {

constexpr int64_t kCodesAhead = 2048;  // bytes

template <Format F, int R>
void multiply(Part p, const uint8_t* tile, const Segment& segment, float* out) {
  constexpr Inputs kInputs = inputs_of(F);
  if constexpr (kInputs == Inputs::kNarrow) {
    multiply_dynamic<R>(p, tile, out);
  } else if constexpr (kInputs == Inputs::kGrouped) {
    multiply_grouped<F, R>(p, tile, segment, out);
  } else if constexpr (kInputs == Inputs::kHalves) {
    const int64_t depth = p.rows->depth;
    multiply_fp8<F, R>(p.rows->halves + p.first * depth, depth, tile, segment, p.next, out);
  } else {
    multiply_wide<F, R>(p, tile, segment, out);
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
