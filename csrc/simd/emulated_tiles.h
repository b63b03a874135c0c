// SPDX-License-Identifier: Apache-2.0
// What AmxTiles does, in plain C++: with it (-DNIBBLAS_EMULATE_TILES=ON) the kernels for tiles run,
// and are tested, on any CPU that has their vectors.
#pragma once

#include <cstdint>
#include <cstring>

namespace nibblas {
namespace {

class EmulatedTiles {
 public:
  void begin(int rows, int64_t depth) {
    memset(tiles_, 0, sizeof tiles_);
    for (int tile = 0; tile < 8; ++tile) {
      tiles_[tile].rows = tile < 6 ? rows : static_cast<int>(depth / 4);
      tiles_[tile].bytes = tile == 4 || tile == 5 ? static_cast<int>(depth) : 64;
    }
  }
  void end() { begin(0, 0); }
  template <int tile>
  void zero() { memset(tiles_[tile].data, 0, sizeof tiles_[tile].data); }
  template <int tile>
  void load(const void* from, int64_t stride) {
    zero<tile>();
    for (int row = 0; row < tiles_[tile].rows; ++row) {
      memcpy(tiles_[tile].data[row], static_cast<const char*>(from) + row * stride,
             static_cast<size_t>(tiles_[tile].bytes));
    }
  }
  template <int tile>
  void store(void* to, int64_t stride) {
    for (int row = 0; row < tiles_[tile].rows; ++row) {
      memcpy(static_cast<char*>(to) + row * stride, tiles_[tile].data[row],
             static_cast<size_t>(tiles_[tile].bytes));
    }
  }
  template <int c, int a, int b>
  void dot_unsigned() {
    dot(tiles_[c], tiles_[a], tiles_[b], [](uint8_t w) { return int32_t{w}; });
  }
  template <int c, int a, int b>
  void dot_signed() {
    dot(tiles_[c], tiles_[a], tiles_[b],
        [](uint8_t w) { return int32_t{static_cast<int8_t>(w)}; });
  }

 private:
  struct Tile {
    int rows, bytes;
    uint8_t data[16][64];
  };

  template <class Widen>
  static void dot(Tile& c, const Tile& a, const Tile& b, const Widen& widen) {
    for (int m = 0; m < c.rows; ++m) {
      int32_t sums[16];
      memcpy(sums, c.data[m], sizeof sums);
      for (int k = 0; k < a.bytes / 4; ++k) {
        for (int n = 0; n < 16; ++n) {
          int32_t sum = 0;
          for (int i = 0; i < 4; ++i) {
            sum += static_cast<int8_t>(a.data[m][4 * k + i]) * widen(b.data[k][4 * n + i]);
          }
          sums[n] = static_cast<int32_t>(static_cast<uint32_t>(sums[n]) +
                                         static_cast<uint32_t>(sum));
        }
      }
      memcpy(c.data[m], sums, sizeof sums);
    }
  }

  Tile tiles_[8];
};

}  // namespace
}  // namespace nibblas
