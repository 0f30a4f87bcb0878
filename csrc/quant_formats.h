// What tells the formats apart: the codes of a unit as pairs of int16, and the scales of a block.
#ifndef RANVIER_QUANT_FORMATS_H_
#define RANVIER_QUANT_FORMATS_H_

#include "quant_steps.h"

namespace ranvier {
namespace {

constexpr const FormatInfo& info_of(Format f) { return kInfo[static_cast<int32_t>(f)]; }

constexpr int64_t unit_bytes(Format f) { return kUnit * kLanes * info_of(f).bits / 8; }

// Codes of pairs 4q .. 4q+3 of a unit, each int16 [16 outputs][2 inputs].
struct Quad {
  W32 of[4];
};

// Loaded once: without it the compiler loads a line again for each shift.
RANVIER_INLINE W32 load_line(const uint8_t* p) {
  W32 line = load_as<W32>(p);
#if defined(__AVX512F__)
  asm("" : "+v"(line));
#endif
  return line;
}

template <int kBits>
RANVIER_INLINE Quad quad_of(const uint8_t* unit, int64_t q) {
  Quad quad;
  if constexpr (kBits == 8) {
    for (int t = 0; t < 4; ++t)
      quad.of[t] = reinterpret_cast<W32>(
          __builtin_convertvector(load_as<B32>(unit + 128 * q + 32 * t), S32));
    return quad;
  }
  const W32 line = load_line(unit + 64 * q);
  for (int t = 0; t < 4; ++t) quad.of[t] = t < 3 ? line >> (4 * t) & 15 : line >> 12;
  if constexpr (kBits == 5) {
    const W32 high = load_as<W32>(unit + 256) >> static_cast<uint16_t>(4 * q);
    for (int t = 0; t < 4; ++t) quad.of[t] |= (high >> t & 1) << 4;
  }
  if constexpr (kBits == 6) {
    const W32 high = load_as<W32>(unit + 256 + q / 2 * 64) >> static_cast<uint16_t>(q % 2 * 8);
    for (int t = 0; t < 4; ++t) quad.of[t] |= (high >> (2 * t) & 3) << 4;
  }
  return quad;
}

// The code that stands for 0, where it is one for all.
constexpr int32_t zero_of(Format f) {
  return f == Format::kQ4 ? 8 : f == Format::kQ5 ? 16 : f == Format::kK6 ? 32 : 0;
}

// Scales of one group of a tile: value = scale * sum of products + shift * sum of inputs.
struct Scales {
  V16 scale, shift;
};

template <Format F>
constexpr bool kHasShift = F != Format::kI8 && F != Format::kI8D && F != Format::kQ8;

// Of the first group of a block, or what its groups share in a format of two levels.
template <Format F>
RANVIER_INLINE Scales block_scales(const uint8_t* h) {
  if constexpr (info_of(F).is_whole) return {splat(1.0f), V16{}};  // the kernel applies it at the end
  const V16 scale = halves_to_floats(h);
  if constexpr (F == Format::kQ4Zero) return {scale, -scale * bytes_to_floats(h + 32)};
  if constexpr (F == Format::kQ4Add || F == Format::kQ5Add) return {scale, halves_to_floats(h + 32)};
  if constexpr (F == Format::kK4 || F == Format::kK5) return {scale, -halves_to_floats(h + 32)};
  if constexpr (zero_of(F) != 0 && !info_of(F).is_super)
    return {scale, scale * -static_cast<float>(zero_of(F))};
  return {scale, V16{}};
}

// Of group g, from what the groups of its block share.
template <Format F>
RANVIER_INLINE Scales group_scales(const uint8_t* h, int64_t g, Scales block) {
  if constexpr (F == Format::kK4 || F == Format::kK5)
    return {block.scale * bytes_to_floats(h + 64 + 16 * g),
            block.shift * bytes_to_floats(h + 192 + 16 * g)};
  if constexpr (F == Format::kK6) {
    const V16 scale = block.scale * signed_to_floats(h + 32 + 16 * g);
    return {scale, scale * -static_cast<float>(zero_of(F))};
  }
  return block;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_FORMATS_H_
