// SPDX-License-Identifier: Apache-2.0
// Plain C++ for any CPU: a panel is an array of 16 lanes. This target is the oracle that every
// other one is compared with, so it says what each primitive means.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/dot_defaults.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

struct Scalar {
  static constexpr const char* kName = "scalar";
  static constexpr int kRegisters = 4;

  // Small tiles: without SIMD the accumulators are memory anyway.
  static constexpr int kGemmRows = 2;
  static constexpr int kGemmPanels = 1;
  static constexpr int kTwoLevelRows = 0;  // none of their own: see tile_rows
  static constexpr int kTwoLevelPanels = 0;
  static constexpr bool kPinsSums = false;  // see multiply_steps
  static constexpr int kGemvRows = 1;
  static constexpr int kStreamRows = 2;    // see reads_one_stream
  static constexpr int kFarRows = 9;       // never: see kPrefetchFarBytes
  static constexpr int kStraightRows = 1;   // see straight_rows
  static constexpr bool kSingleRowStraight = false;  // see product.h
  static constexpr int two_level_straight_rows(int) { return kStraightRows; }
  static constexpr int gemv_panels(int) { return 1; }
  static constexpr int kLanes = 16;

  struct F32 {
    float v[kLanes];
  };
  struct I32 {
    int32_t v[kLanes];
  };
  using Mask = I32;  // -1 where true

  template <class To, class From>
  static To cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
  }

  // a * b + c rounded once. Without the instruction: in double the product is exact; the sum is
  // rounded to odd, so that rounding it again to float cannot meet a false tie.
  static float fma1(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    const double p = static_cast<double>(a) * b;
    const double s = p + c;
    const double bb = s - p;
    const double error = (p - (s - bb)) + (c - bb);
    int64_t bits = cast<int64_t>(s);
    // NaN where s is not finite: then nothing is to be corrected.
    const bool inexact = (error > 0) | (error < 0);
    const int64_t toward = (error > 0) == (s > 0) ? 1 : -1;
    bits += inexact && !(bits & 1) ? toward : 0;
    return static_cast<float>(cast<double>(bits));
#endif
  }
  static float rint1(float a) {
    const uint32_t bits = cast<uint32_t>(a);
    const uint32_t sign = bits & 0x80000000u;
    const float magnitude = cast<float>(bits & 0x7fffffffu);
    const float shifter = 8388608.0f;  // 2^23: above it every float is an integer
    const float rounded = (magnitude + shifter) - shifter;
    return cast<float>(cast<uint32_t>(magnitude < shifter ? rounded : magnitude) | sign);
  }
  static float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t rest = h & 0x7fff;
    if (rest >= 0x7c00) return cast<float>(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    // The exponent moves from bias 15 to 127 by a product that is exact, subnormals included.
    const float scaled = cast<float>(rest << 13) * 5.192296858534828e33f;  // 2^112
    return cast<float>(cast<uint32_t>(scaled) | sign);
  }
  static uint16_t float_to_half(float f) {
    const uint32_t bits = cast<uint32_t>(f);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 rounds to inf
    if (rest < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, which is an ulp at 0.5
      const float shifted = cast<float>(rest) + 0.5f;
      return static_cast<uint16_t>(sign | (cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t odd = rest >> 13 & 1;
    return static_cast<uint16_t>(sign | (rest - 0x38000000u + 0xfff + odd) >> 13);
  }

  template <class F>
  static F32 map_f32(F f) {
    F32 r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  template <class F>
  static I32 map_i32(F f) {
    I32 r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<int32_t>(f(i));
    return r;
  }
  static uint32_t u(int32_t a) { return static_cast<uint32_t>(a); }

  static F32 set1(float a) { return map_f32([&](int) { return a; }); }
  static F32 zero_f32() { return set1(0); }
  static F32 load(const float* p) { return map_f32([&](int i) { return p[i]; }); }
  static void store(float* p, F32 a) { memcpy(p, a.v, sizeof a.v); }
  static F32 add(F32 a, F32 b) { return map_f32([&](int i) { return a.v[i] + b.v[i]; }); }
  static F32 sub(F32 a, F32 b) { return map_f32([&](int i) { return a.v[i] - b.v[i]; }); }
  static F32 mul(F32 a, F32 b) { return map_f32([&](int i) { return a.v[i] * b.v[i]; }); }
  static F32 div(F32 a, F32 b) { return map_f32([&](int i) { return a.v[i] / b.v[i]; }); }
  static F32 fma(F32 a, F32 b, F32 c) {
    return map_f32([&](int i) { return fma1(a.v[i], b.v[i], c.v[i]); });
  }
  static F32 rint(F32 a) { return map_f32([&](int i) { return rint1(a.v[i]); }); }
  static F32 select(Mask m, F32 yes, F32 no) {
    return map_f32([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
  }
  static Mask lt(F32 a, F32 b) { return map_i32([&](int i) { return -(a.v[i] < b.v[i]); }); }
  static Mask le(F32 a, F32 b) { return map_i32([&](int i) { return -(a.v[i] <= b.v[i]); }); }
  static Mask eq(F32 a, F32 b) { return map_i32([&](int i) { return -(a.v[i] == b.v[i]); }); }
  static Mask is_nan(F32 a) { return map_i32([&](int i) { return -(a.v[i] != a.v[i]); }); }
  static I32 bits(F32 a) { return cast<I32>(a); }
  static F32 from_bits(I32 a) { return cast<F32>(a); }
  static F32 abs(F32 a) { return from_bits(and_i32(bits(a), set1_i32(0x7fffffff))); }
  static F32 neg(F32 a) { return from_bits(xor_i32(bits(a), set1_i32(INT32_MIN))); }

  static I32 set1_i32(int32_t a) { return map_i32([&](int) { return a; }); }
  static I32 zero_i32() { return set1_i32(0); }
  static I32 load_i32(const void* p) {
    I32 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static void store_i32(void* p, I32 a) { memcpy(p, a.v, sizeof a.v); }
  // Integer work is modulo 2^32, so it is done unsigned.
  static I32 add_i32(I32 a, I32 b) { return map_i32([&](int i) { return u(a.v[i]) + u(b.v[i]); }); }
  static I32 sub_i32(I32 a, I32 b) { return map_i32([&](int i) { return u(a.v[i]) - u(b.v[i]); }); }
  static I32 mul_i32(I32 a, I32 b) { return map_i32([&](int i) { return u(a.v[i]) * u(b.v[i]); }); }
  static I32 and_i32(I32 a, I32 b) { return map_i32([&](int i) { return a.v[i] & b.v[i]; }); }
  static I32 or_i32(I32 a, I32 b) { return map_i32([&](int i) { return a.v[i] | b.v[i]; }); }
  static I32 xor_i32(I32 a, I32 b) { return map_i32([&](int i) { return a.v[i] ^ b.v[i]; }); }
  static I32 and_or(I32 a, I32 b, I32 c) { return or_i32(and_i32(a, b), c); }
  static I32 max_i32(I32 a, I32 b) {
    return map_i32([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static I32 min_i32(I32 a, I32 b) {
    return map_i32([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  template <int n>
  static I32 shl(I32 a) { return map_i32([&](int i) { return u(a.v[i]) << n; }); }
  template <int n>
  static I32 shr(I32 a) { return map_i32([&](int i) { return u(a.v[i]) >> n; }); }
  template <int n>
  static I32 sar(I32 a) { return map_i32([&](int i) { return a.v[i] >> n; }); }
  static I32 select_i32(Mask m, I32 yes, I32 no) {
    return map_i32([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
  }
  static Mask lt_i32(I32 a, I32 b) { return map_i32([&](int i) { return -(a.v[i] < b.v[i]); }); }
  static F32 to_f32(I32 a) { return map_f32([&](int i) { return static_cast<float>(a.v[i]); }); }
  static I32 to_i32(F32 a) {
    return map_i32([&](int i) { return static_cast<int32_t>(rint1(a.v[i])); });
  }
  static int32_t reduce_max_i32(I32 a) {
    int32_t r = a.v[0];
    for (int i = 1; i < kLanes; ++i) r = a.v[i] > r ? a.v[i] : r;
    return r;
  }
  static int32_t reduce_add_i32(I32 a) {
    uint32_t r = 0;
    for (int i = 0; i < kLanes; ++i) r += u(a.v[i]);
    return static_cast<int32_t>(r);
  }

  // 16 values of a narrower type to and from 32-bit lanes.
  static I32 load_u8(const void* p) {
    return map_i32([&](int i) { return static_cast<const uint8_t*>(p)[i]; });
  }
  static I32 load_u16(const void* p) {
    uint16_t h[kLanes];
    memcpy(h, p, sizeof h);
    return map_i32([&](int i) { return h[i]; });
  }
  static F32 load_f16(const void* p) {
    uint16_t h[kLanes];
    memcpy(h, p, sizeof h);
    return map_f32([&](int i) { return half_to_float(h[i]); });
  }
  static void store_i8(void* p, I32 a) {
    for (int i = 0; i < kLanes; ++i) static_cast<int8_t*>(p)[i] = static_cast<int8_t>(a.v[i]);
  }
  static void store_u16(void* p, I32 a) {
    uint16_t h[kLanes];
    for (int i = 0; i < kLanes; ++i) h[i] = static_cast<uint16_t>(a.v[i]);
    memcpy(p, h, sizeof h);
  }
  static void store_f16(void* p, F32 a) {
    uint16_t h[kLanes];
    for (int i = 0; i < kLanes; ++i) h[i] = float_to_half(a.v[i]);
    memcpy(p, h, sizeof h);
  }
  static void stream(void* p, I32 a) { store_i32(p, a); }
  static void drain() {}
  static void prefetch(const void*) {}
  static void prefetch_l2(const void*) {}

  // Hides a value from the optimizer, for loops that only measure.
  static void hide(I32& a) {
#if defined(__GNUC__)
    __asm__ volatile("" : "+m"(a));
#else
    static_cast<void>(a);
#endif
  }

  // rows[r] lane c  <->  rows[c] lane r.
  static void transpose16(I32 r[16]) {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const int32_t t = r[i].v[j];
        r[i].v[j] = r[j].v[i];
        r[j].v[i] = t;
      }
    }
  }

  // The same in memory, rows of 64 bytes so many bytes apart.
  static void transpose_words(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < kLanes; ++j) {
        memcpy(static_cast<char*>(to) + j * to_stride + 4 * i,
               static_cast<const char*>(from) + i * from_stride + 4 * j, 4);
      }
    }
  }

  // Tables of 16: of bytes for the codes of a quad, each 0 .. 15, and of floats for a code in the
  // low four bits of each lane, whatever is above.
  struct ByteTable {
    uint8_t v[16];
  };
  struct FloatTable {
    float v[16];
  };
  static constexpr bool kLooksUpFloats = false;  // 4-bit codes: no faster than converting
  static constexpr bool kPairsBfloat16 = false;  // see avx512.h
  // 16 values of 16 bits, and 32 of them by codes of bytes.
  struct HalfTable {
    uint16_t v[16];
  };
  static HalfTable half_table(const uint16_t* p) {
    HalfTable t;
    memcpy(t.v, p, sizeof t.v);
    return t;
  }
  static void store_lookup(void* to, const HalfTable& t, const uint8_t* codes) {
    uint16_t h[32];
    for (int i = 0; i < 32; ++i) h[i] = t.v[codes[i] & 15];
    memcpy(to, h, sizeof h);
  }
  static ByteTable byte_table(const uint8_t* p) {
    ByteTable t;
    memcpy(t.v, p, sizeof t.v);
    return t;
  }
  static FloatTable float_table(const float* p) {
    FloatTable t;
    memcpy(t.v, p, sizeof t.v);
    return t;
  }
  static I32 lookup(const ByteTable& t, I32 quad) {
    return map_i32([&](int i) {
      const uint32_t q = u(quad.v[i]);
      return t.v[q & 15] | t.v[q >> 8 & 15] << 8 | t.v[q >> 16 & 15] << 16 |
             static_cast<uint32_t>(t.v[q >> 24 & 15]) << 24;
    });
  }
  static F32 lookup_f32(const FloatTable& t, I32 codes) {
    return map_f32([&](int i) { return t.v[codes.v[i] & 15]; });
  }

  // The words of x that the MR rows of a tile multiply a step with; for floats that of row m is
  // what `fma` takes first.
  template <int MR>
  static NIBBLAS_INLINE const int32_t* load_column(const int32_t* p) { return p; }
  template <int m>
  static NIBBLAS_INLINE F32 lane_of(const int32_t* column) {
    return from_bits(set1_i32(column[m]));
  }

  // acc + both products of the int16 halves of a and b.
  static I32 dot_i16(I32 acc, I32 a, I32 b) {
    const auto low = [](int32_t x) { return int32_t{static_cast<int16_t>(x & 0xffff)}; };
    return map_i32([&](int i) {
      return u(acc.v[i]) + u(low(a.v[i]) * low(b.v[i])) + u((a.v[i] >> 16) * (b.v[i] >> 16));
    });
  }

  // Unsigned weight operands times signed activation codes, four consecutive k a step. The lanes
  // are taken byte by byte, so that any byte order of the CPU gives the same.
  struct U8Dot : I32Dot<Scalar, U8Dot> {
    using W = I32;
    using Acc = I32;
    using X = int32_t;
    static constexpr bool kPlaneIsOperand = true;
    static X load_x(const int32_t* p) { return *p; }
    static int32_t signed_byte(int32_t word, int i) {
      return static_cast<int8_t>(u(word) >> 8 * i & 0xff);
    }
    static Acc step(Acc acc, W w, X x) {
      const int32_t x0 = signed_byte(x, 0), x1 = signed_byte(x, 1);
      const int32_t x2 = signed_byte(x, 2), x3 = signed_byte(x, 3);
      return map_i32([&](int i) {
        const uint32_t word = u(w.v[i]);
        const int32_t w0 = static_cast<int32_t>(word & 0xff);
        const int32_t w1 = static_cast<int32_t>(word >> 8 & 0xff);
        const int32_t w2 = static_cast<int32_t>(word >> 16 & 0xff);
        const int32_t w3 = static_cast<int32_t>(word >> 24);
        return u(acc.v[i]) + u(w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3);
      });
    }
  };
  // What multiplies operands of 0 .. top.
  template <int top>
  using DotFor = U8Dot;
  template <int top>
  using IntegerDotFor = DotFor<top>;  // where x may be -128
};

}  // namespace
}  // namespace nibblas
