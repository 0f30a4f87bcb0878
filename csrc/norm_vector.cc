// RMS norm; compiled once for each ISA, RANVIER_ISA its namespace.
#include "norm.h"

#include "pool.h"
#include "vec.h"

namespace ranvier {
namespace {

void norm_row(const Norm& a, int64_t row) {
  const float* const x = a.x + row * a.size;
  V16 sum{};
  for (int64_t i = 0; i < a.size; i += 16) {
    const V16 v = load_some(x + i, a.size - i);
    sum += v * v;
  }
  const float scale = 1.0f / std::sqrt(sum16(sum) / static_cast<float>(a.size) + a.eps);
  for (int64_t i = 0; i < a.size; i += 16) {
    const int64_t n = a.size - i, at = row * a.size + i;
    V16 v = load_some(x + i, n) * scale * load_some(a.weight + i, n);
    if (a.residual != nullptr) v += load_some(a.residual + at, n);
    store_some(a.out + at, v, n);
  }
}

}  // namespace

namespace RANVIER_ISA {

void norm(const Norm& a) {
  if (a.rows >= 16) return parallel_for(a.rows, [&](int64_t row) { norm_row(a, row); });
  for (int64_t row = 0; row < a.rows; ++row) norm_row(a, row);
}

}  // namespace RANVIER_ISA
}  // namespace ranvier
