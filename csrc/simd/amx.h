// SPDX-License-Identifier: Apache-2.0
// AMX-INT8: eight tiles of up to 16 rows x 64 bytes, and an instruction that multiplies two of them
// into a third. TDPBSUD adds to int32 element [m][n] of C the products of four signed bytes each
// of row m of A with unsigned ones of rows 0 .. 15 of B: with x in A and a panel's plane rows in
// B (16 outputs x 4 codes are 64 bytes), that is the dot product of the contract, exact.
//
// Sums of the tiles are combined in AVX-512: see kernels/tiled.h.
#pragma once

#include "simd/avx512vnni.h"

namespace nibblas {
namespace {

// Vectors beside the tiles: 16-bit products for codes that are multiplied by their factor.
struct AmxVectors : Avx512Vnni {
  static I32 mul_i16(I32 a, I32 b) { return _mm512_mullo_epi16(a, b); }
  static I32 sub_i16(I32 a, I32 b) { return _mm512_sub_epi16(a, b); }
};

// C: tiles 0 .. 3, A (x): 4 and 5, B (weights): 6 and 7.
class AmxTiles {
 public:
  // Tiles of x have `rows` rows of `depth` codes, those of weights depth / 4 rows of one panel.
  // Costs some tens of cycles, and until `end` a context switch saves 8 KB more: once a call.
  void begin(int rows, int64_t depth) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    static_assert(sizeof shapes == 64, "as LDTILECFG reads it");
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_x = tile == 4 || tile == 5;
      shapes.row_bytes[tile] = static_cast<uint16_t>(is_x ? depth : 64);
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : depth / 4);
    }
#if defined(_MSC_VER) && !defined(__clang__)
    _tile_loadconfig(&shapes);
#else
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
#endif
  }

#if defined(_MSC_VER) && !defined(__clang__)
  void end() { _tile_release(); }
  template <int tile>
  void zero() { _tile_zero(tile); }
  template <int tile>
  void load(const void* from, int64_t stride) { _tile_loadd(tile, from, stride); }
  template <int tile>
  void store(void* to, int64_t stride) { _tile_stored(tile, to, stride); }
  template <int c, int a, int b>
  void dot_unsigned() { _tile_dpbsud(c, a, b); }
  template <int c, int a, int b>
  void dot_signed() { _tile_dpbssd(c, a, b); }
#else
  // Spelled out: the intrinsics of GCC 12 paste a tile's number as it is written, so that no
  // template can give it, and do not say that they read memory.
  NIBBLAS_INLINE void end() { __asm__ volatile("tilerelease"); }
  template <int tile>
  NIBBLAS_INLINE void zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile)); }
  template <int tile>
  NIBBLAS_INLINE void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0"
                     :
                     : "i"(tile), "r"(from), "r"(stride)
                     : "memory");
  }
  template <int tile>
  NIBBLAS_INLINE void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                     :
                     : "i"(tile), "r"(to), "r"(stride)
                     : "memory");
  }
  // Weights unsigned; weights signed.
  template <int c, int a, int b>
  NIBBLAS_INLINE void dot_unsigned() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
  template <int c, int a, int b>
  NIBBLAS_INLINE void dot_signed() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
#endif
};

}  // namespace
}  // namespace nibblas
