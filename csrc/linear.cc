// The FFI handler of linear: checks what the graph hands over and calls the machine's kernel.
#include "linear.h"

#include "isa.h"
#include "linear_call.h"
#include "lora.h"
#include "lora_call.h"

namespace ranvier {
namespace {

using Kernel = void (*)(const Linear&);

Kernel kernel() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAmx: return amx::linear;
    case Isa::kBf16: return bf16::linear;
    case Isa::kAvx512: return avx512::linear;
    case Isa::kAvx2: return avx2::linear;
    default: return generic::linear;
  }
#else
  return generic::linear;
#endif
}

ffi::Error run(Any x, Any weight, Ints layer, Ints count, Floats norm, Floats bias, Floats residual,
               Ints slots, Any blob, Ints table, Out out, int64_t outputs, float eps, int64_t gate,
               ffi::Span<const int64_t> parts) {
  const auto shape = weight.dimensions();
  Linear a{};
  a.is_weight_bf16 = weight.element_type() == ffi::DataType::BF16;
  a.depth = a.is_weight_bf16 ? 2 * shape[2] : shape[2];
  a.outputs = outputs;
  a.eps = eps;
  a.gate = static_cast<Gate>(gate);
  if (!fill({x, layer, count, norm, bias, residual, out}, shape[0], a) || a.inputs > a.depth ||
      outputs > 16 * shape[1])
    return ffi::Error::InvalidArgument("linear: layer, count or sizes are out of range");
  const int64_t bytes = static_cast<int64_t>(weight.size_bytes()) / shape[0];
  a.weight = static_cast<const char*>(weight.untyped_data()) + layer.typed_data()[0] * bytes;
  if (!plan_lora({slots, blob, table, parts}, layer.typed_data()[0], a) ||
      (a.lora != nullptr && a.lora->is_bf16 != a.is_weight_bf16))
    return ffi::Error::InvalidArgument("linear: an adapter's slot or table is out of range");
  if (a.rows > 0) kernel()(a);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_linear, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Any>()
                                  .Arg<ranvier::Any>()
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
#pragma GCC visibility pop
