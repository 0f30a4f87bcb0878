// The FFI handler of sampling: the step's metadata to one row after another, rows spread over threads.
#include "sample.h"

#include <cstring>

#include "ffi.h"
#include "isa.h"
#include "pool.h"

namespace ranvier {
namespace {

// Where each field of a row begins in meta, in the order that the binding hands them over.
enum Field { kTopK, kLogprobs, kTarget, kEdits, kFlags, kTemperature, kTopP, kMinP, kUniform,
             kRepetition, kFrequency, kPresence, kFields };

using Kernel = void (*)(const SampleRow&);

Kernel kernel() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) return avx512::sample;
  if (isa() == Isa::kAvx2) return avx2::sample;
#endif
  return generic::sample;
}

float as_float(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void fill(SampleRow& a, const int32_t* meta, const int64_t* at, int64_t row) {
  const auto word = [&](Field field) { return meta[at[field] + row]; };
  a.top_k = word(kTopK);
  a.logprobs = word(kLogprobs);
  a.target = word(kTarget);
  a.edit_count = word(kEdits);
  a.temperature = as_float(word(kTemperature));
  a.top_p = as_float(word(kTopP));
  a.min_p = as_float(word(kMinP));
  a.uniform = as_float(word(kUniform));
  a.repetition = as_float(word(kRepetition));
  a.frequency = as_float(word(kFrequency));
  a.presence = as_float(word(kPresence));
}

bool is_valid(const SampleRow& a, int64_t edits_max) {
  if (a.edit_count < 0 || a.edit_count > edits_max || a.target >= a.vocab) return false;
  for (int64_t i = 0; i < a.edit_count; ++i)
    if (a.edits[3 * i] < 0 || a.edits[3 * i] >= a.vocab) return false;
  return true;
}

ffi::Error run(Floats logits, Ints meta, Ints edits, Ints allowed, Out out,
               ffi::Span<const int64_t> offsets, int64_t top_count) {
  const int32_t* const m = meta.typed_data();
  const int64_t rows = m[2], columns = out->dimensions()[1], vocab = logits.dimensions()[1];
  const int64_t edits_max = edits.dimensions()[1], words = allowed.dimensions()[1];
  if (offsets.size() != kFields || rows < 0 || rows > logits.dimensions()[0] ||
      columns != 3 + 2 * top_count || words * 32 < vocab)
    return ffi::Error::InvalidArgument("sample: sizes");
  auto* const result = static_cast<int32_t*>(out->untyped_data());
  std::memset(result, 0, out->size_bytes());
  const auto row_at = [&](int64_t row) {
    SampleRow a{};
    a.vocab = vocab;
    a.logits = logits.typed_data() + row * vocab;
    a.edits = edits.typed_data() + row * edits_max * 3;
    a.top_count = top_count;
    a.out = result + row * columns;
    fill(a, m, offsets.begin(), row);
    if (m[offsets[kFlags] + row] & 1) a.allowed = allowed.typed_data() + row * words;
    return a;
  };
  for (int64_t row = 0; row < rows; ++row)
    if (!is_valid(row_at(row), edits_max)) return ffi::Error::InvalidArgument("sample: metadata");
  const Kernel f = kernel();
  parallel_for(rows, [&](int64_t row) { f(row_at(row)); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_sample, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("offsets")
                                  .Attr<int64_t>("top_count"));
#pragma GCC visibility pop
