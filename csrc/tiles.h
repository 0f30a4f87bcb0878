// AMX tile state: eight tiles of 16 rows of 64 bytes, on while an object of Tiles lives.
#ifndef RANVIER_TILES_H_
#define RANVIER_TILES_H_

#include <immintrin.h>

#include <cstdint>

namespace ranvier {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) {
      bytes[i] = 64;
      rows[i] = 16;
    }
  }
};

struct Tiles {  // off again at the end: idle threads carry no tile state
  Tiles() {
    static const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

}  // namespace
}  // namespace ranvier

#endif  // RANVIER_TILES_H_
