// Short names for XLA's typed FFI, and default visibility for the handlers.
#ifndef RANVIER_FFI_H_
#define RANVIER_FFI_H_

#pragma GCC visibility push(default)
#include "xla/ffi/api/ffi.h"
#pragma GCC visibility pop

namespace ranvier {

namespace ffi = xla::ffi;
using Any = ffi::AnyBuffer;
using Ints = ffi::Buffer<ffi::DataType::S32>;
using Floats = ffi::Buffer<ffi::DataType::F32>;
using Out = ffi::Result<ffi::AnyBuffer>;

}  // namespace ranvier

#endif  // RANVIER_FFI_H_
