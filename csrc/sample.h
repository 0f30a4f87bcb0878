// Sampling: one token a row from its logits, by the row's own parameters, without a sort.
//
// Order: edits (penalties, bias), allowed mask, temperature, min-p, top-k, top-p, then the inverse of the
// cumulative distribution in ascending id at the row's uniform number. Ties at a threshold are all kept.
#ifndef RANVIER_SAMPLE_H_
#define RANVIER_SAMPLE_H_

#include <cstdint>

namespace ranvier {

struct SampleRow {
  int64_t vocab;
  const float* logits;
  int64_t edit_count;
  const int32_t* edits;    // [edit_count, 3]: id, count | seen << 30, bias bits
  const int32_t* allowed;  // bits, or null
  float temperature, top_p, min_p, uniform, repetition, frequency, presence;
  int32_t top_k, target, logprobs;  // -1: none asked
  int64_t top_count;
  int32_t* out;  // [3 + 2 top_count]: token, rank, log-probability, ids, log-probabilities
};

// sample_vector.cc is compiled once for each of these.
namespace generic { void sample(const SampleRow&); }
namespace avx2 { void sample(const SampleRow&); }
namespace avx512 { void sample(const SampleRow&); }

}  // namespace ranvier

#endif  // RANVIER_SAMPLE_H_
