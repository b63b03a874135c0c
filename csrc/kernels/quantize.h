// SPDX-License-Identifier: Apache-2.0
// Rows of activations: quantized per segment and packed in the order in which the tiles read them.
#pragma once

#include "kernels/rests.h"

namespace nibblas {
namespace {

// |x| as integers: of two the larger has the larger bits, and NaN is above infinity.
template <class T, FloatType kType>
inline typename T::I32 magnitude_bits(const void* x) {
  if constexpr (kType == FloatType::float32) {
    return T::and_i32(T::load_i32(x), T::set1_i32(0x7fffffff));
  } else {
    return T::and_i32(T::load_u16(x), T::set1_i32(0x7fff));
  }
}

// A row in segments of whole vectors to codes; done(index, a, sum of the codes) after each segment.
// Short segments are divided for 16 at a time; of long ones the second reading shall find L1.
template <class T, FloatType kType, class Done>
NIBBLAS_INLINE void quantize_segments(const char* x, int64_t depth, int64_t segment, int8_t* codes,
                                      const Done& done) {
  constexpr int64_t bytes = float_bytes(kType);
  using Bits = typename Choose<bytes == 4, int32_t, int16_t>::type;
  Bits most[kPanel] = {};
  float scales[kPanel], factors[kPanel];
  const int at_once = segment * bytes <= 1024 ? kPanel : 1;
  for (int64_t first = 0; first * segment < depth; first += at_once) {
    int count = 0;
    for (int64_t k = first * segment; k < depth && count < at_once; ++count) {
      auto m = T::zero_i32();
      for (const int64_t stop = smaller(k + segment, depth); k < stop; k += kPanel) {
        m = T::max_i32(m, magnitude_bits<T, kType>(x + k * bytes));
      }
      most[count] = static_cast<Bits>(T::reduce_max_i32(m));
    }
    const auto infinity = T::from_bits(T::set1_i32(0x7f800000));
    const auto amax = load_floats<T>(most, kType);
    const auto factor = T::div(T::set1(127.0f), amax);
    const auto usable = T::lt(factor, infinity);  // not where amax is 0 or nearly so
    const auto a = T::select(usable, T::div(amax, T::set1(127.0f)), T::zero_f32());
    const auto nan = T::from_bits(T::set1_i32(kCanonicalNan));
    T::store(scales, T::select(T::lt(amax, infinity), a, nan));
    T::store(factors, T::select(usable, factor, T::zero_f32()));
    int64_t k = first * segment;
    for (int i = 0; i < count; ++i) {
      const int64_t stop = smaller(k + segment, depth);
      auto total = T::zero_i32();
      if (scales[i] == scales[i]) {
        const auto r = T::set1(factors[i]);
        for (; k < stop; k += kPanel) {
          const auto code = T::to_i32(T::mul(load_floats<T>(x + k * bytes, kType), r));
          T::store_i8(codes + k, code);
          total = T::add_i32(total, code);
        }
      } else {
        memset(codes + k, 0, static_cast<size_t>(stop - k));
        k = stop;
      }
      done(first + i, scales[i], T::reduce_add_i32(total));
    }
  }
}

template <class T>
inline int32_t sum_codes(const int8_t* codes, int64_t count) {
  auto total = T::zero_i32();
  for (int64_t k = 0; k < count; k += kPanel) {
    const auto high = T::template shl<24>(T::load_u8(codes + k));
    total = T::add_i32(total, T::template sar<24>(high));
  }
  return T::reduce_add_i32(total);
}

inline int32_t negated_product(int32_t a, int32_t b) {
  return static_cast<int32_t>(0u - static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

// Codes of M rows, `padded` bytes apart, to words [depth / 4][M] of four int8, or, for targets that
// widen, [depth / 4][2][M] of two int16: k0 and k2, then k1 and k3. (With the rows one after the
// other, and their number not known, it took a twelfth of a product with 384 outputs.)
template <bool kWide, int M>
void interleave_rows(const int8_t* codes, int64_t padded, int32_t* words) {
  if (!kWide && M == 1) {
    memcpy(words, codes, static_cast<size_t>(padded));
    return;
  }
  for (int64_t k = 0; k < padded; k += 4) {
    unroll<M>([&](auto i) NIBBLAS_INLINE_LAMBDA {
      uint32_t word;
      memcpy(&word, codes + i.value * padded + k, 4);
      if constexpr (kWide) {
        // Sign extension of both halves at once: the even bytes, then the odd ones.
        const auto pair = [](uint32_t low, uint32_t high) {
          const auto lo = static_cast<uint16_t>(static_cast<int8_t>(low));
          const auto hi = static_cast<uint16_t>(static_cast<int8_t>(high));
          return static_cast<int32_t>(lo | static_cast<uint32_t>(hi) << 16);
        };
        words[i.value] = pair(word & 0xff, word >> 16 & 0xff);
        words[M + i.value] = pair(word >> 8 & 0xff, word >> 24);
      } else {
        words[i.value] = static_cast<int32_t>(word);
      }
    });
    words += kWide ? 2 * M : M;
    NIBBLAS_MEMORY_BARRIER();  // GCC's vectors of several k are 90 KB in all targets, and no faster
  }
}

// Codes of one row to words [depth / 4][2]: the halves of four codes, see HalvesDot. Byte by byte
// h = (v ^ 8) - 8 gives the low four bits v their sign; the high ones add what that takes away.
inline void split_row(const int8_t* codes, int64_t padded, int32_t* words) {
  const auto with_sign = [](uint32_t bytes) {  // of bytes + 8, at most 16
    return static_cast<int32_t>(((bytes | 0x80808080u) - 0x08080808u) ^ 0x80808080u);
  };
  for (int64_t k = 0; k < padded; k += 4, words += 2) {
    uint32_t word;
    memcpy(&word, codes + k, 4);
    const uint32_t low = (word & 0x0f0f0f0fu) ^ 0x08080808u;
    const uint32_t high = (word >> 4 & 0x0f0f0f0fu) ^ 0x08080808u;
    words[0] = with_sign(low);
    words[1] = with_sign(high + (word >> 3 & 0x01010101u));
  }
}

constexpr int kMostTileRows = 6;  // of words: see kGemmRows

// A column of x words per operand: narrow targets take int16 pairs where codes are large, unless
// `pairs` of four int8 are small enough.
template <class T>
inline void interleave(const Weight& w, const int8_t* codes, int m, bool pairs, int32_t* words) {
  using Small = typename T::template DotFor<kSmallOperand>;
  using Large = typename T::template DotFor<255>;
  static_assert(T::kGemmRows <= kMostTileRows && T::kGemvRows <= kMostTileRows);
  const bool wide = !pairs && (w.top_operand <= kSmallOperand ? Small::kWideX : Large::kWideX);
  with_rows<kMostTileRows>(m, [&](auto rows) {
    if constexpr (Small::kWideX || Large::kWideX) {
      if (wide) return interleave_rows<true, rows.value>(codes, w.depth_padded, words);
    }
    if constexpr (!Small::kWideX || !Large::kWideX) {
      if (!wide) return interleave_rows<false, rows.value>(codes, w.depth_padded, words);
    }
  });
}

// In which order a tile's rows are packed: words of four codes side by side.
template <class T>
struct WordOrder {
  static constexpr bool kWholeTiles = false;  // the last tile has only the rows that are left
  static void put(const Weight& w, int8_t* codes, int m, int, int64_t row0,
                  const PackedRows& out) {
    using Swept = typename T::template DotFor<255>::Swept;
    bool pairs = false;
    if constexpr (Swept::kRestsX) {
      pairs = out.rests && take_rests_of_tile<Swept>(w, codes, m, row0, out);
    }
    interleave<T>(w, codes, m, pairs, out.words + row0 * out.row_words);
  }
};

// A row as floats and up to `rows` rows of codes.
template <int rows>
size_t pack_rows_scratch_bytes(const Weight& w) {
  return static_cast<size_t>(w.depth_padded) * (sizeof(float) + rows) + 64;
}

// Two-level: the sums of the codes of each pair of groups of a super-block, as two int16 (the
// greatest is 256 * 127 = 32,512); the next pair's is m words further.
template <class T>
void pair_sums(const Weight& w, const int8_t* codes, int m, int32_t* starts) {
  for (int64_t k = 0; k < kSuperBlock; k += 2 * w.group, starts += m) {
    const auto low = static_cast<uint32_t>(sum_codes<T>(codes + k, w.group)) & 0xffff;
    uint32_t high = 0;
    if (k + w.group < kSuperBlock) {
      high = static_cast<uint32_t>(sum_codes<T>(codes + k + w.group, w.group)) << 16;
    }
    *starts = static_cast<int32_t>(low | high);
  }
}

// int8 compute: codes, a, and what the zero point and mins need of the sum of the codes.
template <class T, class Order = WordOrder<T>>
void pack_quantized_rows(const RowsJob& job, int64_t row0, void* scratch) {
  const Weight& w = *job.weight;
  const PackedRows& out = job.packed;
  const int count = static_cast<int>(smaller(out.tile_rows, out.rows - row0));
  const int m = Order::kWholeTiles ? out.tile_rows : count;
  const int zero = w.zero - operand_bias<T>(w);
  float* floats = static_cast<float*>(scratch);
  int8_t* codes = reinterpret_cast<int8_t*>(floats + w.depth_padded);
  const int64_t at = row0 * out.segments;
  for (int i = 0; i < count; ++i) {
    const float* x =
        row_as_floats<T>(job.x, job.type, row0 + i, w.depth, w.depth_padded, w.input_order, floats);
    int8_t* row = codes + i * w.depth_padded;
    const auto done = [&](int64_t s, float a, int32_t sum) NIBBLAS_INLINE_LAMBDA {
      const int64_t index = at + s * m + i;
      out.scales[index] = w.codebook_type == CodebookType::float32 ? a / 127.0f : a;
      if (w.two_level) {
        int32_t* starts = out.starts + (at + s * m) * out.segment_starts + i;
        return pair_sums<T>(w, row + s * out.segment, m, starts);
      }
      out.starts[index] = w.zero_points ? negated_product(sum, 1) : negated_product(sum, zero);
      if (out.sums) out.sums[index] = a * static_cast<float>(sum);
    };
    // With scales per channel one a is for the whole row, and a sum for each segment.
    const bool apart = w.per_channel && out.segments > 1;
    float whole = 0;
    const auto quantized = [&](int64_t s, float a, int32_t sum) NIBBLAS_INLINE_LAMBDA {
      whole = a;
      if (!apart) done(s, a, sum);
    };
    quantize_segments<T, FloatType::float32>(reinterpret_cast<const char*>(x), w.depth_padded,
                                             apart ? w.depth_padded : out.segment, row, quantized);
    for (int64_t s = 0; apart && s < out.segments; ++s) {
      const int64_t k = s * out.segment;
      done(s, whole, sum_codes<T>(row + k, smaller(out.segment, w.depth_padded - k)));
    }
  }
  if (takes_halves<T>(w, out.rows)) return split_row(codes, w.depth_padded, out.words);
  Order::put(w, codes, m, count, row0, out);
}

// float32 compute: x itself, [depth][m], and its ascending sum over each group for the mins.
template <class T>
void pack_float_rows(const RowsJob& job, int64_t row0, void* scratch) {
  const Weight& w = *job.weight;
  const PackedRows& out = job.packed;
  const int m = static_cast<int>(smaller(out.tile_rows, out.rows - row0));
  int32_t* words = out.words + row0 * out.row_words;
  for (int i = 0; i < m; ++i) {
    const float* x = row_as_floats<T>(job.x, job.type, row0 + i, w.depth, w.depth_padded,
                                      w.input_order, static_cast<float*>(scratch));
    for (int64_t k = 0; k < w.depth_padded; ++k) memcpy(words + k * m + i, x + k, 4);
    if (!out.sums) continue;
    for (int64_t s = 0; s < out.segments; ++s) {
      const int64_t end = smaller((s + 1) * out.segment, w.depth_padded);
      float sum = 0;
      for (int64_t k = s * out.segment; k < end; ++k) sum += x[k];
      out.sums[row0 * out.segments + s * m + i] = sum;
    }
  }
}

// Integers as signed codes: unsigned ones move down by 128.
template <class T, class Order = WordOrder<T>>
void pack_integer_rows(const IntegerRowsJob& job, int64_t row0, void* scratch) {
  const Weight& w = *job.weight;
  const PackedRows& out = job.packed;
  const int count = static_cast<int>(smaller(out.tile_rows, out.rows - row0));
  const int m = Order::kWholeTiles ? out.tile_rows : count;
  const int zero = job.zeros_vary ? 1 : job.zero - operand_bias<T>(w);
  int8_t* codes = static_cast<int8_t*>(scratch);
  for (int i = 0; i < count; ++i) {
    int8_t* row = codes + i * w.depth_padded;
    copy_strided(reinterpret_cast<char*>(row), 1, matrix_row(job.a, row0 + i), job.a.col_stride,
                 w.depth, 1);
    memset(row + w.depth, 0, static_cast<size_t>(w.depth_padded - w.depth));
    uint32_t sum = 0;
    for (int64_t k = 0; k < w.depth; ++k) {
      if (job.is_unsigned) row[k] = static_cast<int8_t>(row[k] ^ -128);
      sum += static_cast<uint32_t>(row[k]);
    }
    out.starts[row0 + i] = negated_product(static_cast<int32_t>(sum), zero);
  }
  for (int i = count; i < m; ++i) out.starts[row0 + i] = 0;
  Order::put(w, codes, m, count, row0, out);
}

// Plain codes and scales of a row of x, for quantize_activations: read where it lies if it is of
// whole vectors (against a row of floats first, halves take 0.65..0.8 of the time). `scratch` has
// room for whole vectors of floats and codes.
template <class T>
void quantize_row(const Matrix& x, FloatType type, int64_t row, int64_t depth, int64_t segment,
                  void* scratch, int8_t* codes, float* scales) {
  const char* from = matrix_row(x, row);
  const auto keep = [&](int64_t s, float a, int32_t) NIBBLAS_INLINE_LAMBDA { scales[s] = a; };
  if (x.col_stride == float_bytes(type) && depth % kPanel == 0) {
    switch (type) {
      case FloatType::float32:
        return quantize_segments<T, FloatType::float32>(from, depth, segment, codes, keep);
      case FloatType::float16:
        return quantize_segments<T, FloatType::float16>(from, depth, segment, codes, keep);
      case FloatType::bfloat16:
        return quantize_segments<T, FloatType::bfloat16>(from, depth, segment, codes, keep);
    }
  }
  const int64_t padded = (depth + kPanel - 1) / kPanel * kPanel;
  float* buffer = static_cast<float*>(scratch);
  int8_t* whole_vectors = reinterpret_cast<int8_t*>(buffer + padded);
  from =
      reinterpret_cast<const char*>(row_as_floats<T>(x, type, row, depth, padded, nullptr, buffer));
  quantize_segments<T, FloatType::float32>(from, depth, segment, whole_vectors, keep);
  memcpy(codes, whole_vectors, static_cast<size_t>(depth));
}

}  // namespace
}  // namespace nibblas
