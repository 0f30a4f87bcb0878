// RMS norm of rows, added to a residual where there is one.
#ifndef RANVIER_NORM_H_
#define RANVIER_NORM_H_

#include <cstdint>

namespace ranvier {

struct Norm {
  int64_t rows, size;
  const float* x;         // [rows, size]
  const float* weight;    // [size]
  const float* residual;  // [rows, size] or null
  float* out;             // [rows, size]
  float eps;
};

// norm_vector.cc is compiled once for each of these.
namespace generic { void norm(const Norm&); }
namespace avx2 { void norm(const Norm&); }
namespace avx512 { void norm(const Norm&); }

}  // namespace ranvier

#endif  // RANVIER_NORM_H_
