// The parts of attention that all ISAs share: prepare and write a token, walk blocks, softmax, merge.
// T is the element of products and out, and of a cache without codes: float, or uint16_t for bf16.
#ifndef RANVIER_ATTENTION_STEPS_H_
#define RANVIER_ATTENTION_STEPS_H_

#include <cstdlib>

#include "attention.h"
#include "attention_codes.h"
#include "pool.h"
#include "vec.h"

namespace ranvier {
namespace {

template <typename T>
constexpr bool kIsBf16 = sizeof(T) == 2;

template <typename T>
inline T cast(float x) {
  if constexpr (kIsBf16<T>) {
    return to_bf16(x);
  } else {
    return x;
  }
}

struct Arena {  // one growing buffer per thread and use
  void* data = nullptr;
  int64_t size = 0;
  void* get(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 4095) / 4096 * 8192;
      data = std::aligned_alloc(4096, size);
    }
    return data;
  }
};

inline int64_t block_of(const Attention& a, int64_t seq, int64_t position) {
  return a.tables[seq * a.blocks_max + position / a.block_tokens];
}

// First byte of one head's k or v in one block.
inline int64_t head_at(const Attention& a, int64_t block, int64_t kv_head) {
  return (block * a.kv_heads + kv_head) * a.head_bytes;
}

inline void norm_and_rope(const Attention& a, const float* in, const float* norm, int64_t token,
                          float* out) {
  const int64_t half = a.size / 2;
  float scale = 1.0f;
  if (norm != nullptr) {
    V16 sum{};
    for (int64_t e = 0; e < a.size; e += 16) {
      const V16 x = load_some(in + e, a.size - e);
      sum += x * x;
    }
    scale = 1.0f / std::sqrt(sum16(sum) / static_cast<float>(a.size) + a.eps);
  }
  const float* cos = a.cos_sin + token * half;
  const float* sin = cos + a.tokens_padded * half;
  for (int64_t e = 0; e < half; ++e) {
    float x = in[e], y = in[e + half];
    if (norm != nullptr) {
      x = x * scale * norm[e];
      y = y * scale * norm[e + half];
    }
    out[e] = x * cos[e] - y * sin[e];
    out[e + half] = y * cos[e] + x * sin[e];
  }
}

template <typename T>
inline int64_t k_at(const Attention& a, int64_t offset, int64_t e) {
  const int64_t tile = offset / 16 * 16 * a.size, lane = offset % 16;
  return tile + (kIsBf16<T> ? (e / 2 * 16 + lane) * 2 + e % 2 : e * 16 + lane);
}

template <typename T>
inline int64_t v_at(const Attention& a, int64_t offset, int64_t e) {
  return kIsBf16<T> ? (offset / 2 * a.size + e) * 2 + offset % 2 : offset * a.size + e;
}

// One token's k or v into its head's block; at(e) is the place of element e.
template <typename T, typename At>
inline void write_head(const Attention& a, const float* x, int64_t offset, char* head, At at) {
  if (a.codes != Codes::kNone)
    return write_codes(a, x, offset, reinterpret_cast<uint8_t*>(head), at);
  for (int64_t e = 0; e < a.size; ++e) reinterpret_cast<T*>(head)[at(e)] = cast<T>(x[e]);
}

// The rest of a run of keys becomes 0: a masked key has weight 0, and 0 times what an earlier sequence
// left there must not be NaN.
template <typename T>
inline void clear_rest(const Attention& a, int64_t offset, char* v) {
  for (int64_t next = offset + 1; next % kKeys != 0; ++next) {
    for (int64_t e = 0; e < a.size; ++e) {
      if (a.codes == Codes::kNone) {
        reinterpret_cast<T*>(v)[v_at<T>(a, next, e)] = T{};
      } else {
        v[v_at<T>(a, next, e)] = 0;
      }
    }
    if (a.codes == Codes::kInt8) std::memset(v + scale_at(a, next), 0, 4);
  }
}

// A token behind which nothing of its run of keys has been cleared yet.
inline bool is_end(const Attention& a, int64_t token, int64_t offset) {
  const int64_t seq = a.token_seq[token];
  const int64_t count = a.query_starts[seq + 1] - a.query_starts[seq];
  return token + 1 == a.query_starts[seq + 1] && (count > 1 || offset % kKeys == 0);
}

// Prepare one token: its queries into q [K][T][G][E], its k and v into the cache.
template <typename T>
inline void prepare_token(const Attention& a, int64_t token, T* q) {
  const int64_t group = a.heads / a.kv_heads, width = (a.heads + 2 * a.kv_heads) * a.size;
  const float* const in = a.qkv + token * width;
  const int64_t position = a.positions[token], offset = position % a.block_tokens;
  const int64_t block = block_of(a, a.token_seq[token], position);
  float x[512];
  for (int64_t h = 0; h < a.heads; ++h) {
    norm_and_rope(a, in + h * a.size, a.q_norm, token, x);
    T* const to = q + ((h / group * a.tokens + token) * group + h % group) * a.size;
    for (int64_t e = 0; e < a.size; ++e) to[e] = cast<T>(x[e]);
  }
  for (int64_t h = 0; h < a.kv_heads; ++h) {
    norm_and_rope(a, in + (a.heads + h) * a.size, a.k_norm, token, x);
    char* const k = static_cast<char*>(a.k) + head_at(a, block, h);
    char* const v = static_cast<char*>(a.v) + head_at(a, block, h);
    const float* const values = in + (a.heads + a.kv_heads + h) * a.size;
    write_head<T>(a, x, offset, k, [&](int64_t e) { return k_at<T>(a, offset, e); });
    write_head<T>(a, values, offset, v, [&](int64_t e) { return v_at<T>(a, offset, e); });
    if (is_end(a, token, offset)) clear_rest<T>(a, offset, v);
  }
}

// One unit of work: up to 16 rows of one kv head of one sequence.
struct Item {
  int64_t seq, kv_head, first_row, rows;   // rows count from the sequence's first token, G a token
  int64_t first_token;                     // of the sequence in this step
  int64_t first_position, last_position;   // of its rows' tokens, and of the keys that they see
};

struct Bounds {
  int64_t low[kRowBlock], high[kRowBlock];  // keys [low, high) of each row
};

inline Bounds bounds_of(const Attention& a, const Item& item) {
  const int64_t group = a.heads / a.kv_heads;
  Bounds b;
  for (int64_t r = 0; r < kRowBlock; ++r) {
    const int64_t row = r < item.rows ? r : item.rows - 1;
    const int64_t token = item.first_token + (item.first_row + row) / group;
    const int64_t position = a.positions[token];
    b.high[r] = a.sees[token] + 1;
    b.low[r] = a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  }
  return b;
}

inline int64_t first_chunk(const Attention& a, const Item& item) {
  const int64_t low = a.window > 0 ? item.first_position + 1 - a.window : 0;
  return low > 0 ? low / kChunk : 0;
}

// Scales of a chunk's keys, at int8.
struct Scales {
  alignas(64) float k[kChunk], v[kChunk];
};

// Scores [16][kChunk] to weights in place of them: exp(scale * (score - max)), 0 outside the bounds.
// With `scales`, scores are of codes and become those of keys, and weights carry the scales of values.
template <typename T>
inline void soften(const Attention& a, const Bounds& b, int64_t row, int64_t start, int64_t keys,
                   const Scales* scales, float* scores, T* weights, Partial out) {
  V16 best = splat(-INFINITY);
  const int64_t low = b.low[row] - start, high = b.high[row] - start;
  I16 lane;
  for (int i = 0; i < 16; ++i) lane[i] = i;
  for (int64_t i = 0; i < keys; i += 16) {
    V16 s = load16(scores + i);
    if (scales != nullptr) {
      s *= load16(scales->k + i);
      store16(scores + i, s);
    }
    if (i < low || i + 16 > high) {
      const I16 at = lane + static_cast<int32_t>(i);
      s = (at >= static_cast<int32_t>(low)) & (at < static_cast<int32_t>(high)) ? s
                                                                                : splat(-INFINITY);
      store16(scores + i, s);
    }
    best = s > best ? s : best;
  }
  const float top = max16(best);
  const float shift = top == -INFINITY ? 0.0f : top * a.scale;
  V16 sum{};
  for (int64_t i = 0; i < keys; i += 16) {
    V16 p = exp16(load16(scores + i) * a.scale - shift);
    sum += p;
    if (scales != nullptr) p *= load16(scales->v + i);
    if constexpr (kIsBf16<T>) {
      store_bf16(reinterpret_cast<uint16_t*>(weights) + i, p, 16);
    } else {
      store16(reinterpret_cast<float*>(weights) + i, p);
    }
  }
  out.top[row] = top == -INFINITY ? -INFINITY : shift;
  out.sum[row] = sum16(sum);
}

// Add a later chunk to an earlier one.
inline void merge(const Attention& a, int64_t rows, Partial into, Partial later) {
  for (int64_t r = 0; r < rows; ++r) {
    if (later.top[r] == -INFINITY) continue;
    const float top = into.top[r] > later.top[r] ? into.top[r] : later.top[r];
    const float mine = exp16(splat(into.top[r] - top))[0];
    const float its = exp16(splat(later.top[r] - top))[0];
    into.sum[r] = into.sum[r] * mine + later.sum[r] * its;
    into.top[r] = top;
    float* const x = into.values + r * a.size;
    const float* const y = later.values + r * a.size;
    for (int64_t e = 0; e < a.size; e += 16) {
      const int64_t n = a.size - e;
      store_some(x + e, load_some(x + e, n) * mine + load_some(y + e, n) * its, n);
    }
  }
}

template <typename T>
inline void write_out(const Attention& a, const Item& item, Partial found) {
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t r = 0; r < item.rows; ++r) {
    const int64_t row = item.first_row + r, token = item.first_token + row / group;
    const int64_t head = item.kv_head * group + row % group;
    T* const to = static_cast<T*>(a.out) + (token * a.heads + head) * a.size;
    const float inverse = 1.0f / found.sum[r];
    for (int64_t e = 0; e < a.size; ++e) to[e] = cast<T>(found.values[r * a.size + e] * inverse);
  }
}

inline Partial partial_at(const Attention& a, float* at) {
  return {at, at + kRowBlock, at + 2 * kRowBlock};
}

inline int64_t partial_floats(const Attention& a) { return kRowBlock * (a.size + 2); }

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_ATTENTION_STEPS_H_
