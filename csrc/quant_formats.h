// What tells the formats apart: the codes of a unit as bytes, and the scales of a block.
#ifndef RANVIER_QUANT_FORMATS_H_
#define RANVIER_QUANT_FORMATS_H_

#include "quant_steps.h"

namespace ranvier {
namespace {

constexpr const FormatInfo& info_of(Format f) { return kInfo[static_cast<int32_t>(f)]; }

constexpr int64_t unit_bytes(Format f) { return kUnit * kLanes * info_of(f).bits / 8; }

// Loaded once: without it the compiler loads a line again for each use.
RANVIER_INLINE W32 load_line(const uint8_t* p) {
  W32 line = load_as<W32>(p);
#if defined(__AVX512F__)
  asm("" : "+v"(line));
#endif
  return line;
}

// Codes of steps 2q and 2q + 1 of a unit. kSplit: the latter times 16, which saves a shift.
struct Codes {
  W64 of[2];
};

template <int kBits, bool kSplit>
RANVIER_INLINE Codes codes_of(const uint8_t* unit, int q) {
  if constexpr (kBits == 8)
    return {{load_as<W64>(unit + 128 * q), load_as<W64>(unit + 128 * q + 64)}};
  constexpr uint16_t kLow = 0x0f0f, kUpper = 0xf0f0, kFifth = 0x1010, kHigh = 0x3030;
  const W32 line = load_line(unit + 64 * q);
  W32 even = line & kLow, odd = kSplit ? line & kUpper : line >> 4 & kLow;
  if constexpr (kBits == 5) {
    const W32 high = load_as<W32>(unit + 256);
    even |= (q < 2 ? high << (4 - 2 * q) : high >> (2 * q - 4)) & kFifth;
    odd |= (q < 2 ? high << (3 - 2 * q) : high >> (2 * q - 3)) & kFifth;
  }
  if constexpr (kBits == 6) {
    const W32 high = load_as<W32>(unit + 256 + 64 * (q / 2));
    even |= (q % 2 ? high : high << 4) & kHigh;
    odd |= (q % 2 ? high >> 2 : high << 2) & kHigh;
  }
  return {{reinterpret_cast<W64>(even), reinterpret_cast<W64>(odd)}};
}

// Scales of one group of a tile: value = scale * sum of products + shift * sum of inputs.
struct Scales {
  V16 scale, shift;
};

template <Format F>
constexpr bool kHasShift = zero_bits(F) == 0;

// Of the first group of a block, or what its groups share in a format of two levels.
template <Format F>
RANVIER_INLINE Scales block_scales(const uint8_t* h) {
  if constexpr (info_of(F).is_whole) return {splat(1.0f), V16{}};  // the kernel applies it at the end
  const V16 scale = halves_to_floats(h);
  if constexpr (F == Format::kQ4Zero) return {scale, -scale * bytes_to_floats(h + 32)};
  if constexpr (F == Format::kQ4Add || F == Format::kQ5Add) return {scale, halves_to_floats(h + 32)};
  if constexpr (F == Format::kK4 || F == Format::kK5) return {scale, -halves_to_floats(h + 32)};
  return {scale, V16{}};
}

// Of group g, from what the groups of its block share.
template <Format F>
RANVIER_INLINE Scales group_scales(const uint8_t* h, int64_t g, Scales block) {
  if constexpr (F == Format::kK4 || F == Format::kK5)
    return {block.scale * bytes_to_floats(h + 64 + 16 * g),
            block.shift * bytes_to_floats(h + 192 + 16 * g)};
  if constexpr (F == Format::kK6) return {block.scale * signed_to_floats(h + 32 + 16 * g), V16{}};
  return block;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_QUANT_FORMATS_H_
