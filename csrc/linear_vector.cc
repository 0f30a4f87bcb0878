// The linear kernel on vector registers; compiled once for each ISA, RANVIER_ISA its namespace.
//
// Up to kRows rows by one group of 32 outputs live in registers. The first block of rows streams the group's
// weights from memory; the later ones find them in the cache and fetch the next group's meanwhile, so that
// memory and arithmetic overlap.
#include "linear_steps.h"
#include "pool.h"

namespace ranvier {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 sums in 32 registers
#else
constexpr int kRows = 3;  // 12 registers of sums in 16: a value takes two
#endif
constexpr int kRowsOfStream = 6;
constexpr int64_t kRowsAhead = 8192;  // bytes, beside several rows: with more work a line the core sees less far

// What to fetch while a block of rows is multiplied: `lines` lines of `at` an input step.
struct Ahead {
  const char* at;
  int64_t lines;
};

inline void fetch(Ahead& ahead) {
  for (int64_t i = 0; i < ahead.lines; ++i, ahead.at += kLine) __builtin_prefetch(ahead.at, 0, 2);
}

// Products of one input step of one tile.
template <int R>
inline void add_step(V16 (&acc)[R], const uint16_t* w, const uint16_t* x, int64_t depth) {
  for (int r = 0; r < R; ++r) add_product(acc[r], w, x + r * depth);
}

template <int R>
inline void add_step(V16 (&acc)[R], const float* w, const float* x, int64_t depth) {
  const V16 weights = load16(w);
  for (int r = 0; r < R; ++r) acc[r] += weights * splat(x[r * depth]);
}

template <int R>
inline void store_sums(const V16 (&acc)[R], float* sums) {
  for (int r = 0; r < R; ++r) store16(sums + kGroup * r, acc[r]);
}

// Few rows: one tile after the other, so that a thread reads one stream, which the hardware follows best.
template <typename T, int R>
inline void multiply_tiles(const T* x, int64_t depth, const T* w, float* sums) {
  constexpr int64_t kInputs = 4 / sizeof(T), kAhead = R == 1 ? kStreamAhead : kRowsAhead;
  for (int64_t tile = 0; tile < 2; ++tile) {
    V16 acc[R] = {};
    for (int64_t i = 0; i < depth; i += kInputs, w += 16 * kInputs) {
      __builtin_prefetch(reinterpret_cast<const char*>(w) + kAhead, 0, 2);
      add_step<R>(acc, w, x + i, depth);
    }
    store_sums<R>(acc, sums + 16 * tile);
  }
}

// More rows: both tiles at once, so that an input is loaded once for 32 outputs.
template <typename T, int R>
inline void multiply_pair(const T* x, int64_t depth, const T* w, Ahead ahead, float* sums) {
  constexpr int64_t kInputs = 4 / sizeof(T);
  V16 low[R] = {}, high[R] = {};
  const T* v = w + 16 * depth;
  for (int64_t i = 0; i < depth; i += kInputs, w += 16 * kInputs, v += 16 * kInputs) {
    fetch(ahead);
    add_step<R>(low, w, x + i, depth);
    add_step<R>(high, v, x + i, depth);
  }
  store_sums<R>(low, sums);
  store_sums<R>(high, sums + 16);
}

template <typename T, int R>
void multiply(const T* x, int64_t depth, const T* w, Ahead ahead, float* sums) {
  if constexpr (R <= kRowsOfStream) {
    multiply_tiles<T, R>(x, depth, w, sums);
  } else {
    multiply_pair<T, R>(x, depth, w, ahead, sums);
  }
}

template <typename T, int R = kRows>
void multiply_rows(int64_t rows, const T* x, int64_t depth, const T* w, Ahead ahead, float* sums) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<T, R - 1>(rows, x, depth, w, ahead, sums);
  }
  multiply<T, R>(x, depth, w, ahead, sums);
}

// A group has two lines an input step. One block of rows alone fetches both; of several the first has its
// lines already, and the next two fetch one each.
inline Ahead ahead_of(int64_t block, int64_t blocks, int64_t steps, const char* next) {
  if (blocks == 1) return {next, 2};
  if (blocks == 2) return {next, block == 1 ? 2 : 0};
  return {next + (block - 1) * steps * kLine, block == 1 || block == 2 ? 1 : 0};
}

template <typename T>
void linear_of(const Linear& a) {
  T* const x = static_cast<T*>(scratch(a.rows * a.depth * static_cast<int64_t>(sizeof(T))));
  auto prepare = [&](int64_t row) { prepare_row(a, row, x + row * a.depth); };
  if (a.rows >= 16) {
    parallel_for(a.rows, prepare);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) prepare(row);
  }
  if (a.lora != nullptr) shrink(*a.lora, x, a.depth);
  const T* const weight = static_cast<const T*>(a.weight);
  const int64_t blocks = (a.rows + kRows - 1) / kRows;
  const int64_t steps = a.depth * static_cast<int64_t>(sizeof(T)) / 4;
  parallel_for(group_count(a), [&](int64_t group) {
    const T* const w = weight + group * kGroup * a.depth;
    const char* const next = reinterpret_cast<const char*>(w + kGroup * a.depth);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = a.rows * block / blocks, count = a.rows * (block + 1) / blocks - row;
      float sums[kRows * kGroup];
      fetch_outputs(a, row, count, group);
      multiply_rows<T>(count, x + row * a.depth, a.depth, w, ahead_of(block, blocks, steps, next), sums);
      for (int64_t r = 0; r < count; ++r) finish(a, row + r, group, sums + kGroup * r);
    }
  });
}

}  // namespace

namespace RANVIER_ISA {

void linear(const Linear& a) {
  if (a.is_weight_bf16) {
    linear_of<uint16_t>(a);
  } else {
    linear_of<float>(a);
  }
}

}  // namespace RANVIER_ISA

}  // namespace ranvier
