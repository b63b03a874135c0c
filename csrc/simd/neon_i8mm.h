// SPDX-License-Identifier: Apache-2.0
// Armv8.2 with the int8 matrix instructions, which multiply unsigned with signed bytes, so that
// codes are operands as they stand: usdot adds four products to an int32 lane, usmmla eight to each
// of four, of two outputs and two rows of x.
#pragma once

#include "simd/neon_registers.h"

namespace nibblas {
namespace {

struct NeonI8mm : NeonRegisters {
  static constexpr const char* kName = "neon_i8mm";

  // Expanded codes: an operand is two quads zipped, a register for eight k of two outputs. A sum
  // is a register for two rows and two outputs: of a pair of rows, the first Acc has outputs 0 .. 7
  // and the second 8 .. 15. 6 rows are 24 registers of sums, 4 operands and 3 of x of the 32; per 2
  // quads 24 usmmla, 8 loads and 3 zips, where usdot takes 48, 8 and 0.
  struct MatrixDot : I32Dot<NeonI8mm, MatrixDot> {
    using W = I32;  // half an operand, outputs 0 .. 7 or 8 .. 15
    using Acc = I32;
    struct Operand {
      I32 halves[2];
    };
    template <int MR>
    struct TwoColumns {
      Column<MR> first, second;
    };
    static constexpr int kQuads = 2;
    static constexpr bool kPairsRows = true;
    static Operand join(I32 p, I32 q) {
      return {{{vzip1q_s32(p.a, q.a), vzip2q_s32(p.a, q.a), vzip1q_s32(p.b, q.b),
                vzip2q_s32(p.b, q.b)},
               {vzip1q_s32(p.c, q.c), vzip2q_s32(p.c, q.c), vzip1q_s32(p.d, q.d),
                vzip2q_s32(p.d, q.d)}}};
    }
    static void store_w(uint8_t* p, const Operand& w) {
      store_i32(p, w.halves[0]);
      store_i32(p + 64, w.halves[1]);
    }
    template <int MR>
    static TwoColumns<MR> load_column(const int32_t* p) {
      return {NeonRegisters::load_column<MR>(p), NeonRegisters::load_column<MR>(p + MR)};
    }
    // Rows m and m + 1; beside the last of an odd number anything.
    template <int m, int MR>
    static int32x4_t row(const TwoColumns<MR>& x) {
      const int32x4_t p = x.first.words[m / 4];
      const int32x4_t q = x.second.words[m / 4];
      return m % 4 ? vzip2q_s32(p, q) : vzip1q_s32(p, q);
    }
    static Acc step(Acc acc, W w, int32x4_t x) {
      return map<I32>(acc, w, [x](int32x4_t sum, int32x4_t v) {
        return vusmmlaq_s32(sum, vreinterpretq_u8_s32(v), vreinterpretq_s8_s32(x));
      });
    }
    // The sums of two rows, to each row its own.
    static void part_rows(Acc& p, Acc& q) {
      const Acc first = {vuzp1q_s32(p.a, p.b), vuzp1q_s32(p.c, p.d), vuzp1q_s32(q.a, q.b),
                         vuzp1q_s32(q.c, q.d)};
      q = {vuzp2q_s32(p.a, p.b), vuzp2q_s32(p.c, p.d), vuzp2q_s32(q.a, q.b),
           vuzp2q_s32(q.c, q.d)};
      p = first;
    }
    static I32 add_product(I32 total, Acc acc, I32 factor) {
      return mul_add_i32(acc, factor, total);
    }
  };

  struct MixedDot : I32Dot<NeonI8mm, MixedDot> {
    using ManyRows = MatrixDot;
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
