// Ragged paged attention: norm and rope of q and k, the write of k and v, and attention, in one call.
//
// Cache of one layer, per block: K heads of
//   k  bf16 [Bt/16, E/2, 16, 2]  f32 [Bt/16, E, 16]   tokens are lanes, so scores need no sums across
//   v  bf16 [Bt/2, E, 2]         f32 [Bt, E]
// A narrower cache holds a byte where the dtype of the products has an element, in the same order
// (attention_codes.h); at int8 the Bt scales f32 of the head's tokens follow.
// A row is one query head of one token. Rows attend in blocks of 16 over absolute chunks of kChunk keys;
// each chunk has its own maximum, sum and values, and chunks are merged in ascending order. So a row's
// result depends on nothing but its own keys: not on the cut of the prompt, the batch or the threads.
#ifndef RANVIER_ATTENTION_H_
#define RANVIER_ATTENTION_H_

#include <cstdint>

namespace ranvier {

constexpr int64_t kRowBlock = 16;
constexpr int64_t kChunk = 256;
constexpr int64_t kKeys = 32;  // keys of one inner step; blocks hold a multiple of it

enum class Codes : uint8_t { kNone, kFp8, kInt8 };  // what the cache holds, if not elements

struct Attention {
  int64_t heads, kv_heads, size, block_tokens, blocks_max, tokens, sequences;
  int64_t rope;    // index of the layer's rope
  int64_t window;  // 0: all
  int64_t tokens_padded;
  bool is_bf16;  // products and out
  Codes codes;
  int64_t head_bytes;  // of one head's k or v in one block
  float scale, eps;
  const float* qkv;      // [T, (H + 2K) * E]
  const float* cos_sin;  // [2, T, E/2] of the layer's rope
  const float* q_norm;   // [E] or null
  const float* k_norm;
  void* k;  // of the layer
  void* v;
  void* out;  // [T, H * E]
  const int32_t* positions;
  const int32_t* sees;  // last position that a token attends to: its own, or its picture's last
  const int32_t* token_seq;
  const int32_t* query_starts;
  const int32_t* tables;  // [S, blocks_max]
};

// What one 16-row block has gathered: maximum, sum, values.
struct Partial {
  float* top;     // [16]
  float* sum;     // [16]
  float* values;  // [16, E]
};

// attention_vector.cc is compiled once for each of these, attention_amx.cc for the last.
namespace generic { void attention(const Attention&); }
namespace avx2 { void attention(const Attention&); }
namespace avx512 { void attention(const Attention&); }
namespace bf16 { void attention(const Attention&); }
namespace amx { void attention(const Attention&); }

}  // namespace ranvier

#endif  // RANVIER_ATTENTION_H_
