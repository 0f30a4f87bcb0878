// Attention's two products on AMX tiles: 16 rows at once, the same instruction for one row and many.
#include <immintrin.h>

#include "attention_steps.h"
#include "tiles.h"

namespace ranvier {
namespace {

using T = uint16_t;
using State = Tiles;  // of the thread while it works on an item
template <typename>
struct Runs;
inline void scores_of(const Attention& a, const T* q, int64_t rows, const T* k, const char* next,
                      float* out);
inline void values_of(const Attention& a, const T* weights, int64_t rows, const Runs<T>& runs,
                      float* out);

}  // namespace
}  // namespace ranvier

#include "attention_walk.h"

namespace ranvier {
namespace {

inline void scores_of(const Attention& a, const T* q, int64_t, const T* k, const char* next,
                      float* out) {
  fetch_run(a, next);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t e = 0; e < a.size; e += 32) {
    _tile_loadd(4, q + e, 2 * a.size);
    _tile_loadd(6, k + 16 * e, 64);
    _tile_loadd(7, k + 16 * a.size + 16 * e, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, out, 4 * kChunk);
  _tile_stored(1, out + 16, 4 * kChunk);
}

// Two columns of 16 values at a time.
inline void values_of(const Attention& a, const T* weights, int64_t, const Runs<T>& runs, float* out) {
  for (int64_t i = 0; i < runs.count; ++i) fetch_run(a, runs.next[i]);
  for (int64_t e = 0; e < a.size; e += 32) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t i = 0; i < runs.count; ++i) {
      _tile_loadd(4, weights + i * kKeys, 2 * kChunk);
      _tile_loadd(6, runs.v[i] + 2 * e, 4 * a.size);
      _tile_loadd(7, runs.v[i] + 2 * e + 32, 4 * a.size);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, out + e, 4 * a.size);
    _tile_stored(1, out + e + 16, 4 * a.size);
  }
}

}  // namespace

namespace amx {

void attention(const Attention& a) {
  if (!a.is_bf16 || a.size % 32 != 0) return bf16::attention(a);
  attend<T>(a);
}

}  // namespace amx

}  // namespace ranvier
