// Products with rows of 8 bits that have a scale for each group of inputs.
//
// A cell is the inputs that share both a weight's scale and a row's: its sum is exact. Cells are added in f32 in
// ascending order, first those of a group of inputs, then the groups.
#ifndef RANVIER_QUANT_GROUPED_H_
#define RANVIER_QUANT_GROUPED_H_

#include "quant_walk.h"

namespace ranvier {
namespace {

// Where a walk over a tile is.
struct Place {
  const uint8_t *header, *unit, *x;
  const int32_t* sums;  // of the next cell's inputs
  int64_t own, left;    // the next group of its block, inputs that the block still has
  Scales shared;
};

// The end of a cell: its integers become floats.
template <Format F, int R, bool kSplit>
RANVIER_INLINE void add_cell(const Block<false, R, kSplit>& block, const Place& at, int64_t own,
                             const int32_t* sums, int64_t cells, Totals<R>& part) {
  if constexpr (info_of(F).is_whole) {
    for (int r = 0; r < R; ++r) part.of[r] += to_floats(block.total(r));
  } else {
    const Scales s = group_scales<F>(at.header, own, at.shared);
    for (int r = 0; r < R; ++r) {
      if constexpr (kHasShift<F>) part.of[r] += s.shift * to_floats(splat_int(sums[r * cells]));
      part.of[r] += s.scale * to_floats(block.total(r));
    }
  }
}

// Steps [2 from, 2 end) of each unit of a cell of `units`.
template <Format F, int R>
RANVIER_INLINE void walk_cell(Part& p, Place& at, int from, int end, int64_t units, int64_t cells,
                              Totals<R>& part) {
  constexpr int kBits = info_of(F).bits;
  Block<false, R, kBits == 4 && R <= 2> block;
  if constexpr (!kHasShift<F>) block.start(at.sums, cells);
  for (int64_t u = 0; u < units; ++u)
    add_steps<kBits>(at.unit + u * unit_bytes(F), at.x + u * R * kUnitSteps * step_bytes(false), from,
                     end, block);
  add_cell<F>(block, at, at.own, at.sums, cells, part);
  ++at.sums;
}

template <Format F, int R>
void multiply_grouped(Part p, const uint8_t* tile, const Segment& segment, float* out) {
  constexpr FormatInfo kOf = info_of(F);
  const int64_t depth = p.rows->depth, span = segment.block(depth), group = p.rows->input_group;
  const int64_t cell = sum_group(segment, depth, group);
  const int64_t groups = groups_of(depth, group), cells = groups_of(depth, cell);
  const int64_t units = std::max(cell / kUnit, int64_t{1});
  const int64_t line = kOf.is_whole ? unit_bytes(F) : line_bytes(F, span);
  const float* scales = p.rows->group_scales + p.first * groups;
  const uint8_t* x = p.rows->grouped + p.first * (depth / 4 * step_bytes(false));
  Place at{tile, tile + segment.codes(depth), x, p.sums, 0, span, block_scales<F>(tile)};
  Totals<R> totals;
  for (int64_t i = 0; i < depth; ++scales) {
    Totals<R> part;
    for (const int64_t end = std::min(i + group, depth); i < end; i += units * kUnit) {
      fetch(p.next, units * line);
      if constexpr (F == Format::kK6) {  // two cells a unit
        walk_cell<F, R>(p, at, 0, 2, 1, cells, part);
        ++at.own;
        walk_cell<F, R>(p, at, 2, 4, 1, cells, part);
      } else {
        walk_cell<F, R>(p, at, 0, 4, std::min(units, (end - i) / kUnit), cells, part);
      }
      at.unit += units * unit_bytes(F);
      at.x += units * R * kUnitSteps * step_bytes(false);
      if constexpr (kOf.is_whole) continue;
      if constexpr (kOf.is_super) ++at.own;
      at.left -= units * kUnit;
      if (at.left == 0) {
        at.header += kOf.header;
        at.own = 0;
        at.left = span;
        at.shared = block_scales<F>(at.header);
      }
    }
    for (int r = 0; r < R; ++r) totals.of[r] += part.of[r] * scales[r * groups];
  }
  const V16 scale = kOf.is_whole ? load_as<V16>(tile) : splat(1.0f);
  for (int r = 0; r < R; ++r) store16(out + kGroup * r, totals.of[r] * scale);
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_GROUPED_H_
