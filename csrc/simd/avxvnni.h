// SPDX-License-Identifier: Apache-2.0
// AVX2 with AVX-VNNI: vpdpbusd adds four exact u8 x s8 products to an int32 lane in one
// instruction. In its VEX form, which CPUs without AVX-512 have, it takes 16 ymm and no broadcast.
#pragma once

#include "simd/avx2.h"

namespace nibblas {
namespace {

struct AvxVnni : Avx2 {
  static constexpr const char* kName = "avxvnni";
  static constexpr int kFarRows = 9;  // never, as avx512vnni

  // 6 rows x 1 panel, as in avx2: 12 accumulators, 2 operands and 1 broadcast are 15 of the 16 ymm;
  // 8 loads feed 12 dot products.
  static constexpr int gemv_panels(int rows) { return rows == 1 ? 2 : 1; }

  static I32 dot_i16(I32 acc, I32 a, I32 b) {
    return {_mm256_dpwssd_avx_epi32(acc.lo, a.lo, b.lo),
            _mm256_dpwssd_avx_epi32(acc.hi, a.hi, b.hi)};
  }

  // Unsigned weight operands times signed activation codes, in int32: see kSegment.
  struct U8Dot : I32Dot<AvxVnni, U8Dot> {
    using W = I32;
    using Acc = I32;
    using X = __m256i;
    static constexpr bool kSplits = true;
    static constexpr bool kPlaneIsOperand = true;
    static X load_x(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Acc step(Acc acc, W w, X x) {
      return {_mm256_dpbusd_avx_epi32(acc.lo, w.lo, x), _mm256_dpbusd_avx_epi32(acc.hi, w.hi, x)};
    }
  };
  template <int top>
  using DotFor = U8Dot;
  template <int top>
  using IntegerDotFor = DotFor<top>;  // where x may be -128
};

}  // namespace
}  // namespace nibblas
