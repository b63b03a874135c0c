// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, VL, DQ): a panel of 16 lanes is one zmm. Without VNNI there is no exact u8 x s8
// dot product into int32, so codes take the exact ways of avx2.h.
#pragma once

// GCC's own intrinsics leave the operand that a full mask overwrites unset, and GCC 12 warns of
// each use.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "simd/dot_defaults.h"
#include "simd/transpose_words.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

struct Avx512 {
  static constexpr const char* kName = "avx512";
  static constexpr int kRegisters = 32;  // panel-wide registers

  // 6 rows x 2 panels: 12 accumulators, 2 operands, a broadcast and a product leave 16 of the 32
  // zmm for the running sums. A dot product is two instructions here, so the 8 loads of 12 products
  // cost nothing. (Against 6 x 4: int4 1.10, int8 1.18 times as fast, float32 compute 1.02.)
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmPanels = 2;
  // 4 rows x 2 panels: totals of super-blocks and their offsets stay in registers, too, 8 each.
  // (vnni against 6 x 4, at 32..512 rows: q6_k 0.81..0.86 of the time, q4_k 0.89..0.92.)
  static constexpr int kTwoLevelRows = 4;
  static constexpr int kTwoLevelPanels = 2;
  static constexpr bool kPinsSums = true;  // see multiply_steps
  static constexpr int kGemvRows = 4;
  static constexpr int kStreamRows = 2;             // see reads_one_stream
  static constexpr int kFarRows = 2;                // see kPrefetchFarBytes
  static constexpr int kStraightRows = 32;          // see straight_rows
  static constexpr int kRestsRows = 5;              // see takes_rests
  static constexpr bool kSingleRowStraight = true;  // see product.h
  // Expanding 4 bits pays from 25 rows on (24 rows 1.01 of the time, 32 rows 0.97), others from 13
  // on (q6_k 16 rows 0.95, q5_k 24 rows 0.89).
  static constexpr int two_level_straight_rows(int bits) { return bits == 4 ? 24 : 12; }
  static constexpr int gemv_panels(int) { return 4; }

  using F32 = __m512;
  using I32 = __m512i;
  using Mask = __mmask16;

  static F32 set1(float a) { return _mm512_set1_ps(a); }
  static F32 zero_f32() { return _mm512_setzero_ps(); }
  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 rint(F32 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F32 select(Mask m, F32 yes, F32 no) { return _mm512_mask_blend_ps(m, no, yes); }
  static Mask lt(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Mask le(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static Mask eq(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Mask is_nan(F32 a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static I32 bits(F32 a) { return _mm512_castps_si512(a); }
  static F32 from_bits(I32 a) { return _mm512_castsi512_ps(a); }
  static F32 abs(F32 a) { return from_bits(and_i32(bits(a), set1_i32(0x7fffffff))); }
  static F32 neg(F32 a) { return from_bits(xor_i32(bits(a), set1_i32(INT32_MIN))); }

  static I32 set1_i32(int32_t a) { return _mm512_set1_epi32(a); }
  static I32 zero_i32() { return _mm512_setzero_si512(); }
  static I32 load_i32(const void* p) { return _mm512_loadu_si512(p); }
  static void store_i32(void* p, I32 a) { _mm512_storeu_si512(p, a); }
  static I32 add_i32(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
  static I32 sub_i32(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
  static I32 mul_i32(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
  static I32 and_i32(I32 a, I32 b) { return _mm512_and_si512(a, b); }
  static I32 or_i32(I32 a, I32 b) { return _mm512_or_si512(a, b); }
  static I32 xor_i32(I32 a, I32 b) { return _mm512_xor_si512(a, b); }
  static I32 and_or(I32 a, I32 b, I32 c) {  // (a & b) | c
    return _mm512_ternarylogic_epi32(a, b, c, 0xea);
  }
  static I32 max_i32(I32 a, I32 b) { return _mm512_max_epi32(a, b); }
  static I32 min_i32(I32 a, I32 b) { return _mm512_min_epi32(a, b); }
  template <int n>
  static I32 shl(I32 a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I32 shr(I32 a) {
    return _mm512_srli_epi32(a, n);
  }
  template <int n>
  static I32 sar(I32 a) {
    return _mm512_srai_epi32(a, n);
  }
  static I32 select_i32(Mask m, I32 yes, I32 no) { return _mm512_mask_blend_epi32(m, no, yes); }
  static Mask lt_i32(I32 a, I32 b) { return _mm512_cmplt_epi32_mask(a, b); }
  static F32 to_f32(I32 a) { return _mm512_cvtepi32_ps(a); }
  static I32 to_i32(F32 a) { return _mm512_cvtps_epi32(a); }
  static int32_t reduce_max_i32(I32 a) { return _mm512_reduce_max_epi32(a); }
  static int32_t reduce_add_i32(I32 a) { return _mm512_reduce_add_epi32(a); }

  // 16 values of a narrower type to and from 32-bit lanes.
  static I32 load_u8(const void* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static I32 load_u16(const void* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F32 load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static void store_i8(void* p, I32 a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static void store_u16(void* p, I32 a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
  }
  static void store_f16(void* p, F32 a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  // 32 bfloat16 values, rounded to nearest even; NaN must already be canonical.
  static constexpr bool kPairsBfloat16 = true;
  static void store_bfloat16(void* p, F32 a, F32 b) {
    const auto rounded = [](I32 bits) {
      const I32 sum = add_i32(bits, set1_i32(0x7fff));
      const Mask odd = _mm512_test_epi32_mask(bits, set1_i32(0x10000));
      return _mm512_mask_add_epi32(sum, odd, sum, set1_i32(1));
    };
    alignas(64) static constexpr uint16_t kHighHalves[32] = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const I32 halves = _mm512_load_si512(kHighHalves);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(rounded(bits(a)), halves, rounded(bits(b))));
  }
  // Past the caches, to a multiple of 64; `drain` before another thread may read it.
  static void stream(void* p, I32 a) { _mm512_stream_si512(static_cast<__m512i*>(p), a); }
  static void drain() { _mm_sfence(); }
  // Inlined at once: GCC takes a function that only prefetches for one without effect, and drops
  // calls of it.
  static NIBBLAS_INLINE void prefetch_l2(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
  static NIBBLAS_INLINE void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }

  // Hides a value from the optimizer: it must be in a register at this point.
  static NIBBLAS_INLINE void hide([[maybe_unused]] I32& a) {
#if defined(__GNUC__)
    __asm__ volatile("" : "+v"(a));
#endif
  }

  // rows[r] lane c  <->  rows[c] lane r.
  static void transpose16(I32 r[16]) {
    I32 t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // r[i + q]: column q of each 4 x 4 block of rows i .. i+3
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int q = 0; q < 4; ++q) {  // then the 4 x 4 grid of 128-bit blocks
      const I32 a = _mm512_shuffle_i32x4(r[q], r[q + 4], 0x88);
      const I32 b = _mm512_shuffle_i32x4(r[q], r[q + 4], 0xdd);
      const I32 c = _mm512_shuffle_i32x4(r[q + 8], r[q + 12], 0x88);
      const I32 d = _mm512_shuffle_i32x4(r[q + 8], r[q + 12], 0xdd);
      t[q] = _mm512_shuffle_i32x4(a, c, 0x88);
      t[q + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
      t[q + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
      t[q + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

  // The same in memory, rows of 64 bytes so many bytes apart.
  static void transpose_words(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
    transpose_words_avx2(from, from_stride, to, to_stride);
  }

  using ByteTable = __m512i;
  using FloatTable = __m512;
  static constexpr bool kLooksUpFloats = true;  // vpermps: a conversion and a subtraction less
  static ByteTable byte_table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FloatTable float_table(const float* p) { return load(p); }
  static I32 lookup(ByteTable t, I32 quad) { return _mm512_shuffle_epi8(t, quad); }
  static F32 lookup_f32(FloatTable t, I32 codes) { return _mm512_permutexvar_ps(codes, t); }
  // 16 values of 16 bits, and 32 of them by codes of bytes.
  using HalfTable = __m512i;  // twice
  static HalfTable half_table(const uint16_t* p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_lookup(void* to, HalfTable t, const uint8_t* codes) {
    const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(c), t));
  }

  template <int MR>
  static NIBBLAS_INLINE const int32_t* load_column(const int32_t* p) {
    return p;
  }
  template <int m>
  static NIBBLAS_INLINE F32 lane_of(const int32_t* column) {
    return from_bits(set1_i32(column[m]));
  }

  static I32 dot_i16(I32 acc, I32 a, I32 b) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
  }

  // Operands of at most 127: see avx2.h for why int16 holds the sums, and for how many steps.
  struct NarrowDot : I32Dot<Avx512, NarrowDot> {
    using W = I32;
    using Acc = I32;
    using X = I32;
    static constexpr bool kNarrow = true;
    static constexpr int64_t most_steps(int top) { return 32767 / (2 * 128 * top); }
    static X load_x(const int32_t* p) { return _mm512_set1_epi32(*p); }
    static Acc multiply(W w, X x) { return _mm512_maddubs_epi16(w, x); }
    static Acc step(Acc acc, W w, X x) { return _mm512_add_epi16(acc, multiply(w, x)); }
    static uint32_t large_pairs(const int8_t* x) {  // see avx2.h
      const I32 sums = _mm512_maddubs_epi16(_mm512_set1_epi8(1), load_i32(x));
      const I32 too = _mm512_movm_epi16(
          _mm512_cmpgt_epi16_mask(_mm512_abs_epi16(sums), _mm512_set1_epi16(kSafePair)));
      return _mm512_test_epi32_mask(too, too);
    }
    static I32 widen(Acc acc) { return _mm512_madd_epi16(acc, _mm512_set1_epi16(1)); }
    static I32 as_factor(I32 factor) {  // in both halves
      return or_i32(and_i32(factor, set1_i32(0xffff)), shl<16>(factor));
    }
    static I32 add_product(I32 total, Acc acc, I32 factor) { return dot_i16(total, acc, factor); }
  };

  // Larger ones, widened to int16: k0 and k2 of each output, then k1 and k3; the x words likewise.
  struct WideDot : I32Dot<Avx512, WideDot> {
    using OneRow = HalvesDot<Avx512, NarrowDot>;
    using Swept = PairDot<Avx512, NarrowDot>;
    using W = I32;
    using Acc = I32;
    using X = I32;
    static constexpr int kQuadParts = 2;
    static constexpr bool kWideX = true;
    template <int part>
    static W operand(I32 quad) {
      if constexpr (part > 0) return _mm512_srli_epi16(quad, 8);
      return and_i32(quad, set1_i32(0x00ff00ff));
    }
    static X load_x(const int32_t* p) { return _mm512_set1_epi32(*p); }
    static Acc step(Acc acc, W w, X x) { return dot_i16(acc, w, x); }
  };

  template <int top>
  using DotFor = typename Choose<(top < 128), NarrowDot, WideDot>::type;
  template <int top>
  using IntegerDotFor = DotFor<top>;  // where x may be -128
};

}  // namespace
}  // namespace nibblas
