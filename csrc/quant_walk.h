// What walks over tiles share: a tile of 16 outputs by up to kRows rows lives in registers, as integers within a
// group and as floats across groups. Codes are unpacked once for all rows of a block of rows.
#ifndef RANVIER_QUANT_WALK_H_
#define RANVIER_QUANT_WALK_H_

#include "quant_formats.h"

namespace ranvier {
namespace {

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

// The sums of R rows. kSplit: odd steps, whose codes are 16 times as large, have a sum of their own.
template <bool kWide, int R, bool kSplit = false>
struct Block {
  static constexpr int kEach = kSplit ? 2 : sums_of(R, kWide);
  Sums<kWide> of[R][kEach];

  // Each row's sums begin with what its group starts from.
  RANVIER_INLINE void start(const int32_t* at, int64_t stride) {
    for (int r = 0; r < R; ++r) of[r][0].start(at[r * stride]);
  }

  RANVIER_INLINE I16 total(int r) const {
    I16 sum = of[r][0].total();
    if constexpr (kSplit) return sum + (of[r][1].total() >> 4);
    for (int i = 1; i < kEach; ++i) sum += of[r][i].total();
    return sum;
  }
};

// Steps [2 from, 2 end) of a unit of codes times the rows' inputs, x being those of the unit's first step.
template <int kBits, bool kWide, int R, bool kSplit>
RANVIER_INLINE void add_steps(const uint8_t* unit, const uint8_t* x, int from, int end,
                              Block<kWide, R, kSplit>& block) {
  constexpr int64_t kStep = step_bytes(kWide);
  for (int q = from; q < end; ++q) {
    const Codes codes = codes_of<kBits, kSplit>(unit, q);
    for (int t = 0; t < 2; ++t)
      for (int r = 0; r < R; ++r)
        block.of[r][t % block.kEach].add(codes.of[t], x + kStep * ((2 * q + t) * R + r));
  }
}

template <int R>
struct Totals {
  V16 of[R] = {};
};

constexpr int64_t kUnitSteps = kUnit / 4;

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_WALK_H_
