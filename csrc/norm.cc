// The FFI handler of the RMS norm.
#include "norm.h"

#include "ffi.h"
#include "isa.h"

namespace ranvier {
namespace {

void call(const Norm& a) {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) return avx512::norm(a);
  if (isa() == Isa::kAvx2) return avx2::norm(a);
#endif
  generic::norm(a);
}

ffi::Error run(Floats x, Floats weight, Ints layer, Ints count, Floats residual, Out out, float eps) {
  const int64_t index = layer.typed_data()[0], rows = count.typed_data()[0];
  const int64_t size = x.dimensions()[1];
  if (index < 0 || index >= weight.dimensions()[0] || rows < 0 || rows > x.dimensions()[0] ||
      weight.dimensions()[1] != size)
    return ffi::Error::InvalidArgument("norm: layer, count or sizes are out of range");
  Norm a{};
  a.rows = rows;
  a.size = size;
  a.x = x.typed_data();
  a.weight = weight.typed_data() + index * size;
  a.residual = residual.element_count() ? residual.typed_data() : nullptr;
  a.out = static_cast<float*>(out->untyped_data());
  a.eps = eps;
  call(a);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace ranvier

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(ranvier_norm, ranvier::run,
                              xla::ffi::Ffi::Bind()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Floats>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Ints>()
                                  .Arg<ranvier::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("eps"));
#pragma GCC visibility pop
