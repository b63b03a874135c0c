// SPDX-License-Identifier: Apache-2.0
// What the inner loops multiply: codes as unsigned integers or as floats, themselves or looked up.
#pragma once

#include "kernels/code_reader.h"
#include "simd/dot_defaults.h"

namespace nibblas {
namespace {

// compute="int8": c = start + sum of products in int32, then acc = fma(float(c), a * s, acc).
template <class T, class Dot_>
struct IntOps : Dot_ {
  using Dot = Dot_;
  static constexpr bool kFloat = false;
  using Sum = typename T::I32;
  using Zero = typename T::I32;
  static Zero as_zeros(typename T::I32 zeros) {  // of codes, to those of operands
    return Dot::kBias ? T::sub_i32(zeros, T::set1_i32(Dot::kBias)) : zeros;
  }
  static Sum first(int32_t start) { return T::set1_i32(start); }
  static Sum first(int32_t start, Zero zeros) { return T::mul_i32(T::set1_i32(start), zeros); }
  static Sum load_sum(const void* p) { return T::load_i32(p); }
  static void store_sum(void* p, Sum c) { T::store_i32(p, c); }
  static typename T::F32 combine(Sum c, float a, typename T::F32 s, typename T::F32 acc) {
    return T::fma(T::to_f32(c), T::mul(T::set1(a), s), acc);
  }
};

// compute="float32": p = fma(x, value, p) from 0, then acc = fma(p, s, acc).
template <class T>
struct FloatOps : DotDefaults<FloatOps<T>> {  // kSplits never: the order of additions is fixed
  static constexpr bool kFloat = true;
  static constexpr int kQuadParts = 4;
  using W = typename T::F32;
  using Acc = typename T::F32;
  using Sum = typename T::F32;
  using Zero = typename T::F32;
  static Zero as_zeros(typename T::I32 zeros) { return T::to_f32(zeros); }
  static W load_w(const uint8_t* p) { return T::from_bits(T::load_i32(p)); }
  static void store_w(uint8_t* p, W w) { T::store_i32(p, T::bits(w)); }
  template <int MR>
  static NIBBLAS_INLINE auto load_column(const int32_t* p) {
    return T::template load_column<MR>(p);
  }
  template <int m, int MR, class Column>
  static NIBBLAS_INLINE auto row(const Column& column) { return T::template lane_of<m>(column); }
  static Sum first(int32_t) { return T::zero_f32(); }
  static Sum first(int32_t, Zero) { return T::zero_f32(); }
  template <class X>
  static NIBBLAS_INLINE Acc step(Acc p, W w, X x) { return T::fma(x, w, p); }
  static Sum load_sum(const void* p) { return T::from_bits(T::load_i32(p)); }
  static void store_sum(void* p, Sum c) { T::store_i32(p, T::bits(c)); }
  static typename T::F32 combine(Sum p, float, typename T::F32 s, typename T::F32 acc) {
    return T::fma(p, s, acc);
  }
};

// Codes as they are. Small operands may take a way of their own: below 128 on AVX2.
template <class T, int Bits, class Dot = typename T::template DotFor<(1 << Bits) - 1>>
struct IntCodes {
  using Ops = IntOps<T, Dot>;
  using ManyRows = IntCodes<T, Bits, typename Dot::ManyRows>;
  using OneRow = IntCodes<T, Bits, typename Dot::OneRow>;
  using Swept = IntCodes<T, Bits, typename Dot::Swept>;
  static constexpr int kBits = Bits;
  static constexpr bool kLookup = false;
  explicit IntCodes(const Weight&) {}
  template <int part>
  NIBBLAS_INLINE typename T::I32 operand(typename T::I32 quad) const {
    return Dot::template operand<part>(quad);
  }
};

// 4-bit codes through a codebook whose operands this Dot takes.
template <class T, class Dot_>
struct IntLookup {
  using Dot = Dot_;
  using Ops = IntOps<T, Dot>;
  using ManyRows = IntLookup<T, typename Dot::ManyRows>;
  using OneRow = IntLookup<T, typename Dot::OneRow>;
  using Swept = IntLookup;
  static constexpr int kBits = 4;
  static constexpr bool kLookup = true;
  typename T::ByteTable table;
  explicit IntLookup(const Weight& w) : table(T::byte_table(w.operands)) {}
  template <int part>
  NIBBLAS_INLINE typename T::I32 operand(typename T::I32 quad) const {
    return Dot::template operand<part>(T::lookup(table, quad));
  }
};

// values[code] of a codebook.
template <class T>
struct FloatLookup {
  using Ops = FloatOps<T>;
  using ManyRows = FloatLookup<T>;
  using OneRow = FloatLookup<T>;
  using Swept = FloatLookup<T>;
  static constexpr int kBits = 4;
  static constexpr bool kLookup = true;
  typename T::FloatTable table;
  explicit FloatLookup(const Weight& w) : table(T::float_table(w.values)) {}
  template <int part, int rows>
  NIBBLAS_INLINE typename T::F32 operand(typename T::I32 quad) const {
    if constexpr (part > 0) quad = T::template shr<8 * part>(quad);
    return T::lookup_f32(table, quad);
  }
};

// float(code) - zero, for the zero point of the whole matrix. Bytes of a quad may hold more bits
// than the code's. `rows` of x share an operand; 0 when codes are expanded.
template <class T, int Bits>
struct FloatCodes {
  using Ops = FloatOps<T>;
  using ManyRows = FloatCodes<T, Bits>;
  using OneRow = FloatCodes<T, Bits>;
  using Swept = FloatCodes<T, Bits>;
  static constexpr int kBits = Bits;
  static constexpr bool kLookup = false;
  static constexpr int kMask = (1 << Bits) - 1;
  // What is in place: the last code, or the last two of 8 bits, lie beyond the mantissa's 23 bits.
  static constexpr int kInPlace = Bits == 8 ? 2 : 3;
  typename T::F32 zero;
  typename T::F32 offsets[kInPlace];
  explicit FloatCodes(const Weight& w) : zero(T::set1(static_cast<float>(w.zero))) {
    for (int i = 0; i < kInPlace; ++i) {
      offsets[i] = T::set1(static_cast<float>((1 << (23 - 8 * i)) + w.zero));
    }
  }

  template <int part, int rows>
  NIBBLAS_INLINE typename T::F32 operand(typename T::I32 quad) const {
    // One row waits for its operands (0.83 to 0.95 of the time so), more rows for registers.
    if constexpr (rows == 1) return in_mantissa<part>(quad);
    if constexpr (part > 0) quad = T::template shr<8 * part>(quad);
    if constexpr (part < 3 || Bits < 8) quad = T::and_i32(quad, T::set1_i32(kMask));
    return T::sub(T::to_f32(quad), zero);
  }

  // A code at bit n of the mantissa, beside the exponent that makes this bit worth 1, is the float
  // 2^(23 - n) + code: no conversion, mostly no shift, and the subtraction is as exact.
  template <int part>
  NIBBLAS_INLINE typename T::F32 in_mantissa(typename T::I32 quad) const {
    constexpr bool moved = part >= kInPlace;
    constexpr int by = Bits == 8 ? 2 : 1;  // bytes
    constexpr int at = moved ? part - by : part;
    constexpr int exponent = (127 + 23 - 8 * at) << 23;
    if constexpr (moved) quad = T::template shr<8 * by>(quad);
    const auto code = T::and_or(quad, T::set1_i32(kMask << 8 * at), T::set1_i32(exponent));
    return T::sub(T::from_bits(code), offsets[at]);
  }
};

// The same of 4 bits where a look-up is one instruction. One row takes both ways, to use the pipes
// that shuffle and the others: the first code needs only the look-up, the last a shift anyway.
template <class T>
struct FloatNibbles {
  using Ops = FloatOps<T>;
  using ManyRows = FloatNibbles<T>;
  using OneRow = FloatNibbles<T>;
  using Swept = FloatNibbles<T>;
  static constexpr int kBits = 4;
  static constexpr bool kLookup = false;
  FloatLookup<T> lookup;
  FloatCodes<T, 4> codes;
  explicit FloatNibbles(const Weight& w) : lookup(w), codes(w) {}
  template <int part, int rows>
  NIBBLAS_INLINE typename T::F32 operand(typename T::I32 quad) const {
    if constexpr (rows == 1 && (part == 1 || part == 2)) {
      return codes.template in_mantissa<part>(quad);
    } else {
      return lookup.template operand<part, rows>(quad);
    }
  }
};

// Operand `part` of what a step has read, for so many rows of x.
template <int part, class Reader, int rows, class Operands>
NIBBLAS_INLINE auto operand_of(const Operands& operands, const typename Reader::Rows& read) {
  using Ops = typename Operands::Ops;
  if constexpr (Ops::kFloat) {
    const auto quad = Reader::template quad<part / 4, true>(read);
    return operands.template operand<part % 4, rows>(quad);
  } else if constexpr (Ops::kQuads == 2) {
    return Ops::join(operands.template operand<0>(Reader::template quad<2 * part>(read)),
                     operands.template operand<0>(Reader::template quad<2 * part + 1>(read)));
  } else {
    const auto quad = Reader::template quad<part / Ops::kQuadParts>(read);
    return operands.template operand<part % Ops::kQuadParts>(quad);
  }
}

template <class Operands_>
struct Use {
  using Operands = Operands_;
};

// Integer operands up to here may take another way than larger ones: see DotFor.
constexpr int kSmallOperand = 127;

// What the operands of a weight are less than its codes, and so its zero point, too.
template <class T>
constexpr int operand_bias(const Weight& w) {
  return w.top_operand <= kSmallOperand ? T::template DotFor<kSmallOperand>::kBias
                                        : T::template DotFor<255>::kBias;
}

// Whether a product with scales of so many rows takes halves.
template <class T>
bool takes_halves(const Weight& w, int64_t rows) {
  return T::template DotFor<255>::OneRow::kHalvesX && w.top_operand > kSmallOperand && rows == 1 &&
         !w.two_level;
}

// f(Use<...>{}) with what a product with this weight multiplies.
template <class T, class F>
void with_int_operands(const Weight& w, const F& f) {
  if (w.codebook_type == CodebookType::none) {
    with_bits(w.bits, [&](auto bits) { f(Use<IntCodes<T, decltype(bits)::value>>{}); });
  } else if (w.top_operand <= kSmallOperand) {
    f(Use<IntLookup<T, typename T::template DotFor<kSmallOperand>>>{});
  } else {
    f(Use<IntLookup<T, typename T::template DotFor<255>>>{});
  }
}

template <class T, class F>
void with_float_operands(const Weight& w, const F& f) {
  if (w.codebook_type != CodebookType::none) return f(Use<FloatLookup<T>>{});
  with_bits(w.bits, [&](auto bits) {
    constexpr int Bits = decltype(bits)::value;
    using Codes = FloatCodes<T, Bits>;
    f(Use<typename Choose<T::kLooksUpFloats && Bits == 4, FloatNibbles<T>, Codes>::type>{});
  });
}

}  // namespace
}  // namespace nibblas
