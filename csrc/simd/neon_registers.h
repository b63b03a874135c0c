// SPDX-License-Identifier: Apache-2.0
// What all NEON targets have in common: everything but dot products. A panel of 16 lanes is four q
// registers, so the 32 of them hold 8 panels.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "simd/dot_defaults.h"
#include "simd/neon_column.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

struct NeonRegisters {
  static constexpr int kRegisters = 8;  // panel-wide registers

  // 6 rows x 1 panel: 24 sums, 4 operands and 2 of x of the 32 registers; 6 loads feed 24
  // multiplications.
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmPanels = 1;
  static constexpr int kTwoLevelRows = 0, kTwoLevelPanels = 0;  // none of their own: see tile_rows
  static constexpr bool kPinsSums = false;  // see multiply_steps
  static constexpr int kGemvRows = 4;
  static constexpr int kStreamRows = 2;    // see reads_one_stream
  static constexpr int kFarRows = 9;       // never: see kPrefetchFarBytes
  static constexpr int kStraightRows = 8;  // see straight_rows
  static constexpr bool kSingleRowStraight = true;  // see product.h
  static constexpr int two_level_straight_rows(int) { return kStraightRows; }
  static constexpr int gemv_panels(int rows) { return rows == 1 ? 2 : 1; }

  struct F32 {
    float32x4_t a, b, c, d;
  };
  struct I32 {
    int32x4_t a, b, c, d;
  };
  struct Mask {  // all ones where true
    uint32x4_t a, b, c, d;
  };

  // f of each of the four registers.
  template <class R, class X, class F>
  static NIBBLAS_INLINE R map(X x, const F& f) { return {f(x.a), f(x.b), f(x.c), f(x.d)}; }
  template <class R, class X, class Y, class F>
  static NIBBLAS_INLINE R map(X x, Y y, const F& f) {
    return {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)};
  }
  template <class R, class X, class Y, class Z, class F>
  static NIBBLAS_INLINE R map(X x, Y y, Z z, const F& f) {
    return {f(x.a, y.a, z.a), f(x.b, y.b, z.b), f(x.c, y.c, z.c), f(x.d, y.d, z.d)};
  }

  static F32 set1(float a) {
    const float32x4_t v = vdupq_n_f32(a);
    return {v, v, v, v};
  }
  static F32 zero_f32() { return set1(0); }
  static F32 load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static void store(float* p, F32 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
  }
  static F32 add(F32 x, F32 y) {
    return map<F32>(x, y, [](float32x4_t p, float32x4_t q) { return vaddq_f32(p, q); });
  }
  static F32 sub(F32 x, F32 y) {
    return map<F32>(x, y, [](float32x4_t p, float32x4_t q) { return vsubq_f32(p, q); });
  }
  static F32 mul(F32 x, F32 y) {
    return map<F32>(x, y, [](float32x4_t p, float32x4_t q) { return vmulq_f32(p, q); });
  }
  static F32 div(F32 x, F32 y) {
    return map<F32>(x, y, [](float32x4_t p, float32x4_t q) { return vdivq_f32(p, q); });
  }
  static F32 fma(F32 x, F32 y, F32 z) {
    return map<F32>(x, y, z, [](float32x4_t p, float32x4_t q, float32x4_t r) {
      return vfmaq_f32(r, p, q);
    });
  }
  static F32 rint(F32 x) {
    return map<F32>(x, [](float32x4_t p) { return vrndnq_f32(p); });
  }
  static F32 select(Mask m, F32 yes, F32 no) {
    return map<F32>(m, yes, no, [](uint32x4_t p, float32x4_t q, float32x4_t r) {
      return vbslq_f32(p, q, r);
    });
  }
  static Mask lt(F32 x, F32 y) {
    return map<Mask>(x, y, [](float32x4_t p, float32x4_t q) { return vcltq_f32(p, q); });
  }
  static Mask le(F32 x, F32 y) {
    return map<Mask>(x, y, [](float32x4_t p, float32x4_t q) { return vcleq_f32(p, q); });
  }
  static Mask eq(F32 x, F32 y) {
    return map<Mask>(x, y, [](float32x4_t p, float32x4_t q) { return vceqq_f32(p, q); });
  }
  static Mask is_nan(F32 x) {
    return map<Mask>(x, [](float32x4_t p) { return vmvnq_u32(vceqq_f32(p, p)); });
  }
  static I32 bits(F32 x) {
    return map<I32>(x, [](float32x4_t p) { return vreinterpretq_s32_f32(p); });
  }
  static F32 from_bits(I32 x) {
    return map<F32>(x, [](int32x4_t p) { return vreinterpretq_f32_s32(p); });
  }
  static F32 abs(F32 x) {
    return map<F32>(x, [](float32x4_t p) { return vabsq_f32(p); });
  }
  static F32 neg(F32 x) {
    return map<F32>(x, [](float32x4_t p) { return vnegq_f32(p); });
  }

  static I32 set1_i32(int32_t a) {
    const int32x4_t v = vdupq_n_s32(a);
    return {v, v, v, v};
  }
  static I32 zero_i32() { return set1_i32(0); }
  static int32x4_t load_quarter(const void* p, int quarter) {  // at any alignment
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * quarter));
  }
  static I32 load_i32(const void* p) {
    return {load_quarter(p, 0), load_quarter(p, 1), load_quarter(p, 2), load_quarter(p, 3)};
  }
  static void store_i32(void* p, I32 x) {
    uint8_t* to = static_cast<uint8_t*>(p);
    vst1q_u8(to, vreinterpretq_u8_s32(x.a));
    vst1q_u8(to + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8(to + 32, vreinterpretq_u8_s32(x.c));
    vst1q_u8(to + 48, vreinterpretq_u8_s32(x.d));
  }
  static I32 add_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vaddq_s32(p, q); });
  }
  static I32 sub_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vsubq_s32(p, q); });
  }
  static I32 mul_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vmulq_s32(p, q); });
  }
  static I32 mul_add_i32(I32 x, I32 y, I32 z) {  // z + x * y
    return map<I32>(x, y, z, [](int32x4_t p, int32x4_t q, int32x4_t r) {
      return vmlaq_s32(r, p, q);
    });
  }
  static I32 and_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vandq_s32(p, q); });
  }
  static I32 or_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vorrq_s32(p, q); });
  }
  static I32 xor_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return veorq_s32(p, q); });
  }
  static I32 and_or(I32 a, I32 b, I32 c) { return or_i32(and_i32(a, b), c); }
  static I32 max_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vmaxq_s32(p, q); });
  }
  static I32 min_i32(I32 x, I32 y) {
    return map<I32>(x, y, [](int32x4_t p, int32x4_t q) { return vminq_s32(p, q); });
  }
  template <int n>
  static I32 shl(I32 x) {
    return map<I32>(x, [](int32x4_t p) { return vshlq_n_s32(p, n); });
  }
  template <int n>
  static I32 shr(I32 x) {
    return map<I32>(x, [](int32x4_t p) {  // the instruction has 1 .. 32
      return n ? vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(p), n ? n : 32)) : p;
    });
  }
  template <int n>
  static I32 sar(I32 x) {
    return map<I32>(x, [](int32x4_t p) { return vshrq_n_s32(p, n); });
  }
  static I32 select_i32(Mask m, I32 yes, I32 no) {
    return map<I32>(m, yes, no, [](uint32x4_t p, int32x4_t q, int32x4_t r) {
      return vbslq_s32(p, q, r);
    });
  }
  static Mask lt_i32(I32 x, I32 y) {
    return map<Mask>(x, y, [](int32x4_t p, int32x4_t q) { return vcltq_s32(p, q); });
  }
  static F32 to_f32(I32 x) {
    return map<F32>(x, [](int32x4_t p) { return vcvtq_f32_s32(p); });
  }
  static I32 to_i32(F32 x) {
    return map<I32>(x, [](float32x4_t p) { return vcvtnq_s32_f32(p); });
  }
  static int32_t reduce_max_i32(I32 x) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d)));
  }
  static int32_t reduce_add_i32(I32 x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d)));
  }

  // 16 values of a narrower type to and from 32-bit lanes.
  static I32 widen_u16(uint16x8_t low, uint16x8_t high) {
    const auto as_signed = [](uint32x4_t p) { return vreinterpretq_s32_u32(p); };
    return {as_signed(vmovl_u16(vget_low_u16(low))), as_signed(vmovl_high_u16(low)),
            as_signed(vmovl_u16(vget_low_u16(high))), as_signed(vmovl_high_u16(high))};
  }
  static I32 load_u8(const void* p) {
    const uint8x16_t bytes = vld1q_u8(static_cast<const uint8_t*>(p));
    return widen_u16(vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
  }
  static uint16x8_t load_half(const void* p, int half) {
    return vreinterpretq_u16_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * half));
  }
  static I32 load_u16(const void* p) { return widen_u16(load_half(p, 0), load_half(p, 1)); }
  static F32 load_f16(const void* p) {
    const float16x8_t low = vreinterpretq_f16_u16(load_half(p, 0));
    const float16x8_t high = vreinterpretq_f16_u16(load_half(p, 1));
    return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
  }
  // The low halves of 8 lanes.
  static uint16x8_t low_halves(int32x4_t x, int32x4_t y) {
    return vuzp1q_u16(vreinterpretq_u16_s32(x), vreinterpretq_u16_s32(y));
  }
  static void store_i8(void* p, I32 x) {
    const uint8x16_t low = vreinterpretq_u8_u16(low_halves(x.a, x.b));
    const uint8x16_t high = vreinterpretq_u8_u16(low_halves(x.c, x.d));
    vst1q_u8(static_cast<uint8_t*>(p), vuzp1q_u8(low, high));
  }
  static void store_halves(void* p, uint16x8_t low, uint16x8_t high) {
    vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_u16(low));
    vst1q_u8(static_cast<uint8_t*>(p) + 16, vreinterpretq_u8_u16(high));
  }
  static void store_u16(void* p, I32 x) {
    store_halves(p, low_halves(x.a, x.b), low_halves(x.c, x.d));
  }
  static void store_f16(void* p, F32 x) {
    const float16x8_t low = vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b);
    const float16x8_t high = vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d);
    store_halves(p, vreinterpretq_u16_f16(low), vreinterpretq_u16_f16(high));
  }
  // Caches here see by themselves that whole lines are written.
  static void stream(void* p, I32 x) { store_i32(p, x); }
  static void drain() {}
  // Inlined at once: GCC takes a function that only prefetches for one without effect, and drops
  // calls of it.
  static NIBBLAS_INLINE void prefetch_l2(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 2);
#else
    __prefetch(p);
#endif
  }
  static NIBBLAS_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 3);
#else
    __prefetch(p);
#endif
  }

  // Hides a value from the optimizer: it must be in registers at this point.
  static NIBBLAS_INLINE void hide([[maybe_unused]] I32& x) {
#if defined(__GNUC__)
    __asm__ volatile("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
#endif
  }

  // r0 .. r3 lane i  <->  ri lanes 0 .. 3.
  static NIBBLAS_INLINE void transpose4(int32x4_t& r0, int32x4_t& r1, int32x4_t& r2,
                                        int32x4_t& r3) {
    const auto pairs = [](int32x4_t p) { return vreinterpretq_s64_s32(p); };
    const auto words = [](int64x2_t p) { return vreinterpretq_s32_s64(p); };
    const int64x2_t even01 = pairs(vtrn1q_s32(r0, r1)), odd01 = pairs(vtrn2q_s32(r0, r1));
    const int64x2_t even23 = pairs(vtrn1q_s32(r2, r3)), odd23 = pairs(vtrn2q_s32(r2, r3));
    r0 = words(vtrn1q_s64(even01, even23));
    r1 = words(vtrn1q_s64(odd01, odd23));
    r2 = words(vtrn2q_s64(even01, even23));
    r3 = words(vtrn2q_s64(odd01, odd23));
  }

  // rows[r] lane c  <->  rows[c] lane r: each 4 x 4 block, then the blocks beside the diagonal.
  static void transpose16(I32 r[16]) {
    for (int i = 0; i < 16; i += 4) {
      transpose4(r[i].a, r[i + 1].a, r[i + 2].a, r[i + 3].a);
      transpose4(r[i].b, r[i + 1].b, r[i + 2].b, r[i + 3].b);
      transpose4(r[i].c, r[i + 1].c, r[i + 2].c, r[i + 3].c);
      transpose4(r[i].d, r[i + 1].d, r[i + 2].d, r[i + 3].d);
    }
    const auto swap = [](int32x4_t& p, int32x4_t& q) {
      const int32x4_t t = p;
      p = q, q = t;
    };
    for (int i = 0; i < 4; ++i) {
      swap(r[i].b, r[i + 4].a);
      swap(r[i].c, r[i + 8].a);
      swap(r[i].d, r[i + 12].a);
      swap(r[i + 4].c, r[i + 8].b);
      swap(r[i + 4].d, r[i + 12].b);
      swap(r[i + 8].d, r[i + 12].c);
    }
  }

  // The same in memory, rows of 64 bytes so many bytes apart.
  static NIBBLAS_INLINE void transpose_words(const void* from, int64_t from_stride, void* to,
                                             int64_t to_stride) {
    const char* in = static_cast<const char*>(from);
    uint8_t* out = static_cast<uint8_t*>(to);
    for (int r = 0; r < 16; r += 4) {
      for (int c = 0; c < 4; ++c) {
        const auto load = [&](int i) { return load_quarter(in + (r + i) * from_stride, c); };
        int32x4_t v[4] = {load(0), load(1), load(2), load(3)};
        transpose4(v[0], v[1], v[2], v[3]);
        for (int i = 0; i < 4; ++i) {
          vst1q_u8(out + (4 * c + i) * to_stride + 4 * r, vreinterpretq_u8_s32(v[i]));
        }
      }
    }
  }

  using ByteTable = uint8x16_t;
  using FloatTable = uint8x16x4_t;
  static constexpr bool kLooksUpFloats = false;  // tbl of four registers takes as many cycles
  static constexpr bool kPairsBfloat16 = false;  // see avx512.h
  static ByteTable byte_table(const uint8_t* p) { return vld1q_u8(p); }
  static FloatTable float_table(const float* p) {
    const I32 v = load_i32(p);
    return {{vreinterpretq_u8_s32(v.a), vreinterpretq_u8_s32(v.b), vreinterpretq_u8_s32(v.c),
             vreinterpretq_u8_s32(v.d)}};
  }
  // 16 values of 16 bits, their low and high bytes, and 32 of them by codes of bytes.
  using HalfTable = uint8x16x2_t;
  static HalfTable half_table(const uint16_t* p) {
    return vld2q_u8(reinterpret_cast<const uint8_t*>(p));
  }
  static void store_lookup(void* to, HalfTable t, const uint8_t* codes) {
    for (int i = 0; i < 32; i += 16) {
      const uint8x16_t c = vld1q_u8(codes + i);
      vst2q_u8(static_cast<uint8_t*>(to) + 2 * i,
               {{vqtbl1q_u8(t.val[0], c), vqtbl1q_u8(t.val[1], c)}});
    }
  }
  static I32 lookup(ByteTable t, I32 quad) {
    return map<I32>(quad, [t](int32x4_t p) {
      return vreinterpretq_s32_u8(vqtbl1q_u8(t, vreinterpretq_u8_s32(p)));
    });
  }
  static F32 lookup_f32(FloatTable t, I32 codes) {
    return map<F32>(codes, [t](int32x4_t p) {  // bytes 4 code .. 4 code + 3
      const uint32x4_t code = vreinterpretq_u32_s32(vandq_s32(p, vdupq_n_s32(15)));
      const uint32x4_t at = vmlaq_u32(vdupq_n_u32(0x03020100), code, vdupq_n_u32(0x04040404));
      return vreinterpretq_f32_u8(vqtbl4q_u8(t, vreinterpretq_u8_u32(at)));
    });
  }

  // acc + both products of the int16 halves of x and y.
  static void dot_i16(int32x4_t& acc0, int32x4_t& acc1, int32x4_t x0, int32x4_t x1, int32x4_t y0,
                      int32x4_t y1) {
    const auto low = [](int32x4_t p, int32x4_t q) {
      return vuzp1q_s16(vreinterpretq_s16_s32(p), vreinterpretq_s16_s32(q));
    };
    const auto high = [](int32x4_t p, int32x4_t q) {
      return vuzp2q_s16(vreinterpretq_s16_s32(p), vreinterpretq_s16_s32(q));
    };
    const int16x8_t x_low = low(x0, x1), x_high = high(x0, x1);
    const int16x8_t y_low = low(y0, y1), y_high = high(y0, y1);
    acc0 = vmlal_s16(acc0, vget_low_s16(x_low), vget_low_s16(y_low));
    acc1 = vmlal_high_s16(acc1, x_low, y_low);
    acc0 = vmlal_s16(acc0, vget_low_s16(x_high), vget_low_s16(y_high));
    acc1 = vmlal_high_s16(acc1, x_high, y_high);
  }
  static I32 dot_i16(I32 acc, I32 x, I32 y) {
    dot_i16(acc.a, acc.b, x.a, x.b, y.a, y.b);
    dot_i16(acc.c, acc.d, x.c, x.d, y.c, y.d);
    return acc;
  }

  template <int lane>
  using Lane = NeonLane<lane>;
  template <int MR>
  using Column = NeonColumn<MR>;
  template <int MR>
  static NIBBLAS_INLINE Column<MR> load_column(const int32_t* p) { return load_neon_column<MR>(p); }
  template <int m, int MR>
  static NIBBLAS_INLINE Lane<m % 4> lane_of(const Column<MR>& column) {
    return {column.words[m / 4]};
  }
  template <int lane>
  static NIBBLAS_INLINE F32 fma(Lane<lane> x, F32 y, F32 z) {
    const float32x4_t words = vreinterpretq_f32_s32(x.words);
    return map<F32>(y, z, [words](float32x4_t q, float32x4_t r) {
      return vfmaq_laneq_f32(r, q, words, lane);
    });
  }
};

}  // namespace
}  // namespace nibblas
