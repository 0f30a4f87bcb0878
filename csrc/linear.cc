// The FFI handler of linear: checks what the graph hands over and calls the machine's kernel.
#include "linear.h"

#include "ffi.h"
#include "isa.h"

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

// A layer's row of a stacked f32 array, or null for an absent operand (no elements).
const float* row_of(const Floats& stacked, int64_t layer) {
  if (stacked.element_count() == 0) return nullptr;
  return stacked.typed_data() + layer * stacked.dimensions()[1];
}

ffi::Error run(Any x, Any weight, Ints layer, Ints count, Floats norm, Floats bias, Floats residual,
               Out out, int64_t outputs, float eps, int64_t gate) {
  const auto shape = weight.dimensions();
  const bool is_bf16 = weight.element_type() == ffi::DataType::BF16;
  const int64_t index = layer.typed_data()[0], rows = count.typed_data()[0];
  const int64_t inputs = x.dimensions()[1], depth = is_bf16 ? 2 * shape[2] : shape[2];
  if (index < 0 || index >= shape[0] || rows < 0 || rows > x.dimensions()[0] || inputs > depth ||
      outputs > 16 * shape[1])
    return ffi::Error::InvalidArgument("linear: layer, count or sizes are out of range");
  const int64_t bytes = static_cast<int64_t>(weight.size_bytes()) / shape[0];
  Linear a{};
  a.rows = rows;
  a.inputs = inputs;
  a.outputs = outputs;
  a.depth = depth;
  a.x = x.untyped_data();
  a.weight = static_cast<const char*>(weight.untyped_data()) + index * bytes;
  a.norm = row_of(norm, index);
  a.bias = row_of(bias, index);
  a.residual = residual.element_count() ? residual.typed_data() : nullptr;
  a.out = out->untyped_data();
  a.eps = eps;
  a.gate = static_cast<Gate>(gate);
  a.is_x_bf16 = x.element_type() == ffi::DataType::BF16;
  a.is_weight_bf16 = is_bf16;
  a.is_out_bf16 = out->element_type() == ffi::DataType::BF16;
  if (rows > 0) kernel()(a);
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
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("outputs")
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("gate"));
#pragma GCC visibility pop
