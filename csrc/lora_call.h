// The operands of adapters, as the graph hands them to a linear.
#ifndef RANVIER_LORA_CALL_H_
#define RANVIER_LORA_CALL_H_

#include "ffi.h"
#include "linear.h"

namespace ranvier {

// No slots: the linear takes no adapters. `parts`: the first row of the linear's parts in the table, then
// for each its first output and its number of outputs.
struct LoraOperands {
  const Ints& slots;  // [T]: 0, or the adapter's place + 1
  const Any& blob;    // [S, pages, ...]
  const Ints& table;  // [S, L, P, 3]: rank, place of A, place of B
  const ffi::Span<const int64_t>& parts;
};

// Group the rows of `a` by their adapters; leaves a.lora null where none has a part in this linear.
// False: a slot, the layer or a place is out of range.
bool plan_lora(const LoraOperands& in, int64_t layer, Linear& a);

}  // namespace ranvier

#endif  // RANVIER_LORA_CALL_H_
