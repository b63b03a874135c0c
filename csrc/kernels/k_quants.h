// SPDX-License-Identifier: Apache-2.0
// How groups of K-quants, IQ4_NL and IQ4_XS get their scales: least squares over a few starting
// scales, then the sub-scales and the codes with the rounded scale of the block. A lane is a group;
// numerics/k_quants.py states the same rule operation by operation.
#pragma once

#include "kernels/blocks.h"

namespace nibblas {
namespace {

constexpr bool is_k_quant(BlockType type) {
  return type == BlockType::q2_k || type == BlockType::q3_k || type == BlockType::q4_k ||
         type == BlockType::q5_k || type == BlockType::q6_k || type == BlockType::iq4_nl ||
         type == BlockType::iq4_xs;
}

// No type holds more: 65,504 * 128 * 32 = 2.7e8. Below it, no sum of squares overflows.
constexpr int32_t kTooLargeBits = 0x4e800000;  // 2^30

// Halfway between the values of the table: border i is the least that is nearest to value i.
constexpr float kIq4Borders[16] = {-128,  -115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16,
                                   -4.5f, 7,       19,     31.5f, 45.5f, 61,  79,     101};

// Starting scales: with mins the range of the group becomes levels plus one of these steps...
constexpr float kRangeSteps[] = {0, -0.5f, -1, 0.5f, -1.5f};
// ... and without, its extreme value becomes the end of the codes times 1 plus one of these parts.
constexpr float kEndSteps[] = {0, 1, -1, 2, -2, 3, 4};
// What is tried around the rounded sub-scale.
constexpr float kNear[] = {0, -1, 1};

// 1 / d, or 0 where d is 0.
template <class T>
inline typename T::F32 inverse_or_zero(typename T::F32 d) {
  return T::select(T::eq(d, T::zero_f32()), T::zero_f32(), T::div(T::set1(1), d));
}

template <class T>
inline typename T::F32 clamped(typename T::F32 a, float low, float high) {
  const auto raised = T::select(T::lt(a, T::set1(low)), T::set1(low), a);
  return T::select(T::lt(T::set1(high), raised), T::set1(high), raised);
}

// The x of largest magnitude, the first such.
template <class T>
inline typename T::F32 first_extreme(const typename T::F32* x, int depth) {
  auto extreme = x[0];
  for (int k = 1; k < depth; ++k) {
    extreme = T::select(T::lt(T::abs(extreme), T::abs(x[k])), x[k], extreme);
  }
  return extreme;
}

template <class T>
inline typename T::F32 to_half_and_back(typename T::F32 a) {
  uint16_t half[16];
  T::store_f16(half, a);
  return T::load_f16(half);
}

// For each lane the value that f picks among the lanes of its block, seen as an array.
template <class T, int groups, class F>
inline typename T::F32 per_block(typename T::F32 a, const F& pick) {
  float lanes[16];
  T::store(lanes, a);
  for (int block = 0; block < 16; block += groups) {
    const float picked = pick(lanes + block);
    for (int g = 0; g < groups; ++g) lanes[block + g] = picked;
  }
  return T::load(lanes);
}

template <class T, class B>
struct KQuant {
  using F32 = typename T::F32;
  using I32 = typename T::I32;
  static constexpr int kDepth = B::kDepth;
  static constexpr int kBits = B::kType == BlockType::q2_k   ? 2
                               : B::kType == BlockType::q3_k ? 3
                               : B::kType == BlockType::q5_k ? 5
                               : B::kType == BlockType::q6_k ? 6
                                                             : 4;
  static constexpr float kTop = (1 << kBits) - 1;  // the last code

  // Writes codes to q, and all of the scales. False if a float16 overflows.
  static bool encode(const F32* x, I32* q, BlockScales* scales) {
    F32 d, m, sub, sub_m = T::zero_f32();
    if constexpr (B::kHasMins) {
      with_mins(x, q, d, m, sub, sub_m);
    } else {
      m = T::zero_f32();
      without_mins(x, q, d, sub);
    }
    constexpr int blocks = 16 / B::kGroups;
    uint16_t half_d[16], half_m[16];
    int32_t ints[16], ints_m[16];
    T::store_f16(half_d, d);
    T::store_f16(half_m, m);
    T::store_i32(ints, T::to_i32(sub));
    T::store_i32(ints_m, T::to_i32(sub_m));
    bool finite = true;
    for (int b = 0; b < blocks; ++b) {
      const int first = b * B::kGroups;
      scales[b].d = half_d[first];
      scales[b].m = half_m[first];
      finite &= (half_d[first] & 0x7c00) != 0x7c00 && (half_m[first] & 0x7c00) != 0x7c00;
      for (int g = 0; g < B::kGroups; ++g) {
        scales[b].sub[g] = static_cast<uint8_t>(ints[first + g] & 0xff);
        scales[b].sub_m[g] = static_cast<uint8_t>(ints_m[first + g] & 0xff);
      }
    }
    return finite;
  }

  // x = s q + m with s >= 0 and m <= 0, as an offset from the least x: y = s q + t.
  struct Line {
    F32 s, t, error;
  };

  // The line of least squares through codes q, and its error; NaN if all codes are 0.
  static Line fit(const F32* y, const F32* q, F32 sum_y, F32 lo) {
    F32 sum_q = T::zero_f32(), sum_qq = sum_q, sum_qy = sum_q;
    for (int k = 0; k < kDepth; ++k) {
      sum_q = T::add(sum_q, q[k]);
      sum_qq = T::fma(q[k], q[k], sum_qq);
      sum_qy = T::fma(q[k], y[k], sum_qy);
    }
    const F32 n = T::set1(kDepth);
    // Exact: 32 * 32 * 31^2 is less than 2^24.
    const F32 determinant = T::sub(T::mul(n, sum_qq), T::mul(sum_q, sum_q));
    F32 s = T::div(T::fma(n, sum_qy, T::neg(T::mul(sum_q, sum_y))), determinant);
    F32 t = T::mul(T::fma(T::neg(s), sum_q, sum_y), T::set1(1.0f / kDepth));
    // A min above 0 cannot be stored, and where all codes are the same any line goes: with the min
    // at 0, what is left to choose is s.
    const auto flat = T::eq(determinant, T::zero_f32());
    const F32 min = T::select(flat, T::set1(1), T::add(t, lo));
    const auto allowed = T::le(min, T::zero_f32());
    t = T::select(allowed, t, T::neg(lo));
    s = T::select(allowed, s, T::div(T::fma(lo, sum_q, sum_qy), sum_qq));
    F32 error = T::zero_f32();
    for (int k = 0; k < kDepth; ++k) {
      const F32 r = T::fma(q[k], s, T::sub(t, y[k]));
      error = T::fma(r, r, error);
    }
    return {s, t, error};
  }

  static void with_mins(const F32* x, I32* codes, F32& d, F32& m, F32& sub, F32& sub_m) {
    F32 lo = T::zero_f32(), hi = x[0];
    for (int k = 0; k < kDepth; ++k) {
      lo = T::select(T::lt(x[k], lo), x[k], lo);
      hi = T::select(T::lt(hi, x[k]), x[k], hi);
    }
    F32 y[kDepth], q[kDepth];
    F32 sum_y = T::zero_f32(), sum_yy = sum_y;
    for (int k = 0; k < kDepth; ++k) {
      y[k] = T::sub(x[k], lo);
      sum_y = T::add(sum_y, y[k]);
      sum_yy = T::fma(y[k], y[k], sum_yy);
    }
    const F32 per_range = inverse_or_zero<T>(T::sub(hi, lo));
    Line best = {T::zero_f32(), T::zero_f32(), sum_yy};
    for (const float step : kRangeSteps) {
      // Half the step where there are but four codes.
      const float levels = kTop + (kBits == 2 ? 0.5f * step : step);
      F32 inverse = T::mul(T::set1(levels), per_range), t = T::zero_f32();
      Line line;
      for (int round = 0; round < 2; ++round) {
        for (int k = 0; k < kDepth; ++k) {
          q[k] = clamped<T>(T::rint(T::mul(T::sub(y[k], t), inverse)), 0, kTop);
        }
        line = fit(y, q, sum_y, lo);
        inverse = inverse_or_zero<T>(line.s);
        t = line.t;
      }
      const auto better = T::lt(line.error, best.error);
      best.s = T::select(better, line.s, best.s);
      best.t = T::select(better, line.t, best.t);
      best.error = T::select(better, line.error, best.error);
    }

    constexpr float last = B::kType == BlockType::q2_k ? 15 : 63;
    const auto largest = [](const float* a) {
      float max = 0;
      for (int g = 0; g < B::kGroups; ++g) max = a[g] > max ? a[g] : max;
      return max;
    };
    const F32 min = T::neg(T::add(best.t, lo));
    d = to_half_and_back<T>(T::div(per_block<T, B::kGroups>(best.s, largest), T::set1(last)));
    m = to_half_and_back<T>(T::div(per_block<T, B::kGroups>(min, largest), T::set1(last)));
    const F32 sub0 = T::rint(T::mul(best.s, inverse_or_zero<T>(d)));
    const F32 sub_m0 = T::rint(T::mul(min, inverse_or_zero<T>(m)));
    F32 least = T::from_bits(T::set1_i32(0x7f800000));
    sub = sub_m = T::zero_f32();
    for (const float a : kNear) {
      for (const float b : kNear) {
        const F32 try_sub = clamped<T>(T::add(sub0, T::set1(a)), 0, last);
        const F32 try_sub_m = clamped<T>(T::add(sub_m0, T::set1(b)), 0, last);
        const F32 error = code_with_min(x, q, T::mul(d, try_sub), T::mul(m, try_sub_m));
        const auto better = T::lt(error, least);
        least = T::select(better, error, least);
        sub = T::select(better, try_sub, sub);
        sub_m = T::select(better, try_sub_m, sub_m);
      }
    }
    code_with_min(x, q, T::mul(d, sub), T::mul(m, sub_m));
    for (int k = 0; k < kDepth; ++k) codes[k] = T::to_i32(q[k]);
  }

  // The codes of x = s q - m, and the sum of their squared errors.
  static F32 code_with_min(const F32* x, F32* q, F32 s, F32 m) {
    const F32 inverse = inverse_or_zero<T>(s);
    F32 error = T::zero_f32();
    for (int k = 0; k < kDepth; ++k) {
      q[k] = clamped<T>(T::rint(T::mul(T::add(x[k], m), inverse)), 0, kTop);
      const F32 r = T::sub(x[k], T::fma(q[k], s, T::neg(m)));
      error = T::fma(r, r, error);
    }
    return error;
  }

  static constexpr bool kIsTable = B::kValues == BlockValues::iq4;
  static constexpr float kFirstValue = kIsTable ? -127 : -B::kZero;
  static constexpr float kLastValue = kIsTable ? 113 : kTop - B::kZero;

  // The value of the code that is nearest to r, and that code.
  static F32 nearest(F32 r, I32& code) {
    if constexpr (kIsTable) {
      const auto borders = T::float_table(kIq4Borders);
      code = T::zero_i32();
      for (int step = 8; step > 0; step /= 2) {
        const auto next = T::add_i32(code, T::set1_i32(step));
        code = T::select_i32(T::lt(r, T::lookup_f32(borders, next)), code, next);
      }
      return T::lookup_f32(T::float_table(kIq4Values), code);
    } else {
      const F32 value = clamped<T>(T::rint(r), kFirstValue, kLastValue);
      code = T::add_i32(T::to_i32(value), T::set1_i32(B::kZero));
      return value;
    }
  }
  static F32 nearest(F32 r) {
    I32 code;
    return nearest(r, code);
  }

  static void without_mins(const F32* x, I32* codes, F32& d, F32& sub) {
    const F32 per_extreme = inverse_or_zero<T>(first_extreme<T>(x, kDepth));
    F32 best = T::zero_f32(), most = best;
    constexpr bool ends[] = {true, false};
    for (const bool at_first : ends) {
      for (const float step : kEndSteps) {
        const float end = at_first ? kFirstValue - step * kEndUnit : kLastValue + step * kEndUnit;
        const F32 inverse = T::mul(T::set1(end), per_extreme);
        F32 sum_qx = T::zero_f32(), sum_qq = sum_qx;
        for (int k = 0; k < kDepth; ++k) {
          const F32 value = nearest(T::mul(x[k], inverse));
          sum_qx = T::fma(value, x[k], sum_qx);
          sum_qq = T::fma(value, value, sum_qq);
        }
        // With s = qx / qq the squared error is the sum of x^2 less s qx.
        const F32 s = T::div(sum_qx, sum_qq);
        const F32 gain = T::mul(s, sum_qx);
        const auto better = T::lt(most, gain);
        most = T::select(better, gain, most);
        best = T::select(better, s, best);
      }
    }
    sub = T::zero_f32();
    if constexpr (B::kSub == SubScale::none) {
      d = to_half_and_back<T>(best);
      code_scaled(x, codes, d);
    } else {
      constexpr float last = B::kType == BlockType::q6_k ? 128 : 32;
      const auto extreme = [](const float* a) {
        float found = a[0];
        for (int g = 1; g < B::kGroups; ++g) {
          const float size = found < 0 ? -found : found;
          if (size < (a[g] < 0 ? -a[g] : a[g])) found = a[g];
        }
        return found;
      };
      d = to_half_and_back<T>(T::div(per_block<T, B::kGroups>(best, extreme), T::set1(-last)));
      const F32 sub0 = T::rint(T::mul(best, inverse_or_zero<T>(d)));
      F32 least = T::from_bits(T::set1_i32(0x7f800000));
      for (const float a : kNear) {
        const F32 try_sub = clamped<T>(T::add(sub0, T::set1(a)), -last, last - 1);
        const F32 error = code_scaled(x, codes, T::mul(d, try_sub));
        const auto better = T::lt(error, least);
        least = T::select(better, error, least);
        sub = T::select(better, try_sub, sub);
      }
      code_scaled(x, codes, T::mul(d, sub));
    }
  }

  static F32 code_scaled(const F32* x, I32* codes, F32 s) {
    const F32 inverse = inverse_or_zero<T>(s);
    F32 error = T::zero_f32();
    for (int k = 0; k < kDepth; ++k) {
      const F32 value = nearest(T::mul(x[k], inverse), codes[k]);
      const F32 r = T::fma(T::neg(value), s, x[k]);
      error = T::fma(r, r, error);
    }
    return error;
  }

  // What a step of kEndSteps is: half a code, or about a third of the table's distances.
  static constexpr float kEndUnit = kIsTable ? 6 : 0.5f;
};

}  // namespace
}  // namespace nibblas
