// What the handlers of the dense and of the whole-number linear share: the operands around the weight.
#ifndef RANVIER_LINEAR_CALL_H_
#define RANVIER_LINEAR_CALL_H_

#include "ffi.h"
#include "linear.h"

namespace ranvier {

struct LinearOperands {
  const Any& x;
  const Ints &layer, &count;
  const Floats &norm, &bias, &residual;
  Out& out;
};

// A layer's row of a stacked f32 array, or null for an absent operand (no elements).
inline const float* row_of(const Floats& stacked, int64_t layer) {
  if (stacked.element_count() == 0) return nullptr;
  return stacked.typed_data() + layer * stacked.dimensions()[1];
}

// Fill all but the weight. False: the layer of `layers`, or the count of rows, is out of range.
inline bool fill(const LinearOperands& in, int64_t layers, Linear& a) {
  const int64_t index = in.layer.typed_data()[0];
  a.rows = in.count.typed_data()[0];
  a.inputs = in.x.dimensions()[1];
  if (index < 0 || index >= layers || a.rows < 0 || a.rows > in.x.dimensions()[0]) return false;
  a.x = in.x.untyped_data();
  a.norm = row_of(in.norm, index);
  a.bias = row_of(in.bias, index);
  a.residual = in.residual.element_count() ? in.residual.typed_data() : nullptr;
  a.out = in.out->untyped_data();
  a.is_x_bf16 = in.x.element_type() == ffi::DataType::BF16;
  a.is_out_bf16 = in.out->element_type() == ffi::DataType::BF16;
  return true;
}

}  // namespace ranvier

#endif  // RANVIER_LINEAR_CALL_H_
