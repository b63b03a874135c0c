// SPDX-License-Identifier: Apache-2.0
// Codes to planes and back. 64 codes of 16 outputs are 16 x 16 words of four codes; transposed, a
// row of words is a plane row of 8-bit codes, and narrower planes are several rows shifted and
// joined.
#pragma once

#include "kernels/values.h"

namespace nibblas {
namespace {

constexpr int kChunk = 64;  // codes along K: 16 words

template <class T>
inline typename T::I32 shift_right(typename T::I32 a, int n) {
  switch (n) {  // where a slice of a code begins
    case 2: return T::template shr<2>(a);
    case 4: return T::template shr<4>(a);
    case 6: return T::template shr<6>(a);
    default: return a;
  }
}
template <class T>
inline typename T::I32 shift_left(typename T::I32 a, int n) {
  switch (n) {
    case 2: return T::template shl<2>(a);
    case 4: return T::template shl<4>(a);
    case 6: return T::template shl<6>(a);
    default: return a;
  }
}

template <class T, int Bits>
inline typename T::I32 slice_mask() {
  return T::set1_i32(static_cast<int32_t>(0x01010101u * ((1u << Bits) - 1)));
}

// One chunk of word rows to the rows of one plane: the slice of `Bits` bits that begins at `low`.
template <class T, int Bits>
inline void words_to_plane(const typename T::I32 words[16], int low, uint8_t* plane) {
  constexpr int per_byte = 8 / Bits;
  for (int j = 0; j < 16 / per_byte; ++j) {
    auto row = T::zero_i32();
    unroll<per_byte>([&](auto t) NIBBLAS_INLINE_LAMBDA {
      const auto slice = T::and_i32(shift_right<T>(words[per_byte * j + t.value], low),
                                    slice_mask<T, Bits>());
      row = T::or_i32(row, T::template shl<Bits * t.value>(slice));
    });
    T::store_i32(plane + j * kRowBytes, row);
  }
}

template <class T, int Bits>
inline void plane_to_words(const uint8_t* plane, int low, typename T::I32 words[16]) {
  constexpr int per_byte = 8 / Bits;
  for (int j = 0; j < 16 / per_byte; ++j) {
    const auto row = T::load_i32(plane + j * kRowBytes);
    unroll<per_byte>([&](auto t) NIBBLAS_INLINE_LAMBDA {
      const auto slice = T::and_i32(T::template shr<Bits * t.value>(row), slice_mask<T, Bits>());
      auto& word = words[per_byte * j + t.value];
      word = T::or_i32(word, shift_left<T>(slice, low));
    });
  }
}

// Writes chunk `chunk` of a panel to all planes of a code of `bits` bits.
template <class T>
inline void store_chunk(const typename T::I32 words[16], int bits, int64_t depth_padded,
                        int64_t panel, int64_t chunk, uint8_t* const* planes) {
  int widths[kMaxSlices];
  const int slices = slice_widths(bits, widths);
  for (int s = 0, low = 0; s < slices; low += widths[s], ++s) {
    const int64_t row = panel * plane_rows(depth_padded, widths[s]) + chunk * 2 * widths[s];
    uint8_t* plane = planes[s] + row * kRowBytes;
    switch (widths[s]) {
      case 8: words_to_plane<T, 8>(words, low, plane); break;
      case 4: words_to_plane<T, 4>(words, low, plane); break;
      case 2: words_to_plane<T, 2>(words, low, plane); break;
      default: words_to_plane<T, 1>(words, low, plane);
    }
  }
}

// 64 codes along K of 16 outputs as word rows, from rows of codes: word n of row r is k 4r .. 4r+3.
template <class T>
inline void load_words(const PackJob& job, int64_t n0, int64_t outputs, int64_t k,
                       typename T::I32 words[16]) {
  const int64_t count = smaller(kChunk, job.depth - k);
  for (int n = 0; n < kPanel; ++n) {
    if (n >= outputs || count <= 0) {
      words[n] = T::zero_i32();
      continue;
    }
    const char* from = matrix_row(job.codes, n0 + n) + k * job.codes.col_stride;
    char dense[kChunk] = {};
    if (count < kChunk || job.codes.col_stride != 1) {
      copy_strided(dense, 1, from, job.codes.col_stride, count, 1);
      from = dense;
    }
    words[n] = T::load_i32(from);
  }
  T::transpose16(words);
}

// The same from a (depth, cols) matrix, where the 16 outputs lie side by side.
template <class T>
inline void load_words_transposed(const PackJob& job, int64_t n0, int64_t k,
                                  typename T::I32 words[16]) {
  for (int r = 0; r < 16; ++r) {
    words[r] = T::zero_i32();
    unroll<4>([&](auto i) NIBBLAS_INLINE_LAMBDA {
      const int64_t row = k + 4 * r + i.value;
      if (row >= job.depth) return;
      const auto codes = T::load_u8(job.codes.data + row * job.codes.col_stride + n0);
      words[r] = T::or_i32(words[r], T::template shl<8 * i.value>(codes));
    });
  }
}

template <class T>
void pack(const PackJob& job, int64_t panel) {
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, job.cols - n0);
  const bool transposed =
      job.codes.row_stride == 1 && !job.codes.row_offsets && outputs == kPanel;
  const auto flip = T::set1_i32(job.is_signed ? static_cast<int32_t>(0x80808080u) : 0);
  for (int64_t k = 0; k < job.depth_padded; k += kChunk) {
    typename T::I32 words[16];
    if (transposed) {
      load_words_transposed<T>(job, n0, k, words);
    } else {
      load_words<T>(job, n0, outputs, k, words);
    }
    for (auto& word : words) word = T::xor_i32(word, flip);
    store_chunk<T>(words, job.bits, job.depth_padded, panel, k / kChunk, job.planes);
  }
}

template <class T>
void unpack(const UnpackJob& job, int64_t panel) {
  const Weight& w = *job.weight;
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, w.cols - n0);
  for (int64_t k = 0; k < w.depth; k += kChunk) {
    typename T::I32 words[16];
    for (auto& word : words) word = T::zero_i32();
    for (int s = 0, low = 0; s < w.slices; low += w.slice[s].bits, ++s) {
      const int bits = w.slice[s].bits;
      const int64_t row = panel * plane_rows(w.depth_padded, bits) + k / kChunk * 2 * bits;
      const uint8_t* plane = w.slice[s].data + row * kRowBytes;
      switch (bits) {
        case 8: plane_to_words<T, 8>(plane, low, words); break;
        case 4: plane_to_words<T, 4>(plane, low, words); break;
        case 2: plane_to_words<T, 2>(plane, low, words); break;
        default: plane_to_words<T, 1>(plane, low, words);
      }
    }
    T::transpose16(words);
    const int64_t count = smaller(kChunk, w.depth - k);
    for (int n = 0; n < outputs; ++n) {
      char* to = mutable_row(job.codes, n0 + n);
      char dense[kChunk];
      T::store_i32(dense, words[n]);
      if (!w.input_order && job.codes.col_stride == 1) {
        memcpy(to + k, dense, static_cast<size_t>(count));
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t col = w.input_order ? w.input_order[k + i] : k + i;
        to[col * job.codes.col_stride] = dense[i];
      }
    }
  }
}

}  // namespace
}  // namespace nibblas
