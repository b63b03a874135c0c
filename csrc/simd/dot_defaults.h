// SPDX-License-Identifier: Apache-2.0
// What most ways of multiplying have in common; a target's Dot inherits it and says what differs.
#pragma once

#include <cstdint>

#include "simd/unroll.h"

namespace nibblas {
namespace {

// Two activation codes of one sign that may be this large together, for any two codes of 8 bits.
constexpr int kSafePair = 128;
static_assert(255 * kSafePair <= 32767);

template <class Dot>
struct DotDefaults {
  using ManyRows = Dot;                 // how codes that are expanded first are multiplied
  using OneRow = Dot;                   // how a single row of x is, with scales
  using Swept = Dot;                    // how 8-bit codes per channel are, by several rows
  static constexpr int kQuads = 1;      // quads of codes that make an operand: 1, or 2 by `join`
  static constexpr int kQuadParts = 1;  // operands that a quad of codes gives
  static constexpr int kBias = 0;       // operands are less than the codes by this much
  static constexpr int kMostRows = 64;  // of a tile, where registers hold fewer than the target's
  // Whether two rows share their sums, up to `part_rows`, and a step takes half an operand.
  static constexpr bool kPairsRows = false;
  static constexpr bool kWideX = false;  // whether x words hold two int16 instead of four int8
  static constexpr bool kHalvesX = false;  // or halves of them: see HalvesDot
  static constexpr bool kRestsX = false;   // or four int8 without their rests: see PairDot
  // Whether Acc is another type than the sum, from `empty` on to `widen`, after most_steps(greatest
  // operand) steps at most.
  static constexpr bool kNarrow = false;
  static constexpr bool kSplits = false;  // whether small tiles have too few sums: multiply_steps
  static constexpr bool kPlaneIsOperand = false;  // a row of 8-bit codes as it stands

  // A step with operand `part` of a quad.
  template <int part, class Acc, class W, class X>
  static NIBBLAS_INLINE Acc step_part(Acc acc, W w, X x) { return Dot::step(acc, w, x); }

  // The words of x that the MR rows of a tile multiply an operand with, and that of row m.
  template <int MR>
  static NIBBLAS_INLINE const int32_t* load_column(const int32_t* p) { return p; }
  template <int m, int MR>
  static NIBBLAS_INLINE auto row(const int32_t* column) { return Dot::load_x(column + m); }
};

// The rest of a Dot whose operands W and sums Acc are I32 of the simd type T. (Templates, since T
// is not complete where its own Dots are defined, and GCC warns of __m512i as an argument of one.)
template <class T, class Dot>
struct I32Dot : DotDefaults<Dot> {
  template <int part, class W>
  static W operand(W quad) { return quad; }
  static auto load_w(const uint8_t* p) { return T::load_i32(p); }
  template <class W>
  static void store_w(uint8_t* p, W w) { T::store_i32(p, w); }
  static auto empty() { return T::zero_i32(); }
  template <class Acc>
  static Acc widen(Acc acc) { return acc; }
  // total + acc * factor, the factor (-128 .. 255) as `as_factor` has made it.
  template <class Factor>
  static Factor as_factor(Factor factor) { return factor; }
  template <class Acc>
  static Acc add_product(Acc total, Acc acc, Acc factor) {
    return T::add_i32(total, T::mul_i32(acc, factor));
  }
};

// 8-bit codes and a single row of x, where widening each code costs too much: an activation code is
// 16 * high + low, both -8 .. 8. Pair sums of whole codes with either stay in the int16 of `Narrow`
// for 8 steps (8 * 2 * 255 * 8 = 32,640). Words of x are the low halves of four codes, then the
// high ones.
template <class T, class Narrow>
struct HalvesDot : I32Dot<T, HalvesDot<T, Narrow>> {
  struct Acc {
    typename Narrow::Acc low, high;
  };
  using W = typename Narrow::W;
  using X = typename Narrow::X;
  static constexpr int kQuadParts = 2;
  static constexpr bool kNarrow = true;
  static constexpr bool kHalvesX = true;
  static constexpr int64_t most_steps(int top) { return 2 * (32767 / (2 * 8 * top)); }
  static Acc empty() { return {T::zero_i32(), T::zero_i32()}; }
  static X load_x(const int32_t* p) { return Narrow::load_x(p); }
  template <int part>
  static NIBBLAS_INLINE Acc step_part(Acc acc, W w, X x) {
    auto& half = part % 2 ? acc.high : acc.low;
    half = Narrow::step(half, w, x);
    return acc;
  }
  static W widen(Acc acc) {
    return T::dot_i16(Narrow::widen(acc.low), acc.high, T::set1_i32(0x00100010));
  }
};

// 8-bit codes and several rows of x: sums of two products of whole codes stay in int16 where the
// two activation codes are small, -128 .. 128 in all (see kSafePair), as nearly all pairs are.
// What the others have more is taken from them and multiplied apart: see rests.h. So 32 products
// are three instructions, as few as with saturation; widening takes four.
template <class T, class Narrow, int rows = 64>
struct PairDot : I32Dot<T, PairDot<T, Narrow, rows>> {
  using W = typename Narrow::W;
  using Acc = typename Narrow::Acc;
  using X = typename Narrow::X;
  static constexpr int kMostRows = rows;
  static constexpr bool kPlaneIsOperand = true;
  static constexpr bool kRestsX = true;
  static X load_x(const int32_t* p) { return Narrow::load_x(p); }
  static Acc step(Acc acc, W w, X x) {
    return T::add_i32(acc, Narrow::widen(Narrow::multiply(w, x)));
  }
  static uint32_t large_pairs(const int8_t* x) { return Narrow::large_pairs(x); }
};

}  // namespace
}  // namespace nibblas
