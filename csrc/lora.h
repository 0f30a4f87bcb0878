// Adapters in a linear: y += B (A x), for each row with the A and B of its adapter's slot.
//
// A linear may be several of a model's linears side by side (q, k, v): each is a part, with an A of its own
// and a B that reaches its outputs alone. Of one part of one layer a slot holds
//   A  bf16 [r/16, I/2, 16, 2]    f32 [r/16, I, 16]   ranks are lanes; I padded to 32, r to 16
//   B  bf16 [O/16, r/2, 16, 2]    f32 [O/16, r, 16]   outputs are lanes, in the linear's tiles; r padded to 8
// at places that the table names, in lines of 64 bytes. First rows of an adapter go through its A together
// (shrink), so that it is read once; then each block of outputs adds its tiles of B where it is finished
// (expand). A row's sums never depend on its neighbours. Rows without an adapter, and parts that an adapter
// lacks, cost nothing.
#ifndef RANVIER_LORA_H_
#define RANVIER_LORA_H_

#include <cstdint>

namespace ranvier {

constexpr int64_t kLoraParts = 3;
constexpr int64_t kLine = 64;  // bytes

// Rows of one adapter: order[first .. first + count).
struct LoraGroup {
  int64_t first, count;
  int64_t rank[kLoraParts];  // 0: it lacks this part
  const void* a[kLoraParts];
  const void* b[kLoraParts];
};

// Some rows of a group by 16 ranks of one part.
struct LoraUnit {
  int64_t group, part, tile, first, count;
};

struct Lora {
  int64_t part_count;
  int64_t tile[kLoraParts], tiles[kLoraParts];  // outputs of a part: its first tile, and how many
  int64_t depth;                                // inputs padded to 32
  int64_t stride, span;                         // of `hidden`: of a row, of a part
  const int32_t* group_of;                      // [rows], -1: no adapter
  const int32_t* order;                         // rows, group after group
  const LoraGroup* groups;
  const LoraUnit* units;
  int64_t unit_count;
  void* hidden;  // A x of every row, in the dtype of the weights
  bool is_bf16;
};

}  // namespace ranvier

#endif  // RANVIER_LORA_H_
