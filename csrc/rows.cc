// The FFI handler of embedding rows out of a packed dense linear: [V/16, I/2, 16, 2] in bf16 or
// [V/16, I, 16] in f32. XLA would gather them as well, but from a copy of the whole matrix in f32
// (or as integers) that it makes in front of a loop which looks rows up, at every step.
#include <cstring>

#include "ffi.h"

namespace ranvier {
namespace {

constexpr int64_t kTile = 16;

struct Rows {
  int64_t count, size, depth;  // rows, their numbers, and those with padding
  const int32_t* ids;
  float* out;  // [count, size]
  float scale;
};

float of_half(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

void take(const Rows& a, const uint16_t* weight) {
  for (int64_t i = 0; i < a.count; ++i) {
    const uint16_t* row = weight + a.ids[i] / kTile * kTile * a.depth + a.ids[i] % kTile * 2;
    for (int64_t j = 0; j < a.size; ++j)
      a.out[i * a.size + j] = of_half(row[j / 2 * 2 * kTile + j % 2]) * a.scale;
  }
}

void take(const Rows& a, const float* weight) {
  for (int64_t i = 0; i < a.count; ++i) {
    const float* row = weight + a.ids[i] / kTile * kTile * a.depth + a.ids[i] % kTile;
    for (int64_t j = 0; j < a.size; ++j) a.out[i * a.size + j] = row[j * kTile] * a.scale;
  }
}

ffi::Error run(Ints ids, Any weight, Out out, float scale) {
  const auto at = weight.dimensions();
  const bool is_half = weight.element_type() == ffi::DataType::BF16;
  if (at.size() < 4 || at[0] != 1 || !(is_half || weight.element_type() == ffi::DataType::F32))
    return ffi::Error::InvalidArgument("embedding: the weight is no packed matrix of bf16 or f32");
  Rows a{};
  a.count = ids.dimensions()[0];
  a.size = out->dimensions()[1];
  a.depth = is_half ? 2 * at[2] : at[2];
  a.ids = ids.typed_data();
  a.out = static_cast<float*>(out->untyped_data());
  a.scale = scale;
  if (a.size > a.depth) return ffi::Error::InvalidArgument("embedding: rows are shorter than asked");
  for (int64_t i = 0; i < a.count; ++i)
    if (a.ids[i] < 0 || a.ids[i] >= kTile * at[1])
      return ffi::Error::InvalidArgument("embedding: an id is out of range");
  if (is_half)
    take(a, static_cast<const uint16_t*>(weight.untyped_data()));
  else
    take(a, static_cast<const float*>(weight.untyped_data()));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_rows, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Any>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale"));
#pragma GCC visibility pop
