// SPDX-License-Identifier: Apache-2.0
// AVX-512 with VNNI: vpdpbusd adds four exact u8 x s8 products to an int32 lane in one instruction.
#pragma once

#include "simd/avx512.h"

namespace nibblas {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr const char* kName = "avx512vnni";

  // 6 rows x 4 panels: 24 accumulators, 4 operands and a broadcast of the 32 zmm; 10 loads feed
  // 24 dot products.
  static constexpr int kGemmPanels = 4;
  static constexpr bool kPinsSums = false;
  static constexpr int kFarRows = 9;  // never: see kPrefetchFarBytes

  static I32 dot_i16(I32 acc, I32 a, I32 b) { return _mm512_dpwssd_epi32(acc, a, b); }

  // Unsigned weight operands times signed activation codes, in int32: see kSegment.
  struct U8Dot : I32Dot<Avx512Vnni, U8Dot> {
    using W = I32;
    using Acc = I32;
    using X = I32;
    static constexpr bool kSplits = true;
    static constexpr bool kPlaneIsOperand = true;
    static X load_x(const int32_t* p) { return _mm512_set1_epi32(*p); }
    static Acc step(Acc acc, W w, X x) { return _mm512_dpbusd_epi32(acc, w, x); }
  };
  template <int top>
  using DotFor = U8Dot;
  template <int top>
  using IntegerDotFor = DotFor<top>;  // where x may be -128
};

}  // namespace
}  // namespace nibblas
