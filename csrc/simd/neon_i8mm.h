// SPDX-License-Identifier: Apache-2.0
// Armv8.2 with the int8 matrix instructions: usdot adds four products of unsigned and signed bytes
// to an int32 lane, so that codes are operands as they stand.
#pragma once

#include "simd/neon_registers.h"

namespace nibblas {
namespace {

struct NeonI8mm : NeonRegisters {
  static constexpr const char* kName = "neon_i8mm";

  struct MixedDot : I32Dot<NeonI8mm, MixedDot> {
    using W = I32;
    using Acc = I32;
    static constexpr bool kSplits = true;
    static constexpr bool kPlaneIsOperand = true;
    template <int MR>
    static Column<MR> load_column(const int32_t* p) { return NeonRegisters::load_column<MR>(p); }
    template <int m, int MR>
    static Lane<m % 4> row(const Column<MR>& column) { return lane_of<m>(column); }
    template <int lane>
    static Acc step(Acc acc, W w, Lane<lane> x) {
      const int8x16_t words = vreinterpretq_s8_s32(x.words);
      return map<I32>(acc, w, [words](int32x4_t sum, int32x4_t v) {
        return vusdotq_laneq_s32(sum, vreinterpretq_u8_s32(v), words, lane);
      });
    }
    static I32 add_product(I32 total, Acc acc, I32 factor) {
      return mul_add_i32(acc, factor, total);
    }
  };

  template <int top>
  using DotFor = MixedDot;
  template <int top>
  using IntegerDotFor = MixedDot;
};

}  // namespace
}  // namespace nibblas
