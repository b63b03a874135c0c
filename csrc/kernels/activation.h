// SPDX-License-Identifier: Apache-2.0
// The activations of the epilogue: relu, gelu (by erf), gelu_tanh and silu.
//
// They are part of the contract, so they are made of + - * / fma, compares, selects and exponent
// bits only: whoever repeats these operations gets these bits. There is no libm and no table.
// numerics/activations.py says the same in NumPy, line by line; docs/activations.md has the error
// measured over all 2^32 inputs (below 0.94 ulp).
//
// All but relu are x times a function that rises from 0 to 1 and is 1/2 at 0, a "gate" with
// gate(x) + gate(-x) = 1. So with tail(t) = t * gate(-t) for t = |x|:
//
//     f(x) = x - tail(x)     x >= 0
//     f(x) = 0 - tail(-x)    x < 0
//
// The second line asks for a small relative error of tail, down to where it underflows. It counts
// for no more in the first line, because tail(t) <= t/2 <= f(x). The tails are
//
//     silu       t * e / (1 + e)            e = exp(-t)
//     gelu_tanh  t * e / (1 + e)            e = exp(-2 sqrt(2/pi) (t + 0.044715 t^3))
//     gelu       t * e * P(u) / (t + b)     e = exp(-t^2/2), the rest is erfcx(t/sqrt 2) / 2
//
// One rounding costs up to 1 ulp of a result whose significand is larger than that of the
// intermediate, and exp turns an absolute error of its argument (105 has an ulp of 2^-17) into a
// relative one. So what enters the result at full weight is held as an unevaluated sum of two
// floats, and only the last steps round: the quotient, then either x - tail or, where the tail is
// subnormal, the scaling by a power of two.
//
// NaN stays NaN. The magnitude is first clamped to where the tail is 0 (below half the smallest
// subnormal, 2^-150), so that every lane stays finite: f(inf) = inf - 0 and f(-inf) = -0 - 0 = -0.
#pragma once

namespace nibblas {
namespace {

template <class T>
struct ActivationMath {
  using F32 = typename T::F32;
  using I32 = typename T::I32;

  struct Pair {  // hi + lo, |lo| <= ulp(hi)
    F32 hi, lo;
  };
  struct Exponential {  // mantissa * 2^exponent, with a mantissa of about sqrt(1/2) .. sqrt(2)
    Pair mantissa;
    I32 exponent;
  };

  // a + b exactly, if |a| >= |b| (Dekker).
  static Pair ordered_sum(F32 a, F32 b) {
    const F32 hi = T::add(a, b);
    return {hi, T::add(T::sub(a, hi), b)};
  }
  // a + b exactly (Knuth).
  static Pair exact_sum(F32 a, F32 b) {
    const F32 hi = T::add(a, b);
    const F32 b_in_hi = T::sub(hi, a);
    const F32 a_in_hi = T::sub(hi, b_in_hi);
    return {hi, T::add(T::sub(a, a_in_hi), T::sub(b, b_in_hi))};
  }
  // a * b exactly, as long as the low part does not underflow.
  static Pair exact_product(F32 a, F32 b) {
    const F32 hi = T::mul(a, b);
    return {hi, T::fma(a, b, T::neg(hi))};
  }
  // Relative error about 2^-47.
  static Pair product(Pair a, F32 b) {
    const Pair p = exact_product(a.hi, b);
    return {p.hi, T::fma(a.lo, b, p.lo)};
  }
  static Pair product(Pair a, Pair b) {
    const Pair p = product(a, b.hi);
    return {p.hi, T::fma(a.hi, b.lo, p.lo)};
  }
  // a / b rounded to one float, 0.5 ulp: a first quotient, then what it leaves of a.
  static F32 quotient(Pair a, Pair b) {
    const F32 reciprocal = T::div(T::set1(1.0f), b.hi);
    const F32 q = T::mul(a.hi, reciprocal);
    const F32 minus_q = T::neg(q);
    const F32 rest = T::add(T::fma(minus_q, b.hi, a.hi), a.lo);
    return T::fma(T::fma(minus_q, b.lo, rest), reciprocal, q);
  }

  // 2^n for -126 <= n <= 127.
  static F32 power_of_two(I32 n) {
    return T::from_bits(T::template shl<23>(T::add_i32(n, T::set1_i32(127))));
  }
  // Tails are computed 2^64 times too large, so that no low part of a small t underflows,
  static F32 enlarged(F32 t) { return T::mul(t, T::set1(18446744073709551616.0f)); }
  // and brought back here: a * 2^(n - 64) for -170 <= n <= 0, rounded once. In two halves, because
  // the power itself may be subnormal. The first product is exact: it is 0 or at least 2^-120.
  static F32 reduced(F32 a, I32 n) {
    const I32 whole = T::sub_i32(n, T::set1_i32(64));
    const I32 half = T::template sar<1>(whole);
    return T::mul(T::mul(a, power_of_two(half)), power_of_two(T::sub_i32(whole, half)));
  }

  // exp(x) for x.hi in [-120, 0]. Relative error of the mantissa: 2^-27.
  static Exponential exp(Pair x) {
    // n = rint(x / ln 2). Adding 1.5 * 2^23, where an ulp is 1, rounds to an integer and leaves it
    // in the low bits, negative ones too.
    const F32 shifter = T::set1(12582912.0f);
    const F32 shifted = T::fma(x.hi, T::set1(1.44269502f), shifter);
    const F32 n = T::sub(shifted, shifter);
    const I32 exponent = T::sub_i32(T::bits(shifted), T::bits(shifter));

    // r = x - n ln 2, |r| <= 0.347. The first fma is exact: n * hi is a multiple of 2^-24, x.hi one
    // of 2^-25 or more where n is not 0, and what is left is below 1/2, so it has at most 24 bits.
    const F32 r_hi = T::fma(n, T::set1(-0.693147182f), x.hi);
    const Pair r = ordered_sum(r_hi, T::fma(n, T::set1(1.90465421e-9f), x.lo));

    // (exp(r) - 1 - r) / r^2 on [-0.3466, 0.3466]: the error, times r^2 / exp(r), is 2^-28.2.
    const F32 h = r.hi;
    F32 q = T::set1(0.00138388446f);
    q = T::fma(q, h, T::set1(0.00836919062f));
    q = T::fma(q, h, T::set1(0.0416681021f));
    q = T::fma(q, h, T::set1(0.166665167f));
    q = T::fma(q, h, T::set1(0.49999994f));

    // exp(r) = (1 + h + h^2 q)(1 + r.lo)
    const Pair linear = ordered_sum(T::set1(1.0f), h);
    const Pair m = ordered_sum(linear.hi, T::fma(T::mul(h, h), q, linear.lo));
    return {{m.hi, T::fma(m.hi, r.lo, m.lo)}, exponent};
  }

  // min(|x|, limit); NaN stays NaN.
  static F32 clamped_magnitude(F32 x, float limit) {
    const F32 t = T::abs(x);
    return T::select(T::lt(T::set1(limit), t), T::set1(limit), t);
  }

  // f(x) of the head of this file. -0 - 0 is -0, so every result has the sign of x.
  // (The choice between x and -0 is made of bits: Clang 14 makes a maximum of a compare and select,
  // which loses the sign of a zero. A NaN of either sign is in the tail as well.)
  static F32 without_tail(F32 x, F32 tail) {
    const I32 magnitude = T::set1_i32(0x7fffffff);
    const I32 negative = T::and_i32(T::template sar<31>(T::bits(x)), magnitude);
    const I32 kept = T::xor_i32(negative, T::set1_i32(-1));  // all bits, or the sign alone
    return T::sub(T::from_bits(T::and_i32(T::bits(x), kept)), tail);
  }

  // t * exp(s) / (1 + exp(s)) for s <= 0.
  static F32 logistic_tail(F32 t, Pair s) {
    const Exponential e = exp(s);
    // Below 2^-32 it matters no more to 1 + e, and 2^n stays normal.
    const F32 power = power_of_two(T::max_i32(e.exponent, T::set1_i32(-32)));
    Pair denominator = ordered_sum(T::set1(1.0f), T::mul(e.mantissa.hi, power));
    denominator.lo = T::fma(e.mantissa.lo, power, denominator.lo);
    return reduced(quotient(product(e.mantissa, enlarged(t)), denominator), e.exponent);
  }

  static F32 silu(F32 x) {
    const F32 t = clamped_magnitude(x, 112.0f);  // the tail is 0 from 108.7
    return without_tail(x, logistic_tail(t, {T::neg(t), T::zero_f32()}));
  }

  static F32 gelu_tanh(F32 x) {
    const F32 t = clamped_magnitude(x, 11.0f);  // the tail is 0 from 10.78
    // s = -t (c1 + c3 t^2), c1 = 2 sqrt(2/pi), c3 = 0.044715 c1, both as two floats
    const Pair c1 = {T::set1(1.59576917f), T::set1(-4.53406805e-8f)};
    const Pair c3 = {T::set1(0.0713548139f), T::set1(2.39883247e-9f)};
    const Pair cubic = product(c3, exact_product(t, t));
    Pair slope = exact_sum(c1.hi, cubic.hi);
    slope.lo = T::add(slope.lo, T::add(c1.lo, cubic.lo));
    return without_tail(x, logistic_tail(t, product(slope, T::neg(t))));
  }

  static F32 gelu(F32 x) {
    const F32 t = clamped_magnitude(x, 14.5f);  // the tail is 0 from 14.36
    const Exponential e = exp(exact_product(T::mul(T::set1(-0.5f), t), t));

    // P(u) = (t + b) erfcx(t/sqrt 2) / 2, b = 633/512, u = (t - 4) / (t + 4), t in [0, 14.5]:
    // relative error 2^-29.1. The factor t + b makes it flat, from 0.618 at u = -1 (flattest there,
    // where u has its largest error) to 0.431, so the error of u hardly matters; b is such that c0
    // is almost a float.
    const F32 u = T::div(T::sub(t, T::set1(4.0f)), T::add(t, T::set1(4.0f)));
    F32 q = T::set1(-7.05423881e-5f);
    q = T::fma(q, u, T::set1(-7.51337648e-5f));
    q = T::fma(q, u, T::set1(0.000651728478f));
    q = T::fma(q, u, T::set1(-0.000149086307f));
    q = T::fma(q, u, T::set1(-0.00488467747f));
    q = T::fma(q, u, T::set1(0.015932126f));
    q = T::fma(q, u, T::set1(-0.024903167f));
    q = T::fma(q, u, T::set1(0.0116536487f));
    q = T::fma(q, u, T::set1(0.0433939323f));
    q = T::fma(q, u, T::set1(-0.136973247f));
    const F32 c0 = T::set1(0.494365096f);
    Pair p;
    p.hi = T::fma(q, u, c0);
    p.lo = T::fma(q, u, T::sub(c0, p.hi));

    const Pair numerator = product(product(e.mantissa, enlarged(t)), p);
    const Pair denominator = exact_sum(t, T::set1(1.236328125f));
    return without_tail(x, reduced(quotient(numerator, denominator), e.exponent));
  }
};

// y < 0 ? 0 : y, so -0 and NaN pass.
template <class T>
inline typename T::F32 relu(typename T::F32 x) {
  return T::select(T::lt(x, T::zero_f32()), T::zero_f32(), x);
}
// x (1 + erf(x / sqrt 2)) / 2
template <class T>
inline typename T::F32 gelu(typename T::F32 x) {
  return ActivationMath<T>::gelu(x);
}
// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
template <class T>
inline typename T::F32 gelu_tanh(typename T::F32 x) {
  return ActivationMath<T>::gelu_tanh(x);
}
// x / (1 + exp(-x))
template <class T>
inline typename T::F32 silu(typename T::F32 x) {
  return ActivationMath<T>::silu(x);
}

}  // namespace
}  // namespace nibblas
