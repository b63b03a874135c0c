// SPDX-License-Identifier: Apache-2.0
// 16 x 16 words from memory to memory, for both x86 targets. Halves of vectors meet as they are
// loaded, which leaves two rounds of shuffles of four; and there are twice as many units that
// shuffle ymm as zmm.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd/unroll.h"

namespace nibblas {
namespace {

// Word c of row r to word r of row c; rows of 64 bytes lie as many bytes apart as the strides say.
NIBBLAS_INLINE void transpose_words_avx2(const void* from, int64_t from_stride, void* to,
                                         int64_t to_stride) {
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  for (int c = 0; c < 16; c += 4) {
    for (int r = 0; r < 16; r += 8) {
      const auto load = [&](int i) NIBBLAS_INLINE_LAMBDA {
        const char* p = in + (r + i) * from_stride + 4 * c;
        const auto low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        const auto high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4 * from_stride));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
      };
      const auto store = [&](int i, __m256i v) NIBBLAS_INLINE_LAMBDA {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (c + i) * to_stride + 4 * r), v);
      };
      const auto r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
      const auto low01 = _mm256_unpacklo_epi32(r0, r1), high01 = _mm256_unpackhi_epi32(r0, r1);
      const auto low23 = _mm256_unpacklo_epi32(r2, r3), high23 = _mm256_unpackhi_epi32(r2, r3);
      store(0, _mm256_unpacklo_epi64(low01, low23));
      store(1, _mm256_unpackhi_epi64(low01, low23));
      store(2, _mm256_unpacklo_epi64(high01, high23));
      store(3, _mm256_unpackhi_epi64(high01, high23));
    }
  }
}

}  // namespace
}  // namespace nibblas
