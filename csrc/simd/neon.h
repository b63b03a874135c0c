// SPDX-License-Identifier: Apache-2.0
// Any 64-bit Arm (armv8-a), without dot products: products of bytes add up in int16, and these in
// int32, as neighbouring lanes; the lanes of an output meet at the end.
//
// The other way would be the four k of an output apart from each other, as 4 x 16 outputs: the sums
// of an output then are one lane (6 registers a row instead of 8), but each byte of x must be
// broadcast, 4 instructions more per 8 multiplications, where a word of x needs one.
#pragma once

#include "simd/neon_registers.h"

namespace nibblas {
namespace {

struct Neon : NeonRegisters {
  static constexpr const char* kName = "neon";

  // Sums of 8 registers a row: 3 rows x 1 panel are 24, with 4 of operands and 3 broadcasts of the
  // 32; 7 loads feed 24 multiplications.
  static constexpr int kGemmRows = 3;
  static constexpr int kGemvRows = 2;
  static constexpr int kStraightRows = 4;  // see straight_rows
  static constexpr int two_level_straight_rows(int) { return kStraightRows; }
  static constexpr int gemv_panels(int) { return 1; }

  // Lanes k0 .. k3 of two outputs each: of the low and the high half of each register of weights.
  struct I16 {
    int16x8_t a, b, c, d;
  };
  struct I16Pair {
    I16 low, high;
  };
  struct I32Pair {
    I32 low, high;
  };

  static int8x16_t bytes(int32x4_t p) { return vreinterpretq_s8_s32(p); }
  static int16x8_t product_low(int32x4_t w, int8x16_t x) {
    return vmull_s8(vget_low_s8(bytes(w)), vget_low_s8(x));
  }
  static int16x8_t product_high(int32x4_t w, int8x16_t x) { return vmull_high_s8(bytes(w), x); }
  static int16x8_t add_low(int16x8_t acc, int32x4_t w, int8x16_t x) {
    return vmlal_s8(acc, vget_low_s8(bytes(w)), vget_low_s8(x));
  }
  static int16x8_t add_high(int16x8_t acc, int32x4_t w, int8x16_t x) {
    return vmlal_high_s8(acc, bytes(w), x);
  }

  // Operands of at most 31: a lane holds the sums of 32767 / (2 * top * 128) steps (4 bits: 8, 5
  // bits: 4), after which two lanes still make an int16: 2 * 8 * 15 * 128 = 30,720. Per 8 steps and
  // row 64 multiplications, 8 broadcasts and 8 for the sums, 6.4 multiply-adds an instruction.
  struct NarrowDot : DotDefaults<NarrowDot> {
    using W = I32;
    using X = int8x16_t;
    using Acc = I16Pair;
    static constexpr bool kNarrow = true;
    static constexpr int64_t most_steps(int top) { return 32767 / (2 * 128 * top); }
    template <int part>
    static I32 operand(I32 quad) { return quad; }
    static W load_w(const uint8_t* p) { return load_i32(p); }
    static void store_w(uint8_t* p, W w) { store_i32(p, w); }
    static X load_x(const int32_t* p) { return bytes(vld1q_dup_s32(p)); }
    static Acc empty() {
      const int16x8_t zero = vdupq_n_s16(0);
      return {{zero, zero, zero, zero}, {zero, zero, zero, zero}};
    }
    static Acc step(Acc acc, W w, X x) {
      const auto low = [x](int16x8_t sum, int32x4_t v) { return add_low(sum, v, x); };
      const auto high = [x](int16x8_t sum, int32x4_t v) { return add_high(sum, v, x); };
      return {map<I16>(acc.low, w, low), map<I16>(acc.high, w, high)};
    }
    static I32 widen(Acc acc) {
      return map<I32>(acc.low, acc.high, [](int16x8_t low, int16x8_t high) {
        return vpaddlq_s16(vpaddq_s16(low, high));
      });
    }
    static I32 as_factor(I32 factor) { return factor; }
    static I32 add_product(I32 total, Acc acc, I32 factor) {
      return mul_add_i32(widen(acc), factor, total);
    }
  };

  // Larger ones, 8-bit codes less 128 by one eor: a lane holds two products (2 * 128 * 127 =
  // 32,512), of k and k + 4, so an operand is two quads. Per 2 quads and row 16 multiplications, 8
  // additions to int32 and 2 broadcasts, 4.9 multiply-adds an instruction. (Widened to int16
  // ahead, with the lane of x in the multiplication: 4.) `any_x` is for x of -128: 2 * 128 * 128
  // is too much.
  template <bool large, bool any_x>
  struct WideDot : DotDefaults<WideDot<large, any_x>> {
    using W = I32Pair;
    struct X {
      int8x16_t low, high;
    };
    using Acc = I32Pair;
    static constexpr int kQuads = 2;
    static constexpr int kMostRows = 2;  // 16 sums, 8 operands, 2 broadcasts, products
    static constexpr int kBias = large ? 128 : 0;
    static constexpr bool kNarrow = true;
    static constexpr int64_t most_steps(int) { return INT64_MAX / 64; }
    template <int part>
    static I32 operand(I32 quad) {
      if constexpr (!large) return quad;
      return xor_i32(quad, set1_i32(static_cast<int32_t>(0x80808080)));
    }
    static W join(I32 low, I32 high) { return {low, high}; }
    static W load_w(const uint8_t* p) { return {load_i32(p), load_i32(p + 64)}; }
    static void store_w(uint8_t* p, W w) {
      store_i32(p, w.low);
      store_i32(p + 64, w.high);
    }
    template <int m, int MR>
    static X row(const int32_t* p) {
      return {bytes(vld1q_dup_s32(p + m)), bytes(vld1q_dup_s32(p + MR + m))};
    }
    static Acc empty() { return {zero_i32(), zero_i32()}; }
    static Acc step(Acc acc, W w, X x) {
      const auto low = [x](int32x4_t sum, int32x4_t v0, int32x4_t v1) {
        if constexpr (any_x) {
          return vpadalq_s16(vpadalq_s16(sum, product_low(v0, x.low)), product_low(v1, x.high));
        } else {
          return vpadalq_s16(sum, add_low(product_low(v0, x.low), v1, x.high));
        }
      };
      const auto high = [x](int32x4_t sum, int32x4_t v0, int32x4_t v1) {
        if constexpr (any_x) {
          return vpadalq_s16(vpadalq_s16(sum, product_high(v0, x.low)), product_high(v1, x.high));
        } else {
          return vpadalq_s16(sum, add_high(product_high(v0, x.low), v1, x.high));
        }
      };
      return {map<I32>(acc.low, w.low, w.high, low), map<I32>(acc.high, w.low, w.high, high)};
    }
    static I32 widen(Acc acc) {
      return map<I32>(acc.low, acc.high,
                      [](int32x4_t low, int32x4_t high) { return vpaddq_s32(low, high); });
    }
    static I32 as_factor(I32 factor) { return factor; }
    static I32 add_product(I32 total, Acc acc, I32 factor) {
      return mul_add_i32(widen(acc), factor, total);
    }
  };

  template <int top>
  using DotFor = typename Choose<(top < 32), NarrowDot, WideDot<(top > 127), false>>::type;
  template <int top>
  using IntegerDotFor = typename Choose<(top < 128), DotFor<top>, WideDot<true, true>>::type;
};

}  // namespace
}  // namespace nibblas
