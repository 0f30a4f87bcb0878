// The FFI handler of attention: the graph's operands, checked, to the machine's kernel.
#include "attention.h"

#include "ffi.h"
#include "isa.h"

namespace ranvier {
namespace {

using Kernel = void (*)(const Attention&);

Kernel kernel() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAmx: return amx::attention;
    case Isa::kBf16: return bf16::attention;
    case Isa::kAvx512: return avx512::attention;
    case Isa::kAvx2: return avx2::attention;
    default: return generic::attention;
  }
#else
  return generic::attention;
#endif
}

// Every position, block and sequence that the kernel will follow is in range.
bool is_valid(const Attention& a, int64_t blocks) {
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (a.token_seq[t] < 0 || a.token_seq[t] >= a.sequences || a.positions[t] < 0) return false;
    if (a.positions[t] >= a.blocks_max * a.block_tokens) return false;
  }
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t first = a.query_starts[s], end = a.query_starts[s + 1];
    if (first < 0 || end <= first || end > a.tokens) return false;
    const int64_t last = a.positions[end - 1], used = last / a.block_tokens + 1;
    for (int64_t t = first; t < end; ++t)
      if (a.sees[t] < a.positions[t] || a.sees[t] > last) return false;
    for (int64_t b = 0; b < used; ++b) {
      const int64_t block = a.tables[s * a.blocks_max + b];
      if (block < 0 || block >= blocks) return false;
    }
  }
  return true;
}

// What the cache holds, from its dtype; false: nothing that this kernel reads.
bool read_codes(Any k, Any v, ffi::DataType out, Attention* a) {
  const ffi::DataType kind = k.element_type();
  if (v.element_type() != kind) return false;
  a->is_bf16 = out == ffi::DataType::BF16;
  if (!a->is_bf16 && out != ffi::DataType::F32) return false;
  a->codes = kind == ffi::DataType::F8E4M3FN ? Codes::kFp8
             : kind == ffi::DataType::S8     ? Codes::kInt8
                                             : Codes::kNone;
  const int64_t item = a->codes != Codes::kNone ? 1 : a->is_bf16 ? 2 : 4;
  const int64_t scale = a->codes == Codes::kInt8 ? 4 : 0;
  a->head_bytes = a->block_tokens * (a->size * item + scale);
  const auto d = k.dimensions();
  const auto whole = static_cast<size_t>(d[0] * d[1] * d[2] * a->head_bytes);
  if (k.size_bytes() != whole || v.size_bytes() != whole) return false;
  return a->codes != Codes::kNone || kind == out;
}

// `numbers`: heads, blocks a sequence, tokens a block, and where token_seq, positions, query_starts,
// block_tables and sees_to (or positions again) begin in meta.
ffi::Error run(Floats qkv, Any k, Any v, Ints layer, Ints meta, Floats cos_sin, Ints windows,
               Ints ropes, Floats q_norm, Floats k_norm, Out out, Out k_out, Out v_out,
               ffi::Span<const int64_t> numbers, float scale, float eps) {
  if (numbers.size() != 8) return ffi::Error::InvalidArgument("attention: eight numbers");
  const int64_t index = layer.typed_data()[0], layers = k.dimensions()[0];
  if (index < 0 || index >= layers) return ffi::Error::InvalidArgument("attention: layer");
  const int32_t* const m = meta.typed_data();
  Attention a{};
  a.heads = numbers[0];
  a.blocks_max = numbers[1];
  a.block_tokens = numbers[2];
  a.kv_heads = k.dimensions()[2];
  a.size = cos_sin.dimensions()[3] * 2;
  a.tokens_padded = qkv.dimensions()[0];
  a.tokens = m[0];
  a.sequences = m[1];
  a.token_seq = m + numbers[3];
  a.positions = m + numbers[4];
  a.query_starts = m + numbers[5];
  a.tables = m + numbers[6];
  a.sees = m + numbers[7];
  a.scale = scale;
  a.eps = eps;
  a.window = windows.typed_data()[index];
  a.rope = ropes.typed_data()[index];
  a.qkv = qkv.typed_data();
  a.cos_sin = cos_sin.typed_data() + a.rope * a.tokens_padded * a.size;
  if (q_norm.element_count()) a.q_norm = q_norm.typed_data() + index * a.size;
  if (k_norm.element_count()) a.k_norm = k_norm.typed_data() + index * a.size;
  if (!read_codes(k, v, out->element_type(), &a))
    return ffi::Error::InvalidArgument("attention: dtype or shape of the cache");
  const int64_t bytes = static_cast<int64_t>(k.size_bytes()) / layers;
  a.k = static_cast<char*>(k_out->untyped_data()) + index * bytes;
  a.v = static_cast<char*>(v_out->untyped_data()) + index * bytes;
  a.out = out->untyped_data();
  if (k.untyped_data() != k_out->untyped_data() || v.untyped_data() != v_out->untyped_data())
    return ffi::Error::Internal("attention: the cache was copied; it must be donated");
  if (a.tokens > a.tokens_padded || a.size > 512 || a.size % 16 || a.block_tokens % kKeys)
    return ffi::Error::InvalidArgument("attention: sizes");
  if (a.tokens <= 0) return ffi::Error::Success();
  if (!is_valid(a, k.dimensions()[1])) return ffi::Error::InvalidArgument("attention: metadata");
  kernel()(a);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_attention, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Any>()
                                  .Arg<ranvier::Any>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("numbers")
                                  .Attr<float>("scale")
                                  .Attr<float>("eps"));
#pragma GCC visibility pop
