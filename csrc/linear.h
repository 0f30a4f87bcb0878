// One linear step: rows of x times a packed weight, with the norm before it and the rest behind it.
//
// Weights are packed in groups of 32 outputs (two tiles of 16): bf16 [O/16, I/2, 16, 2], f32 [O/16, I, 16].
// Every output has one accumulator that runs over I in ascending order, whatever the row count, the
// tiling or the thread count: a row's result never depends on its neighbours.
#ifndef RANVIER_LINEAR_H_
#define RANVIER_LINEAR_H_

#include <cstdint>

namespace ranvier {

enum class Gate : int64_t { kNone = 0, kSilu = 1, kGeluTanh = 2 };

struct Lora;

struct Linear {
  int64_t rows, inputs, outputs;  // outputs: of the product, gate and up together
  int64_t depth;                  // inputs padded to a multiple of 32
  const void* x;
  const void* weight;      // of the layer
  const float* norm;       // [inputs] or null
  const float* bias;       // [outputs] or null
  const float* residual;   // [rows, outputs] or null
  const Lora* lora;        // what adapters add to the product, or null
  void* out;               // [rows, outputs], gated [rows, outputs / 2]
  float eps;
  Gate gate;
  bool is_x_bf16, is_weight_bf16, is_out_bf16;
};

constexpr int64_t kGroup = 32;  // outputs of one unit of work

// linear_vector.cc is compiled once for each of these, linear_amx.cc for the last.
namespace generic { void linear(const Linear&); }
namespace avx2 { void linear(const Linear&); }
namespace avx512 { void linear(const Linear&); }
namespace bf16 { void linear(const Linear&); }
namespace amx { void linear(const Linear&); }

}  // namespace ranvier

#endif  // RANVIER_LINEAR_H_
