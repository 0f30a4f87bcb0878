// Products of codes of 8 bits: with rows of 16 bits, or of 8 with one scale a row.
#ifndef RANVIER_QUANT_WIDE_H_
#define RANVIER_QUANT_WIDE_H_

#include "quant_walk.h"

namespace ranvier {
namespace {

template <Format F, int R>
void multiply_wide(Part p, const uint8_t* tile, const Segment& segment, float* out) {
  constexpr FormatInfo kOf = info_of(F);
  const int64_t depth = p.rows->depth, span = segment.block(depth), line = line_bytes(F, span);
  const int64_t group = kOf.is_whole ? kWholeGroup : segment.group, groups = groups_of(depth, group);
  const uint8_t *header = tile, *unit = tile + segment.codes(depth);
  const uint8_t* x = inputs_of<true>(*p.rows, p.first);
  const int32_t* sums = p.sums;
  Totals<R> totals;
  for (int64_t left = depth; left > 0; left -= group, header += kOf.header, ++sums) {
    Block<true, R> block;
    block.start(sums, groups);
    for (int64_t i = std::min(group, left); i > 0; i -= kUnit, unit += unit_bytes(F)) {
      fetch(p.next, line);
      add_steps<kOf.bits>(unit, x, 0, 4, block);
      x += R * kUnitSteps * step_bytes(true);
    }
    const V16 scale = block_scales<F>(header).scale;
    for (int r = 0; r < R; ++r) totals.of[r] += scale * to_floats(block.total(r));
  }
  const V16 scale = kOf.is_whole ? load_as<V16>(tile) : splat(1.0f);
  for (int r = 0; r < R; ++r) store16(out + kGroup * r, totals.of[r] * scale * p.scales[r]);
}

// Rows of 8 bits: one exact sum over all inputs.
template <int R>
void multiply_dynamic(Part p, const uint8_t* tile, float* out) {
  constexpr int64_t kUnitBytes = unit_bytes(Format::kI8D);
  const uint8_t* x = inputs_of<false>(*p.rows, p.first);
  const uint8_t* unit = tile + info_of(Format::kI8D).header;
  Block<false, R> block;
  block.start(p.sums, 1);
  for (int64_t i = 0; i < p.rows->depth; i += kUnit, unit += kUnitBytes) {
    fetch(p.next, kUnitBytes);
    add_steps<8>(unit, x, 0, 4, block);
    x += R * kUnitSteps * step_bytes(false);
  }
  const V16 scale = load_as<V16>(tile);
  for (int r = 0; r < R; ++r)
    store16(out + kGroup * r, to_floats(block.total(r)) * scale * p.scales[r]);
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_WIDE_H_
