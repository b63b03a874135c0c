// SPDX-License-Identifier: Apache-2.0
// Armv8.2 with dot products: sdot adds four products of signed bytes to an int32 lane.
#pragma once

#include "simd/neon_registers.h"

namespace nibblas {
namespace {

struct NeonDotprod : NeonRegisters {
  static constexpr const char* kName = "neon_dotprod";

  // Both operands are signed: below 128 they are as they are, 8-bit codes are less 128 by one eor,
  // and their zero points, too. The words of x are lanes of a register: see load_column.
  template <bool large>
  struct SignedDot : I32Dot<NeonDotprod, SignedDot<large>> {
    using W = I32;
    using Acc = I32;
    static constexpr int kBias = large ? 128 : 0;
    static constexpr bool kSplits = true;
    template <int part>
    static W operand(W quad) {
      if constexpr (!large) return quad;
      return xor_i32(quad, set1_i32(static_cast<int32_t>(0x80808080)));
    }
    template <int MR>
    static Column<MR> load_column(const int32_t* p) { return NeonRegisters::load_column<MR>(p); }
    template <int m, int MR>
    static Lane<m % 4> row(const Column<MR>& column) { return lane_of<m>(column); }
    template <int lane>
    static Acc step(Acc acc, W w, Lane<lane> x) {
      const int8x16_t words = vreinterpretq_s8_s32(x.words);
      return map<I32>(acc, w, [words](int32x4_t sum, int32x4_t v) {
        return vdotq_laneq_s32(sum, vreinterpretq_s8_s32(v), words, lane);
      });
    }
    static I32 add_product(I32 total, Acc acc, I32 factor) {
      return mul_add_i32(acc, factor, total);
    }
  };

  template <int top>
  using DotFor = SignedDot<(top > 127)>;
  template <int top>
  using IntegerDotFor = DotFor<top>;
};

}  // namespace
}  // namespace nibblas
