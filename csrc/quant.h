// A linear step over quantised weights, whole numbers or e4m3, dequantised in registers.
//
// A weight is a run of bytes that holds tiles of 16 outputs. A tile is blocks of inputs: first the headers
// of all blocks, with their scales, then from a whole line on the codes, in units of 32 inputs. A layer's
// weight is one or more segments (q, k and v, say), each of one format: format, inputs of a group, tiles,
// offset in 64 bytes.
//
//   codes of a unit    in eight steps of four inputs: byte 4j + i of a step is output j's code of input i
//                      8 bits  [8 steps][64], the code plus 128
//                      4 bits  [4][64]: low halves are step 2q, high halves step 2q + 1
//                      5 bits  the same, then [64]: bit s is the fifth bit of step s
//                      6 bits  the same, then [2][64]: bits 2t and 2t + 1 of line h the high ones of step 4h + t
//                      e4m3    [8 steps][64], but byte 4j + 2b + h is input 2h + b: the low bytes of words are
//                              inputs 0 and 1, the high bytes 2 and 3, pairs for products in bf16
//   header of a block  see Format
//
// Activations become whole numbers once a row: 16 bits beside codes of 8, unless the scheme asks for 8 (kI8D,
// kI8G); 8 bits with a scale for each 32 inputs beside smaller codes, which lose more than that does.
// Sums of a group are exact; groups are added in f32 in ascending order: a row's result never depends on its
// neighbours. Beside e4m3 activations become bf16, as beside dense weights.
#ifndef RANVIER_QUANT_H_
#define RANVIER_QUANT_H_

#include <cstdint>

#include "linear.h"

namespace ranvier {

constexpr int64_t kUnit = 32;    // inputs
constexpr int64_t kSuper = 256;  // inputs of a block with scales in two levels
constexpr int64_t kLanes = 16;   // outputs of a tile

enum class Format : int32_t {
  kI8 = 0,      // one block; f32 scale[16]
  kI8D = 1,     // the same; activations of 8 bits
  kQ8 = 2,      // f16 scale[16]
  kQ4 = 3,      // f16 scale[16]; zero is 8
  kQ4Zero = 4,  // f16 scale[16], u8 zero[16]
  kQ4Add = 5,   // f16 scale[16], f16 offset[16]
  kQ5 = 6,      // f16 scale[16]; zero is 16
  kQ5Add = 7,   // f16 scale[16], f16 offset[16]
  kK4 = 8,      // f16 outer[16], f16 least[16], u8 scale[8][16], u8 minimum[8][16]
  kK5 = 9,      // the same
  kK6 = 10,     // f16 outer[16], i8 scale[16][16]; zero is 32
  kF8 = 11,       // e4m3, one block; f32 scale[16]
  kF8Group = 12,  // e4m3; f32 scale[16]
  kF8Block = 13,  // e4m3; f32 scale of all 16
  kI8G = 14,    // as kI8; activations of 8 bits with a scale for each 64 inputs
};
constexpr int32_t kFormats = 15;

struct FormatInfo {
  int32_t bits, header;  // header in bytes
  bool is_whole;         // one block spans all inputs
  bool is_super;         // blocks of kSuper inputs
};

constexpr FormatInfo kInfo[kFormats] = {
    {8, 64, true, false},  {8, 64, true, false},  {8, 32, false, false}, {4, 32, false, false},
    {4, 48, false, false}, {4, 64, false, false}, {5, 32, false, false}, {5, 64, false, false},
    {4, 320, false, true}, {5, 320, false, true}, {6, 288, false, true},
    {8, 64, true, false},  {8, 64, false, false}, {8, 4, false, false},  {8, 64, true, false},
};

// What a format's rows are made of: whole numbers of 16 or of 8 bits, those of 8 with a scale a row or a
// group, or bf16.
enum class Inputs { kWide, kNarrow, kGrouped, kHalves };

constexpr bool is_fp8(Format f) { return f >= Format::kF8 && f <= Format::kF8Block; }

constexpr Inputs inputs_of(Format f) {
  return is_fp8(f)           ? Inputs::kHalves
         : f == Format::kI8D ? Inputs::kNarrow
         : f == Format::kI8 || f == Format::kQ8 ? Inputs::kWide
                                                : Inputs::kGrouped;
}

// Inputs that share a scale of their own, where inputs are kGrouped; a call takes its formats' least.
constexpr int64_t input_group(Format f) { return f == Format::kI8G ? 64 : kUnit; }

// The code that stands for 0 is 2 to this power, where it is one for all; else 0.
constexpr int zero_bits(Format f) {
  return f == Format::kI8 || f == Format::kI8D || f == Format::kQ8 || f == Format::kI8G ? 7
         : f == Format::kQ4                                        ? 3
         : f == Format::kQ5                                        ? 4
         : f == Format::kK6                                        ? 5
                                                                   : 0;
}

struct Segment {
  Format format;
  int32_t group, tiles, offset;  // offset in 64 bytes

  int64_t block(int64_t depth) const {
    const FormatInfo& info = kInfo[static_cast<int32_t>(format)];
    return info.is_whole ? depth : info.is_super ? kSuper : group;
  }
  // Where a tile's codes begin.
  int64_t codes(int64_t depth) const {
    const int64_t headers = depth / block(depth) * kInfo[static_cast<int32_t>(format)].header;
    return (headers + 63) / 64 * 64;
  }
  int64_t tile_bytes(int64_t depth) const {
    return codes(depth) + depth * kLanes * kInfo[static_cast<int32_t>(format)].bits / 8;
  }
};

constexpr int64_t kSegments = 4;

struct Quantised : Linear {
  const uint8_t* blob;
  Segment segments[kSegments];
  int64_t strides[kSegments];  // bytes of a tile
  int64_t segment_count;
};

// Rows of the embedding, which is the head's weight.
struct QuantisedRows {
  const uint8_t* blob;
  Segment segment;
  int64_t depth, size, count;  // size: elements of a row
  const int32_t* ids;
  float* out;
  float scale;
};

// quant_vector.cc is compiled once for each of these.
namespace generic { void quantised(const Quantised&); void rows(const QuantisedRows&); }
namespace avx2 { void quantised(const Quantised&); void rows(const QuantisedRows&); }
namespace avx512 { void quantised(const Quantised&); void rows(const QuantisedRows&); }
namespace bf16 { void quantised(const Quantised&); void rows(const QuantisedRows&); }

}  // namespace ranvier

#endif  // RANVIER_QUANT_H_
