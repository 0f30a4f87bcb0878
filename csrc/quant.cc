// The FFI handlers of the whole-number linear and of its embedding rows.
#include "quant.h"

#include "isa.h"
#include "linear_call.h"
#include "lora_call.h"

namespace ranvier {
namespace {

using Bytes = ffi::Buffer<ffi::DataType::U8>;

#if defined(__x86_64__)
#define RANVIER_CALL(name, argument)                       \
  (isa() >= Isa::kBf16     ? bf16::name(argument)          \
   : isa() == Isa::kAvx512 ? avx512::name(argument)        \
   : isa() == Isa::kAvx2   ? avx2::name(argument)          \
                           : generic::name(argument))
#else
#define RANVIER_CALL(name, argument) generic::name(argument)
#endif

// A layer's segments out of the table [L, S, 4]; tiles 0 ends the list. False: out of the blob's range.
bool read_segments(const Ints& table, int64_t layer, int64_t depth, int64_t bytes, Segment* segments,
                   int64_t* count) {
  const int64_t limit = table.dimensions()[1];
  if (limit > kSegments || table.dimensions()[2] != 4) return false;
  const int32_t* at = table.typed_data() + layer * limit * 4;
  for (*count = 0; *count < limit && at[2] > 0; ++*count, at += 4) {
    if (at[0] < 0 || at[0] >= kFormats || at[3] < 0) return false;
    Segment& s = segments[*count];
    s = {static_cast<Format>(at[0]), at[1], at[2], at[3]};
    const FormatInfo& info = kInfo[at[0]];
    if (!info.is_whole && !info.is_super && (s.group < kUnit || s.group % kUnit)) return false;
    if (depth % s.block(depth)) return false;
    if (int64_t{64} * s.offset + s.tiles * s.tile_bytes(depth) > bytes) return false;
  }
  return *count > 0;
}

ffi::Error run(Any x, Bytes blob, Ints table, Ints layer, Ints count, Floats norm, Floats bias,
               Floats residual, Ints slots, Any adapters, Ints places, Out out, int64_t outputs,
               float eps, int64_t gate, ffi::Span<const int64_t> parts) {
  Quantised a{};
  a.outputs = outputs;
  a.eps = eps;
  a.gate = static_cast<Gate>(gate);
  a.blob = blob.typed_data();
  a.depth = (x.dimensions()[1] + kUnit - 1) / kUnit * kUnit;
  const auto bytes = static_cast<int64_t>(blob.size_bytes());
  if (!fill({x, layer, count, norm, bias, residual, out}, table.dimensions()[0], a) ||
      !read_segments(table, layer.typed_data()[0], a.depth, bytes, a.segments, &a.segment_count))
    return ffi::Error::InvalidArgument("quantised linear: layer, count or table is out of range");
  int64_t tiles = 0;
  for (int64_t s = 0; s < a.segment_count; ++s) {
    tiles += a.segments[s].tiles;
    a.strides[s] = a.segments[s].tile_bytes(a.depth);
  }
  if (outputs > kLanes * tiles || (gate != 0 && a.segment_count != 2))
    return ffi::Error::InvalidArgument("quantised linear: the table has other outputs");
  if (!plan_lora({slots, adapters, places, parts}, layer.typed_data()[0], a))
    return ffi::Error::InvalidArgument("quantised linear: an adapter's slot or table is out of range");
  if (a.rows > 0) RANVIER_CALL(quantised, a);
  return ffi::Error::Success();
}

ffi::Error embed(Ints ids, Bytes blob, Ints table, Out out, float scale) {
  QuantisedRows a{};
  a.size = out->dimensions()[1];
  a.depth = (a.size + kUnit - 1) / kUnit * kUnit;
  int64_t segments = 0;
  const auto bytes = static_cast<int64_t>(blob.size_bytes());
  Segment found[kSegments];
  if (!read_segments(table, 0, a.depth, bytes, found, &segments) || segments != 1)
    return ffi::Error::InvalidArgument("quantised embedding: the table is out of range");
  a.segment = found[0];
  a.count = ids.dimensions()[0];
  a.ids = ids.typed_data();
  a.blob = blob.typed_data();
  a.out = static_cast<float*>(out->untyped_data());
  a.scale = scale;
  for (int64_t i = 0; i < a.count; ++i)
    if (a.ids[i] < 0 || a.ids[i] >= kLanes * a.segment.tiles)
      return ffi::Error::InvalidArgument("quantised embedding: an id is out of range");
  RANVIER_CALL(rows, a);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_quantised, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Any>()
                                  .Arg<ranvier::Bytes>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Any>()
                                  .Arg<ranvier::Ints>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("outputs")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("gate")
                                  .Attr<xla::ffi::Span<const int64_t>>("parts"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_quantised_rows, ranvier::embed,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Bytes>()
                                  .Arg<ranvier::Ints>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale"));
#pragma GCC visibility pop
