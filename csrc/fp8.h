// e4m3 numbers as wider ones, exactly: every e4m3 value is a bf16 value. In whole numbers, since what XLA
// runs flushes denormals.
#ifndef RANVIER_FP8_H_
#define RANVIER_FP8_H_

#include <cstdint>
#include <cstring>

namespace ranvier {
namespace {

// The f32 bits of a code.
inline uint32_t fp8_bits(uint8_t code) {
  const uint32_t magnitude = code & 0x7f;
  const float steps = static_cast<float>(static_cast<int32_t>(magnitude)) * (1.0f / 512);
  uint32_t small;
  std::memcpy(&small, &steps, 4);
  const uint32_t bits = magnitude < 8 ? small : (magnitude << 20) + (120u << 23);
  return bits | static_cast<uint32_t>(code & 0x80) << 24;
}

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_FP8_H_
