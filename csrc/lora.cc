// Which rows of a step go through which adapters: the plan that a linear's kernel follows.
#include "lora.h"

#include <algorithm>
#include <vector>

#include "lora_call.h"

namespace ranvier {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kUnitRows = 64;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One thread's room, which only grows.
struct Room {
  Lora lora;
  std::vector<int32_t> place, group_of, order;  // place: of a slot's group, -1: none yet
  std::vector<LoraGroup> groups;
  std::vector<LoraUnit> units;
  std::vector<float> hidden;
};

struct Slots {
  const char* blob;
  const int32_t* table;  // of the layer, slot 0
  int64_t count, bytes, entries;  // entries: of the table between two slots
};

// The parts of a slot that the linear has; false: they reach beyond the slot.
bool read_parts(const Slots& slots, int64_t slot, const Lora& lora, LoraGroup& group) {
  const char* const base = slots.blob + slot * slots.bytes;
  const int64_t line_inputs = lora.is_bf16 ? 2 : 1;
  for (int64_t p = 0; p < lora.part_count; ++p) {
    const int32_t* const entry = slots.table + slot * slots.entries + 3 * p;
    const int64_t rank = entry[0], a = kLine * entry[1], b = kLine * entry[2];
    group.rank[p] = rank;
    if (rank == 0) continue;
    const int64_t a_bytes = round_up(rank, kLanes) / kLanes * lora.depth / line_inputs * kLine;
    const int64_t b_bytes = lora.tiles[p] * rank / line_inputs * kLine;
    if (rank < 0 || rank % 8 || a < 0 || b < 0) return false;
    if (a + a_bytes > slots.bytes || b + b_bytes > slots.bytes) return false;
    group.a[p] = base + a;
    group.b[p] = base + b;
  }
  return true;
}

bool has_part(const LoraGroup& group, int64_t parts) {
  return std::any_of(group.rank, group.rank + parts, [](int64_t rank) { return rank > 0; });
}

// Give every row with an adapter its group; false: a slot is out of range.
bool group_rows(const Slots& slots, const int32_t* slot_of, int64_t rows, Room& room) {
  room.place.assign(slots.count, -1);
  room.group_of.assign(rows, -1);
  room.groups.clear();
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = slot_of[row] - 1;
    if (slot == -1) continue;
    if (slot < -1 || slot >= slots.count) return false;
    if (room.place[slot] == -1) {
      LoraGroup group{};
      if (!read_parts(slots, slot, room.lora, group)) return false;
      const bool is_absent = !has_part(group, room.lora.part_count);
      room.place[slot] = is_absent ? -2 : static_cast<int32_t>(room.groups.size());
      if (!is_absent) room.groups.push_back(group);
    }
    if (room.place[slot] < 0) continue;
    room.group_of[row] = room.place[slot];
    ++room.groups[room.place[slot]].count;
  }
  return true;
}

// Rows in the order of their groups, and the units of shrink.
void order_rows(int64_t rows, Room& room) {
  int64_t first = 0;
  for (LoraGroup& group : room.groups) {
    group.first = first;
    first += group.count;
    group.count = 0;
  }
  room.order.resize(first);
  for (int64_t row = 0; row < rows; ++row) {
    if (room.group_of[row] < 0) continue;
    LoraGroup& group = room.groups[room.group_of[row]];
    room.order[group.first + group.count++] = static_cast<int32_t>(row);
  }
  room.units.clear();
  for (size_t g = 0; g < room.groups.size(); ++g) {
    const LoraGroup& group = room.groups[g];
    for (int64_t p = 0; p < room.lora.part_count; ++p)
      for (int64_t tile = 0; kLanes * tile < group.rank[p]; ++tile)
        for (int64_t row = 0; row < group.count; row += kUnitRows)
          room.units.push_back({static_cast<int64_t>(g), p, tile, group.first + row,
                                std::min(kUnitRows, group.count - row)});
  }
}

void make_hidden(int64_t rows, Room& room) {
  Lora& lora = room.lora;
  lora.span = 0;
  for (const LoraGroup& group : room.groups)
    for (int64_t p = 0; p < lora.part_count; ++p)
      lora.span = std::max(lora.span, round_up(group.rank[p], kLanes));
  lora.stride = lora.span * lora.part_count;
  room.hidden.resize(rows * lora.stride);
  lora.hidden = room.hidden.data();
}

bool set_parts(const ffi::Span<const int64_t>& parts, bool is_gated, Lora& lora) {
  lora.part_count = static_cast<int64_t>(parts.size()) / 2;
  if (parts.size() % 2 != 1 || lora.part_count > kLoraParts) return false;
  for (int64_t p = 0; p < lora.part_count; ++p) {
    const int64_t first = parts[1 + 2 * p], count = parts[2 + 2 * p];
    lora.tile[p] = is_gated ? (first > 0) : first / kLanes;  // gated: which tile of a pair
    lora.tiles[p] = is_gated ? (count + kLanes - 1) / kLanes
                             : (first + count + kLanes - 1) / kLanes - first / kLanes;
  }
  return true;
}

}  // namespace

bool plan_lora(const LoraOperands& in, int64_t layer, Linear& a) {
  a.lora = nullptr;
  const auto given = static_cast<int64_t>(in.slots.element_count());
  if (given == 0) return true;
  if (given < a.rows) return false;
  const int32_t* const slot_of = in.slots.typed_data();
  if (std::all_of(slot_of, slot_of + a.rows, [](int32_t slot) { return slot == 0; })) return true;
  static thread_local Room room;
  Lora& lora = room.lora;
  const auto shape = in.table.dimensions();
  if (!set_parts(in.parts, a.gate != Gate::kNone, lora) || layer >= shape[1]) return false;
  if (in.parts[0] < 0 || in.parts[0] + lora.part_count > shape[2]) return false;
  lora.is_bf16 = in.blob.element_type() == ffi::DataType::BF16;
  lora.depth = round_up(a.inputs, 32);
  const int64_t entries = 3 * shape[1] * shape[2];
  const Slots slots{static_cast<const char*>(in.blob.untyped_data()),
                    in.table.typed_data() + 3 * (layer * shape[2] + in.parts[0]), shape[0],
                    static_cast<int64_t>(in.blob.size_bytes()) / shape[0], entries};
  if (!group_rows(slots, slot_of, a.rows, room)) return false;
  if (room.groups.empty()) return true;
  order_rows(a.rows, room);
  make_hidden(a.rows, room);
  lora.group_of = room.group_of.data();
  lora.order = room.order.data();
  lora.groups = room.groups.data();
  lora.units = room.units.data();
  lora.unit_count = static_cast<int64_t>(room.units.size());
  a.lora = &lora;
  return true;
}

}  // namespace ranvier
