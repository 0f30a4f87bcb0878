// The bf16 linear kernel on AMX tiles: the same instruction for one row and for thousands.
//
// Rows are padded to tiles of 16; a tile row that holds no row costs time only where time is not the
// bandwidth's, and is never stored.
#include <immintrin.h>

#include <algorithm>

#include "linear_steps.h"
#include "pool.h"
#include "tiles.h"

namespace ranvier {
namespace {

constexpr int64_t kTile = 16;
constexpr int64_t kStep = 32;  // inputs of one tile product


inline void fetch(const uint16_t* w) {
  const char* p = reinterpret_cast<const char*>(w);
  for (int line = 0; line < 16; ++line) _mm_prefetch(p + 64 * line, _MM_HINT_T1);
}

// 32 sums of 16 rows.
void multiply_16(const uint16_t* x, int64_t stride, int64_t depth, const uint16_t* w,
                 const uint16_t* next, float* sums) {
  const uint16_t* high = w + kTile * depth;
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < depth; i += kStep) {
    fetch(next + kTile * i);
    fetch(next + kTile * (depth + i));
    _tile_loadd(4, x + i, 2 * stride);
    _tile_loadd(6, w + kTile * i, 64);
    _tile_loadd(7, high + kTile * i, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, sums, 4 * kGroup);
  _tile_stored(1, sums + kTile, 4 * kGroup);
}

// 32 sums of 32 rows.
void multiply_32(const uint16_t* x, int64_t stride, int64_t depth, const uint16_t* w,
                 const uint16_t* next, float* sums) {
  const uint16_t* high = w + kTile * depth;
  const uint16_t* below = x + kTile * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < depth; i += kStep) {
    if (next != nullptr) {
      fetch(next + kTile * i);
      fetch(next + kTile * (depth + i));
    }
    _tile_loadd(4, x + i, 2 * stride);
    _tile_loadd(6, w + kTile * i, 64);
    _tile_loadd(7, high + kTile * i, 64);
    _tile_loadd(5, below + i, 2 * stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 4 * kGroup);
  _tile_stored(1, sums + kTile, 4 * kGroup);
  _tile_stored(2, sums + kTile * kGroup, 4 * kGroup);
  _tile_stored(3, sums + kTile * kGroup + kTile, 4 * kGroup);
}

// A unit of work: rows [first, end) of one group of outputs.
void run_group(const Linear& a, const uint16_t* x, int64_t stride, int64_t group, int64_t first,
               int64_t end) {
  const Tiles tiles;
  const uint16_t* w = static_cast<const uint16_t*>(a.weight) + group * kGroup * a.depth;
  const uint16_t* next = w + kGroup * a.depth;
  alignas(64) float sums[2 * kTile * kGroup];
  for (int64_t row = first; row < end; row += 2 * kTile) {
    const int64_t left = end - row;
    if (left <= kTile) {
      multiply_16(x + row * stride, stride, a.depth, w, next, sums);
    } else {
      multiply_32(x + row * stride, stride, a.depth, w, row == first ? next : nullptr, sums);
    }
    const int64_t count = left < 2 * kTile ? left : 2 * kTile;
    for (int64_t r = 0; r < count; ++r) finish(a, row + r, group, sums + kGroup * r);
  }
}

// Many rows: each thread has rows of its own, so that activations stay in its cache and only weights are
// read by all. Few rows: each thread has outputs of its own, so that weights are read once.
constexpr int64_t kRowsPerThread = 256;

}  // namespace

namespace amx {

void linear(const Linear& a) {
  if (!a.is_weight_bf16) return avx512::linear(a);
  const int64_t padded = (a.rows + 2 * kTile - 1) / (2 * kTile) * (2 * kTile);
  const int64_t stride = a.depth + 32;  // off the powers of two, so that rows don't share cache sets
  auto* const x = static_cast<uint16_t*>(scratch(2 * padded * stride));
  auto prepare = [&](int64_t row) { prepare_row(a, row, x + row * stride); };
  if (a.rows >= 16) {
    parallel_for(a.rows, prepare);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) prepare(row);
  }
  if (a.lora != nullptr) shrink(*a.lora, x, stride);
  const int64_t groups = group_count(a);
  const int64_t parts = a.rows >= kRowsPerThread * thread_count() ? thread_count() : 1;
  const int64_t step = (padded / (2 * kTile) + parts - 1) / parts * 2 * kTile;
  parallel_for(parts * groups, [&](int64_t unit) {
    const int64_t first = unit / groups * step;
    run_group(a, x, stride, unit % groups, first, std::min(first + step, a.rows));
  });
}

}  // namespace amx
}  // namespace ranvier
