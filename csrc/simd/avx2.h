// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C: a panel of 16 lanes is two ymm. There is no exact u8 x s8 dot product
// into int32, so codes take one of four exact ways: small codes add up in int16; 8-bit codes widen,
// or add up in int16 with halves of a single row of x, or pair by pair with rows whose rests are
// multiplied apart.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/dot_defaults.h"
#include "simd/transpose_words.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

struct Avx2 {
  static constexpr const char* kName = "avx2";
  static constexpr int kRegisters = 8;  // panel-wide registers: 16 ymm

  // 6 rows x 1 panel: 12 accumulators, 2 operands, 1 broadcast and 1 product are the 16 ymm.
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmPanels = 1;
  static constexpr int kTwoLevelRows = 0;  // none of their own: see tile_rows
  static constexpr int kTwoLevelPanels = 0;
  static constexpr bool kPinsSums = true;  // see multiply_steps
  static constexpr int kGemvRows = 4;
  static constexpr int kStreamRows = 2;    // see reads_one_stream
  static constexpr int kFarRows = 1;       // see kPrefetchFarBytes
  static constexpr int kStraightRows = 8;  // see straight_rows
  static constexpr int kRestsRows = 3;     // see takes_rests
  static constexpr bool kSingleRowStraight = true;  // see product.h
  static constexpr int two_level_straight_rows(int) { return kStraightRows; }
  static constexpr int gemv_panels(int rows) { return rows <= 2 ? 2 : 1; }

  struct F32 {
    __m256 lo, hi;
  };
  struct I32 {
    __m256i lo, hi;
  };
  using Mask = I32;  // all ones where true

  static F32 set1(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
  static F32 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F32 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
  }
  static F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F32 fma(F32 a, F32 b, F32 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static F32 rint(F32 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
  }
  static F32 select(Mask m, F32 yes, F32 no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_castsi256_ps(m.lo)),
            _mm256_blendv_ps(no.hi, yes.hi, _mm256_castsi256_ps(m.hi))};
  }
  template <int predicate>
  static Mask compare(F32 a, F32 b) {
    return {_mm256_castps_si256(_mm256_cmp_ps(a.lo, b.lo, predicate)),
            _mm256_castps_si256(_mm256_cmp_ps(a.hi, b.hi, predicate))};
  }
  static Mask lt(F32 a, F32 b) { return compare<_CMP_LT_OQ>(a, b); }
  static Mask le(F32 a, F32 b) { return compare<_CMP_LE_OQ>(a, b); }
  static Mask eq(F32 a, F32 b) { return compare<_CMP_EQ_OQ>(a, b); }
  static Mask is_nan(F32 a) { return compare<_CMP_UNORD_Q>(a, a); }
  static I32 bits(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
  static F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
  static F32 abs(F32 a) { return from_bits(and_i32(bits(a), set1_i32(0x7fffffff))); }
  static F32 neg(F32 a) { return from_bits(xor_i32(bits(a), set1_i32(INT32_MIN))); }

  static I32 set1_i32(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
  static I32 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I32 load_i32(const void* p) {
    const __m256i* q = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
  }
  static void store_i32(void* p, I32 a) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_storeu_si256(q, a.lo);
    _mm256_storeu_si256(q + 1, a.hi);
  }
  static I32 add_i32(I32 a, I32 b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
  }
  static I32 sub_i32(I32 a, I32 b) {
    return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
  }
  static I32 mul_i32(I32 a, I32 b) {
    return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
  }
  static I32 and_i32(I32 a, I32 b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
  }
  static I32 or_i32(I32 a, I32 b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
  }
  static I32 xor_i32(I32 a, I32 b) {
    return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
  }
  static I32 and_or(I32 a, I32 b, I32 c) { return or_i32(and_i32(a, b), c); }
  static I32 max_i32(I32 a, I32 b) {
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
  }
  static I32 min_i32(I32 a, I32 b) {
    return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
  }
  template <int n>
  static I32 shl(I32 a) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
  template <int n>
  static I32 shr(I32 a) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
  template <int n>
  static I32 sar(I32 a) { return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)}; }
  static I32 select_i32(Mask m, I32 yes, I32 no) {
    return {_mm256_blendv_epi8(no.lo, yes.lo, m.lo), _mm256_blendv_epi8(no.hi, yes.hi, m.hi)};
  }
  static Mask lt_i32(I32 a, I32 b) {
    return {_mm256_cmpgt_epi32(b.lo, a.lo), _mm256_cmpgt_epi32(b.hi, a.hi)};
  }
  static F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
  static I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
  static int32_t reduce_max_i32(I32 a) {
    const __m256i y = _mm256_max_epi32(a.lo, a.hi);
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return _mm_cvtsi128_si32(x);
  }
  static int32_t reduce_add_i32(I32 a) {
    const __m256i y = _mm256_add_epi32(a.lo, a.hi);
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return _mm_cvtsi128_si32(x);
  }

  // 16 values of a narrower type to and from 32-bit lanes.
  static I32 load_u8(const void* p) {
    const auto load8 = [p](int at) {
      return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const char*>(p) + at));
    };
    return {_mm256_cvtepu8_epi32(load8(0)), _mm256_cvtepu8_epi32(load8(8))};
  }
  static I32 load_u16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
  }
  static F32 load_f16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }
  static void store_i8(void* p, I32 a) {
    // Lanes hold -128 .. 127, so the saturating packs only narrow.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(static_cast<__m128i*>(p), bytes);
  }
  static void store_u16(void* p, I32 a) {  // lanes hold 0 .. 65,535
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a.lo, a.hi), 0xd8);
    _mm256_storeu_si256(static_cast<__m256i*>(p), words);
  }
  static void store_f16(void* p, F32 a) {
    const __m128i lo = _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT);
    const __m128i hi = _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(lo), hi, 1);
    _mm256_storeu_si256(static_cast<__m256i*>(p), both);
  }
  // Past the caches, to a multiple of 64; `drain` before another thread may read it.
  static void stream(void* p, I32 a) {
    __m256i* q = static_cast<__m256i*>(p);
    _mm256_stream_si256(q, a.lo);
    _mm256_stream_si256(q + 1, a.hi);
  }
  static void drain() { _mm_sfence(); }
  // Inlined at once: GCC takes a function that only prefetches for one without effect, and drops
  // calls of it.
  static NIBBLAS_INLINE void prefetch_l2(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
  static NIBBLAS_INLINE void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
  }

  // Hides a value from the optimizer: it must be in registers at this point.
  template <class V>
  static NIBBLAS_INLINE void hide(V& a) {
#if defined(__GNUC__)
    __asm__ volatile("" : "+x"(a.lo), "+x"(a.hi));
#else
    static_cast<void>(a);
#endif
  }

  // r[i] lane j  <->  r[j] lane i, for 8 vectors of 8 lanes.
  static void transpose8(__m256i r[8]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int q = 0; q < 4; ++q) {
      t[q] = _mm256_permute2x128_si256(r[q], r[q + 4], 0x20);
      t[q + 4] = _mm256_permute2x128_si256(r[q], r[q + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }

  // rows[r] lane c  <->  rows[c] lane r, as four 8 x 8 blocks of which two change places.
  static void transpose16(I32 r[16]) {
    __m256i block[8];
    const auto transpose_block = [&](int row0, bool high_in, __m256i out[8]) {
      for (int i = 0; i < 8; ++i) out[i] = high_in ? r[row0 + i].hi : r[row0 + i].lo;
      transpose8(out);
    };
    __m256i top_right[8];
    transpose_block(0, true, top_right);
    transpose_block(8, false, block);
    for (int i = 0; i < 8; ++i) r[i].hi = block[i];
    for (int i = 0; i < 8; ++i) r[8 + i].lo = top_right[i];
    transpose_block(0, false, block);
    for (int i = 0; i < 8; ++i) r[i].lo = block[i];
    transpose_block(8, true, block);
    for (int i = 0; i < 8; ++i) r[8 + i].hi = block[i];
  }

  // The same in memory, rows of 64 bytes so many bytes apart.
  static void transpose_words(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
    transpose_words_avx2(from, from_stride, to, to_stride);
  }

  struct FloatTable {
    __m256 lo, hi;
  };
  using ByteTable = __m256i;
  static constexpr bool kLooksUpFloats = false;  // vpermps has one port, vcvtdq2ps has two
  static constexpr bool kPairsBfloat16 = false;  // see avx512.h
  static ByteTable byte_table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static FloatTable float_table(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
  }
  static I32 lookup(ByteTable t, I32 quad) {
    return {_mm256_shuffle_epi8(t, quad.lo), _mm256_shuffle_epi8(t, quad.hi)};
  }
  // 16 values of 16 bits, their low and high bytes, and 32 of them by codes of bytes.
  struct HalfTable {
    __m256i low, high;
  };
  static HalfTable half_table(const uint16_t* p) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i low = _mm256_and_si256(values, _mm256_set1_epi16(255));
    const __m256i both = _mm256_packus_epi16(low, _mm256_srli_epi16(values, 8));
    // [low 0..7, high 0..7, low 8..15, high 8..15]
    return {_mm256_permute4x64_epi64(both, 0x88), _mm256_permute4x64_epi64(both, 0xdd)};
  }
  static void store_lookup(void* to, HalfTable t, const uint8_t* codes) {
    // Interleaving is by halves of a register, so codes 8..15 and 16..23 change places.
    const __m256i c = _mm256_permute4x64_epi64(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), 0xd8);
    const __m256i low = _mm256_shuffle_epi8(t.low, c);
    const __m256i high = _mm256_shuffle_epi8(t.high, c);
    auto* out = static_cast<__m256i*>(to);
    _mm256_storeu_si256(out, _mm256_unpacklo_epi8(low, high));
    _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi8(low, high));
  }
  static __m256 lookup8(FloatTable t, __m256i codes) {  // bit 3 chooses the half
    const __m256 low = _mm256_permutevar8x32_ps(t.lo, codes);
    const __m256 high = _mm256_permutevar8x32_ps(t.hi, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
  }
  static F32 lookup_f32(FloatTable t, I32 codes) {
    return {lookup8(t, codes.lo), lookup8(t, codes.hi)};
  }

  template <int MR>
  static NIBBLAS_INLINE const int32_t* load_column(const int32_t* p) { return p; }
  template <int m>
  static NIBBLAS_INLINE F32 lane_of(const int32_t* column) {
    return from_bits(set1_i32(column[m]));
  }

  static I32 dot_i16(I32 acc, I32 a, I32 b) {
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
            _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
  }

  // Operands of at most 127: vpmaddubsw pair sums stay in int16 for 32767 / (2 * top * 128) steps,
  // with 4 bits 8 (8 * 2 * 15 * 128 = 30,720), with 7 bits 1 (2 * 127 * 128 = 32,512); then
  // vpmaddwd widens them, and multiplies them with a factor by the way.
  struct NarrowDot : I32Dot<Avx2, NarrowDot> {
    using W = I32;
    using Acc = I32;
    using X = __m256i;
    static constexpr bool kNarrow = true;
    static constexpr int64_t most_steps(int top) { return 32767 / (2 * 128 * top); }
    static X load_x(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Acc multiply(W w, X x) {
      return {_mm256_maddubs_epi16(w.lo, x), _mm256_maddubs_epi16(w.hi, x)};
    }
    static Acc step(Acc acc, W w, X x) {  // half by half, which takes a register less
      return {_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(w.lo, x)),
              _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(w.hi, x))};
    }
    // Bit i: of the 16 words of four codes, the i-th has two in a pair that are too large together.
    static uint32_t large_pairs(const int8_t* x) {
      const auto large = [](__m256i codes) {
        const __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        const __m256i safe = _mm256_set1_epi16(kSafePair);
        const __m256i too = _mm256_cmpgt_epi16(_mm256_abs_epi16(sums), safe);
        const __m256i either = _mm256_or_si256(too, _mm256_slli_epi32(too, 16));
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(either)));
      };
      const I32 codes = load_i32(x);
      return large(codes.lo) | large(codes.hi) << 8;
    }
    static I32 widen(Acc acc) {
      const __m256i ones = _mm256_set1_epi16(1);
      return {_mm256_madd_epi16(acc.lo, ones), _mm256_madd_epi16(acc.hi, ones)};
    }
    static I32 as_factor(I32 factor) {  // in both halves
      return or_i32(and_i32(factor, set1_i32(0xffff)), shl<16>(factor));
    }
    static I32 add_product(I32 total, Acc acc, I32 factor) { return dot_i16(total, acc, factor); }
  };

  // Larger ones, widened to int16: k0 and k2 of each output, then k1 and k3; the x words likewise.
  struct WideDot : I32Dot<Avx2, WideDot> {
    using OneRow = HalvesDot<Avx2, NarrowDot>;
    using Swept = PairDot<Avx2, NarrowDot, 5>;  // 10 sums, 2 operands, a word, a product, ones
    using W = I32;
    using Acc = I32;
    using X = __m256i;
    static constexpr int kQuadParts = 2;
    static constexpr bool kWideX = true;
    template <int part>
    static W operand(I32 quad) {
      if constexpr (part > 0) return {_mm256_srli_epi16(quad.lo, 8), _mm256_srli_epi16(quad.hi, 8)};
      return and_i32(quad, set1_i32(0x00ff00ff));
    }
    static X load_x(const int32_t* p) { return _mm256_set1_epi32(*p); }
    static Acc step(Acc acc, W w, X x) { return dot_i16(acc, w, {x, x}); }
  };

  template <int top>
  using DotFor = typename Choose<(top < 128), NarrowDot, WideDot>::type;
  template <int top>
  using IntegerDotFor = DotFor<top>;  // where x may be -128
};

}  // namespace
}  // namespace nibblas
