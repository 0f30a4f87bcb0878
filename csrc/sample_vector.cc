// One row's sample; compiled once for each ISA, RANVIER_ISA its namespace.
#include "sample.h"

#include <algorithm>
#include <vector>

#include "vec.h"

namespace ranvier {
namespace {

constexpr float kNever = -3.0e38f;
constexpr int kBins = 4096;
constexpr float kBinsPerUnit = 64.0f;  // of scaled logits below the greatest

struct Weighted {
  float logit, weight;
};

struct Room {  // grows to the vocabulary once, one per thread
  std::vector<float> logits, weights;
  std::vector<Weighted> near;
};

Room& room() {
  static thread_local Room it;
  return it;
}

template <typename To>
To bits_to(int32_t bits) {
  To x;
  std::memcpy(&x, &bits, 4);
  return x;
}

int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

void apply_edits(const SampleRow& a, float* x) {
  for (int64_t i = 0; i < a.edit_count; ++i) {
    const int32_t* const edit = a.edits + 3 * i;
    float& logit = x[edit[0]];
    const float count = static_cast<float>(edit[1] & ((1 << 30) - 1));
    if (edit[1] >> 30) logit = logit > 0 ? logit / a.repetition : logit * a.repetition;
    logit -= a.frequency * count;
    if (count > 0) logit -= a.presence;
    logit += bits_to<float>(edit[2]);
  }
}

void apply_mask(const SampleRow& a, float* x) {
  for (int64_t i = 0; i < a.vocab; ++i)
    if (!(a.allowed[i >> 5] >> (i & 31) & 1) || !(x[i] > kNever)) x[i] = kNever;
}

// The row's logits after edits and mask: its own, or a changed copy.
const float* edited(const SampleRow& a) {
  if (a.edit_count == 0 && a.allowed == nullptr) return a.logits;
  std::vector<float>& copy = room().logits;
  copy.assign(a.logits, a.logits + a.vocab);
  apply_edits(a, copy.data());
  if (a.allowed != nullptr) apply_mask(a, copy.data());
  return copy.data();
}

float greatest(const float* x, int64_t count) {
  V16 best = splat(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const V16 v = load16(x + i);
    best = v > best ? v : best;
  }
  float top = max16(best);
  for (; i < count; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

int32_t first_at_least(const float* x, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i)
    if (x[i] >= value) return static_cast<int32_t>(i);
  return 0;
}

// weights[i] = exp((x[i] - top) / t), 0 below min_p.
void weigh(const SampleRow& a, const float* x, float top, float* weights) {
  const float rate = 1.0f / a.temperature;
  for (int64_t i = 0; i < a.vocab; i += 16) {
    const int64_t n = a.vocab - i;
    V16 w = exp16((load_some(x + i, n) - top) * rate);
    w = w >= a.min_p ? w : V16{};
    store_some(weights + i, w, n);
  }
}

// The smallest logit that stays when the greatest are kept until their mass reaches `need`.
float boundary(std::vector<Weighted>& near, double need) {
  auto low = near.begin(), high = near.end();
  const auto is_greater = [](const Weighted& a, const Weighted& b) { return a.logit > b.logit; };
  while (high - low > 1) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, is_greater);
    double mass = 0;
    for (auto it = low; it != middle; ++it) mass += it->weight;
    if (mass >= need) {
      high = middle;
    } else {
      need -= mass;
      low = middle;
    }
  }
  return low->logit;
}

// Logits below the result are dropped; `mass_of` says what each kept token counts: 1 or its weight.
template <typename MassOf>
float threshold(const SampleRow& a, const float* x, const float* weights, float top, double need,
                MassOf mass_of) {
  static thread_local double bins[kBins];
  std::fill(bins, bins + kBins, 0.0);
  const float rate = kBinsPerUnit / a.temperature;
  const auto bin_of = [&](float logit) {
    const float at = (top - logit) * rate;
    return at < kBins - 1 ? static_cast<int>(at) : kBins - 1;
  };
  for (int64_t i = 0; i < a.vocab; ++i)
    if (weights[i] > 0) bins[bin_of(x[i])] += mass_of(weights[i]);
  int bin = 0;
  while (bin < kBins - 1 && bins[bin] < need) need -= bins[bin++];
  std::vector<Weighted>& near = room().near;
  near.clear();
  for (int64_t i = 0; i < a.vocab; ++i)
    if (weights[i] > 0 && bin_of(x[i]) == bin) near.push_back({x[i], mass_of(weights[i])});
  return near.empty() ? -INFINITY : boundary(near, need);
}

void drop_below(const float* x, float least, int64_t count, float* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = x[i] >= least ? weights[i] : 0.0f;
}

double mass_of_all(const float* weights, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; i += 16) total += sum16(load_some(weights + i, count - i));
  return total;
}

// The first token whose cumulative weight passes the goal; the last kept one where rounding denies it.
int32_t invert(const float* weights, int64_t count, double goal) {
  double before = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = std::min<int64_t>(16, count - i);
    const double after = before + sum16(load_some(weights + i, n));
    if (after > goal) {
      double at = before;
      for (int64_t j = i; j < i + n; ++j) {
        at += weights[j];
        if (weights[j] > 0) last = j;
        if (at > goal && weights[j] > 0) break;
      }
      return static_cast<int32_t>(last);
    }
    for (int64_t j = i; after > before && j < i + n; ++j)
      if (weights[j] > 0) last = j;
    before = after;
  }
  return static_cast<int32_t>(last);
}

int32_t draw(const SampleRow& a, const float* x) {
  const float top = greatest(x, a.vocab);
  if (a.temperature < 1e-5f) return first_at_least(x, a.vocab, top);
  std::vector<float>& weights = room().weights;
  weights.resize(static_cast<size_t>(a.vocab));
  float* const w = weights.data();
  weigh(a, x, top, w);
  if (a.top_k > 0 && a.top_k < a.vocab) {
    const auto one = [](float) { return 1.0f; };
    drop_below(x, threshold(a, x, w, top, a.top_k, one), a.vocab, w);
  }
  double total = mass_of_all(w, a.vocab);
  if (a.top_p < 1.0f) {
    const auto itself = [](float weight) { return weight; };
    drop_below(x, threshold(a, x, w, top, a.top_p * total, itself), a.vocab, w);
    total = mass_of_all(w, a.vocab);
  }
  return invert(w, a.vocab, a.uniform * total);
}

// Ids of the `count` greatest logits, descending, the lower id first among equals.
void best_of(const float* x, int64_t vocab, int64_t count, std::vector<int32_t>& ids) {
  const auto is_better = [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  ids.clear();
  for (int64_t i = 0; i < vocab && count > 0; ++i) {
    const bool is_full = static_cast<int64_t>(ids.size()) == count;
    if (is_full && !(x[i] > x[ids.front()])) continue;
    if (is_full) {
      std::pop_heap(ids.begin(), ids.end(), is_better);
      ids.pop_back();
    }
    ids.push_back(static_cast<int32_t>(i));
    std::push_heap(ids.begin(), ids.end(), is_better);
  }
  std::sort_heap(ids.begin(), ids.end(), is_better);
}

// Rank and log-probabilities, of the raw logits.
void score(const SampleRow& a, int32_t token) {
  const float* const x = a.logits;
  const float top = greatest(x, a.vocab);
  double sum = 0;
  for (int64_t i = 0; i < a.vocab; i += 16) {
    const int64_t n = a.vocab - i;
    V16 e = exp16(load_some(x + i, n) - top);
    for (int64_t lane = n; lane < 16; ++lane) e[lane] = 0;
    sum += sum16(e);
  }
  const float logsum = top + static_cast<float>(std::log(sum));
  int32_t rank = 1;
  for (int64_t i = 0; i < a.vocab; ++i) rank += x[i] > x[token];
  a.out[1] = rank;
  a.out[2] = bits_of(x[token] - logsum);
  static thread_local std::vector<int32_t> ids;
  best_of(x, a.vocab, std::min<int64_t>(a.logprobs, a.top_count), ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    a.out[3 + i] = ids[i];
    a.out[3 + a.top_count + i] = bits_of(x[ids[i]] - logsum);
  }
}

}  // namespace

namespace RANVIER_ISA {

void sample(const SampleRow& a) {
  const int32_t token = a.target >= 0 ? a.target : draw(a, edited(a));
  a.out[0] = token;
  if (a.logprobs >= 0) score(a, token);
}

}  // namespace RANVIER_ISA
}  // namespace ranvier
