// The steps around the product, shared by all ISAs' files: prepare the rows, finish a block of outputs.
#ifndef RANVIER_LINEAR_STEPS_H_
#define RANVIER_LINEAR_STEPS_H_

#include <cstdlib>

#include "linear.h"
#include "lora_steps.h"
#include "vec.h"

namespace ranvier {
namespace {

// A buffer that only grows, one per thread and use; 64-byte aligned.
template <int kUse = 0>
inline void* scratch(int64_t bytes) {
  static thread_local void* data = nullptr;
  static thread_local int64_t size = 0;
  if (bytes > size) {
    std::free(data);
    size = (bytes + 4095) / 4096 * 4096 * 2;
    data = std::aligned_alloc(4096, size);
  }
  return data;
}

inline V16 read_x(const Linear& a, int64_t row, int64_t i) {
  const int64_t n = a.inputs - i;
  if (a.is_x_bf16) return load_bf16(static_cast<const uint16_t*>(a.x) + row * a.inputs + i, n);
  return load_some(static_cast<const float*>(a.x) + row * a.inputs + i, n);
}

// 1 / rms of a row, or 1 without a norm.
inline float row_scale(const Linear& a, int64_t row) {
  if (a.norm == nullptr) return 1.0f;
  V16 sum{};
  for (int64_t i = 0; i < a.inputs; i += 16) {
    const V16 v = read_x(a, row, i);
    sum += v * v;
  }
  return 1.0f / std::sqrt(sum16(sum) / static_cast<float>(a.inputs) + a.eps);
}

// One row, normed, in the weight's dtype, zero up to depth.
template <typename T>
inline void prepare_row(const Linear& a, int64_t row, T* out) {
  const float scale = row_scale(a, row);
  for (int64_t i = 0; i < a.depth; i += 16) {
    V16 v = i < a.inputs ? read_x(a, row, i) : V16{};
    if (a.norm != nullptr && i < a.inputs) v = v * scale * load_some(a.norm + i, a.inputs - i);
    if constexpr (sizeof(T) == 2) {
      store_bf16(out + i, v, 16);
    } else {
      store16(out + i, v);
    }
  }
}

// A x of the adapters, for a kernel that has no rows in their dtype.
template <typename T>
void shrink_prepared(const Linear& a) {
  T* const x = static_cast<T*>(scratch<1>(a.rows * a.depth * static_cast<int64_t>(sizeof(T))));
  parallel_for(a.rows, [&](int64_t row) {
    if (a.lora->group_of[row] >= 0) prepare_row(a, row, x + row * a.depth);
  });
  shrink(*a.lora, x, a.depth);
}

inline V16 activate(V16 x, Gate gate) {
  if (gate == Gate::kSilu) return x / (1.0f + exp16(-x));
  const V16 inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x * (1.0f - 1.0f / (1.0f + exp16(2.0f * inner)));  // x * sigmoid(2 inner)
}

inline void put(const Linear& a, int64_t at, V16 v, int64_t n) {
  if (a.is_out_bf16) {
    store_bf16(static_cast<uint16_t*>(a.out) + at, v, n);
  } else {
    store_some(static_cast<float*>(a.out) + at, v, n);
  }
}

inline V16 with_bias(const Linear& a, V16 v, int64_t output) {
  if (a.bias == nullptr || output >= a.outputs) return v;
  return v + load_some(a.bias + output, a.outputs - output);
}

inline void add_adapters(const Linear& a, int64_t row, int64_t group, V16& low, V16& high) {
  const bool is_gated = a.gate != Gate::kNone;
  if (a.lora->is_bf16) {
    expand<uint16_t>(*a.lora, row, group, is_gated, low, high);
  } else {
    expand<float>(*a.lora, row, group, is_gated, low, high);
  }
}

// Outputs `group * 32 ..` of one row from its 32 sums.
inline void finish(const Linear& a, int64_t row, int64_t group, const float* sums) {
  V16 both[2] = {load16(sums), load16(sums + 16)};
  if (a.lora != nullptr) add_adapters(a, row, group, both[0], both[1]);
  if (a.gate != Gate::kNone) {
    const int64_t half = a.outputs / 2, at = group * 16;
    if (at < half) put(a, row * half + at, activate(both[0], a.gate) * both[1], half - at);
    return;
  }
  for (int64_t part = 0; part < 2; ++part) {
    const int64_t output = group * kGroup + 16 * part, n = a.outputs - output;
    if (n <= 0) return;
    V16 v = with_bias(a, both[part], output);
    const int64_t at = row * a.outputs + output;
    if (a.residual != nullptr) v = v + load_some(a.residual + at, n);
    put(a, at, v, n);
  }
}

// What `finish` will touch of some rows lies strided over memory: fetched while their sums are made.
inline void fetch_outputs(const Linear& a, int64_t row, int64_t rows, int64_t group) {
  const bool is_gated = a.gate != Gate::kNone;
  const int64_t width = is_gated ? a.outputs / 2 : a.outputs, at = group * (is_gated ? 16 : kGroup);
  const int64_t item = a.is_out_bf16 ? 2 : 4, bytes = (is_gated ? 16 : kGroup) * item;
  for (int64_t r = row; r < row + rows; ++r) {
    const char* const out = static_cast<const char*>(a.out) + (r * width + at) * item;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(out + i, 1, 3);
    if (a.residual == nullptr) continue;
    const auto* const residual = reinterpret_cast<const char*>(a.residual + r * width + at);
    for (int64_t i = 0; i < 4 * kGroup; i += 64) __builtin_prefetch(residual + i, 0, 3);
  }
}

inline int64_t group_count(const Linear& a) { return (a.outputs + kGroup - 1) / kGroup; }

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_LINEAR_STEPS_H_
