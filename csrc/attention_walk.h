// The walk over items and chunks, once the products `scores_of` and `values_of` are defined.
//
//   scores_of(a, q, rows, k, next, out)    out [16][kChunk]: rows times a run of 32 keys
//   values_of(a, weights, rows, runs, out)   out [16][E]: weights [16][kChunk] times runs of 32 keys
//
// Blocks lie anywhere, so no hardware prefetcher knows the next run. All runs of a chunk, its keys and then
// its values, are one line of runs that goes on with what the thread does next; while one is multiplied,
// the one kAhead places further on is fetched, a cache line for each that is used.
#ifndef RANVIER_ATTENTION_WALK_H_
#define RANVIER_ATTENTION_WALK_H_

#include <algorithm>
#include <vector>

#include "attention_steps.h"

namespace ranvier {
namespace {

constexpr int64_t kRuns = kChunk / kKeys, kAhead = 2;

// The values of each run of 32 keys of a chunk; `next` is fetched meanwhile, where it is not null.
template <typename T>
struct Runs {
  const T* v[kRuns];
  const char* next[kRuns];
  int64_t count;
};

// Where each run of 32 keys of a chunk lies in the cache; k and v are laid out alike.
struct Places {
  int64_t at[kRuns], scales[kRuns];
  int64_t count;
};

inline int64_t element_bytes(const Attention& a) {
  return a.codes != Codes::kNone ? 1 : a.is_bf16 ? 2 : 4;
}

inline Places places_of(const Attention& a, const Item& item, int64_t start, int64_t end) {
  Places places;
  places.count = (end - start + kKeys - 1) / kKeys;
  for (int64_t i = 0; i < places.count; ++i) {
    const int64_t position = start + i * kKeys, offset = position % a.block_tokens;
    const int64_t head = head_at(a, block_of(a, item.seq, position), item.kv_head);
    places.at[i] = head + offset * a.size * element_bytes(a);
    places.scales[i] = head + scale_at(a, offset);
  }
  return places;
}

inline const char* k_run(const Attention& a, const Places& places, int64_t i) {
  return static_cast<const char*>(a.k) + places.at[i];
}

inline const char* v_run(const Attention& a, const Places& places, int64_t i) {
  return static_cast<const char*>(a.v) + places.at[i];
}

inline void gather_scales(const Attention& a, const Places& places, Scales* scales) {
  for (int64_t i = 0; i < places.count; ++i) {
    const char* const k = static_cast<const char*>(a.k) + places.scales[i];
    const char* const v = static_cast<const char*>(a.v) + places.scales[i];
    std::memcpy(scales->k + i * kKeys, k, 4 * kKeys);
    std::memcpy(scales->v + i * kKeys, v, 4 * kKeys);
  }
}

inline void fetch_run(const Attention& a, const char* run) {
  const int64_t bytes = kKeys * a.size * element_bytes(a);
  for (int64_t i = 0; run != nullptr && i < bytes; i += 64) __builtin_prefetch(run + i, 0, 2);
}

inline Places places_of_chunk(const Attention& a, const Item& item, int64_t chunk) {
  const int64_t start = chunk * kChunk;
  return places_of(a, item, start, std::min(item.last_position + 1, start + kChunk));
}

// What a thread does after a chunk; no item: it is not known.
struct Next {
  const Item* item;
  int64_t chunk;
};

// All runs of a chunk in order, and kAhead of the next one; null: nothing to fetch.
struct Line {
  const char* run[2 * kRuns + kAhead];
};

inline Line line_of(const Attention& a, const Places& places, Next next) {
  Line line = {};
  const int64_t n = places.count;
  for (int64_t i = 0; i < n; ++i) {
    line.run[i] = k_run(a, places, i);
    line.run[n + i] = v_run(a, places, i);
  }
  if (next.item == nullptr) return line;
  const Places others = places_of_chunk(a, *next.item, next.chunk);
  for (int64_t i = 0; i < kAhead; ++i)
    line.run[2 * n + i] = i < others.count ? k_run(a, others, i) : v_run(a, others, i - others.count);
  return line;
}

template <typename T>
inline void attend_chunk(const Attention& a, const Item& item, const T* q, int64_t chunk, Next next,
                         Partial out) {
  const int64_t start = chunk * kChunk, run = kKeys * a.size;
  const Places places = places_of_chunk(a, item, chunk);
  const int64_t count = places.count;
  const bool is_plain = a.codes == Codes::kNone;
  const Line line = line_of(a, places, next);
  const Bounds bounds = bounds_of(a, item);
  static thread_local Arena score_arena, weight_arena, room_arena;
  auto* const scores = static_cast<float*>(score_arena.get(4 * kRowBlock * kChunk));
  auto* const weights = static_cast<T*>(weight_arena.get(sizeof(T) * kRowBlock * kChunk));
  auto* const room =
      static_cast<T*>(is_plain ? nullptr : room_arena.get(sizeof(T) * kChunk * a.size));
  for (int64_t i = 0; i < count; ++i) {
    const char* const ahead = line.run[i + kAhead];
    if (!is_plain) fetch_run(a, ahead);
    scores_of(a, q, item.rows, opened(a, line.run[i], room), is_plain ? ahead : nullptr,
              scores + i * kKeys);
  }
  Scales scales;
  const bool is_scaled = a.codes == Codes::kInt8;
  if (is_scaled) gather_scales(a, places, &scales);
  for (int64_t r = 0; r < item.rows; ++r)
    soften(a, bounds, r, start, count * kKeys, is_scaled ? &scales : nullptr, scores + r * kChunk,
           weights + r * kChunk, out);
  Runs<T> runs;
  runs.count = count;
  for (int64_t i = 0; i < count; ++i) {
    const char* const ahead = line.run[count + i + kAhead];
    if (!is_plain) fetch_run(a, ahead);
    runs.v[i] = opened(a, line.run[count + i], room + i * run);
    runs.next[i] = is_plain ? ahead : nullptr;
  }
  values_of(a, weights, item.rows, runs, out.values);
}

inline std::vector<Item> items_of(const Attention& a) {
  const int64_t group = a.heads / a.kv_heads;
  std::vector<Item> items;
  for (int64_t seq = 0; seq < a.sequences; ++seq) {
    const int64_t first = a.query_starts[seq], count = a.query_starts[seq + 1] - first;
    for (int64_t row = 0; row < count * group; row += kRowBlock) {
      const int64_t left = count * group - row, rows = left < kRowBlock ? left : kRowBlock;
      const int64_t from = a.positions[first + row / group];
      int64_t to = 0;
      for (int64_t r = row / group; r <= (row + rows - 1) / group; ++r)
        to = std::max<int64_t>(to, a.sees[first + r]);
      for (int64_t head = 0; head < a.kv_heads; ++head)
        items.push_back({seq, head, row, rows, first, from, to});
    }
  }
  return items;
}

template <typename T>
inline const T* queries_of(const Attention& a, const Item& item, const T* q) {
  const int64_t group = a.heads / a.kv_heads;
  const int64_t row = (item.kv_head * a.tokens + item.first_token) * group + item.first_row;
  return q + row * a.size;
}

// A copy of the item's rows, 16 of them: products may read whole tiles.
template <typename T>
inline const T* padded_queries(const Attention& a, const Item& item, const T* q) {
  static thread_local Arena arena;
  auto* const copy = static_cast<T*>(arena.get(sizeof(T) * kRowBlock * a.size));
  std::memcpy(copy, queries_of(a, item, q), sizeof(T) * item.rows * a.size);
  std::memset(copy + item.rows * a.size, 0, sizeof(T) * (kRowBlock - item.rows) * a.size);
  return copy;
}

// All chunks of an item, merged as they come. `after` is the item that this thread will probably take next.
template <typename T>
inline void attend_item(const Attention& a, const Item& item, const Item* after, const T* q) {
  static thread_local Arena arena;
  const int64_t floats = partial_floats(a);
  auto* const room = static_cast<float*>(arena.get(8 * floats));
  [[maybe_unused]] const State state;
  const Partial whole = partial_at(a, room), part = partial_at(a, room + floats);
  const T* const rows = padded_queries(a, item, q);
  const int64_t first = first_chunk(a, item);
  const int64_t last = item.last_position / kChunk;
  for (int64_t chunk = first; chunk <= last; ++chunk) {
    const Next next = chunk < last ? Next{&item, chunk + 1}
                      : after      ? Next{after, first_chunk(a, *after)}
                                   : Next{};
    attend_chunk(a, item, rows, chunk, next, chunk == first ? whole : part);
    if (chunk > first) merge(a, item.rows, whole, part);
  }
  write_out<T>(a, item, whole);
}

// Few items and long contexts: chunks are spread over the threads and merged afterwards.
template <typename T>
inline void attend_split(const Attention& a, const std::vector<Item>& items, const T* q) {
  struct Job {
    int64_t item, chunk;
  };
  std::vector<Job> jobs;
  std::vector<int64_t> starts;
  for (size_t i = 0; i < items.size(); ++i) {
    starts.push_back(static_cast<int64_t>(jobs.size()));
    for (int64_t c = first_chunk(a, items[i]); c * kChunk <= items[i].last_position; ++c)
      jobs.push_back({static_cast<int64_t>(i), c});
  }
  starts.push_back(static_cast<int64_t>(jobs.size()));
  static thread_local Arena arena;
  const int64_t floats = partial_floats(a);
  auto* const room = static_cast<float*>(arena.get(4 * floats * static_cast<int64_t>(jobs.size())));
  parallel_for(static_cast<int64_t>(jobs.size()), [&](int64_t j) {
    [[maybe_unused]] const State state;
    const Item& item = items[jobs[j].item];
    const Next next = j + 1 < static_cast<int64_t>(jobs.size())
                          ? Next{&items[jobs[j + 1].item], jobs[j + 1].chunk}
                          : Next{};
    attend_chunk(a, item, padded_queries(a, item, q), jobs[j].chunk, next,
                 partial_at(a, room + j * floats));
  });
  for (size_t i = 0; i < items.size(); ++i) {
    const Partial whole = partial_at(a, room + starts[i] * floats);
    for (int64_t j = starts[i] + 1; j < starts[i + 1]; ++j)
      merge(a, items[i].rows, whole, partial_at(a, room + j * floats));
    write_out<T>(a, items[i], whole);
  }
}

template <typename T>
inline void attend(const Attention& a) {
  static thread_local Arena arena;
  auto* const q = static_cast<T*>(arena.get(sizeof(T) * a.tokens * a.heads * a.size));
  auto prepare = [&](int64_t token) { prepare_token<T>(a, token, q); };
  if (a.tokens >= 8) {
    parallel_for(a.tokens, prepare);
  } else {
    for (int64_t token = 0; token < a.tokens; ++token) prepare(token);
  }
  const std::vector<Item> items = items_of(a);
  const int64_t count = static_cast<int64_t>(items.size());
  if (count < 4 * thread_count() && items[0].last_position >= kChunk) return attend_split(a, items, q);
  parallel_for(count, [&](int64_t i) {
    attend_item(a, items[i], i + 1 < count ? &items[i + 1] : nullptr, q);
  });
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_ATTENTION_WALK_H_
