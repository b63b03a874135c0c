// SPDX-License-Identifier: Apache-2.0
// Codes to planes. 64 codes of 16 outputs are 16 x 16 words of four codes; transposed, a
// row of words is a plane row of 8-bit codes, and narrower planes are several rows shifted and
// joined.
#pragma once

#include "kernels/values.h"

namespace nibblas {
namespace {

constexpr int kChunk = 64;  // codes along K: 16 words
// Rows of codes come and go in runs: lines that lie a row apart share a few places in the caches,
// where rows are a power of two long. 16 runs of bytes take a quarter of L1.
constexpr int kRun = 512;
constexpr int kRunStride = kRun + kRowBytes;

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

template <class T>
inline typename T::I32 set1_bytes(int a) {
  return T::set1_i32(static_cast<int32_t>(0x01010101u * static_cast<uint32_t>(a & 255)));
}
// The sums of 64 bytes, modulo 256.
template <class T>
inline typename T::I32 add_bytes(typename T::I32 a, typename T::I32 b) {
  // The highest bits aside, so that no byte carries into the next.
  const auto rest = set1_bytes<T>(127);
  const auto sum = T::add_i32(T::and_i32(a, rest), T::and_i32(b, rest));
  return T::xor_i32(sum, T::and_i32(T::xor_i32(a, b), set1_bytes<T>(128)));
}

// One chunk of rows of words to the rows of one plane: the slice of `Bits` bits from `low` on.
template <class T, int Bits>
inline void words_to_plane(const uint8_t* words, int low, bool past_caches, uint8_t* plane) {
  constexpr int per_byte = 8 / Bits;
  for (int j = 0; j < 16 / per_byte; ++j) {
    auto row = T::zero_i32();
    unroll<per_byte>([&](auto t) NIBBLAS_INLINE_LAMBDA {
      const auto word = T::load_i32(words + (per_byte * j + t.value) * kRowBytes);
      const auto slice = T::and_i32(shift_right<T>(word, low), slice_mask<T, Bits>());
      row = T::or_i32(row, T::template shl<Bits * t.value>(slice));
    });
    if (past_caches) {
      T::stream(plane + j * kRowBytes, row);
    } else {
      T::store_i32(plane + j * kRowBytes, row);
    }
  }
}

// Writes chunk `chunk` of a panel to all planes of a code of `bits` bits.
template <class T>
inline void store_chunk(const uint8_t* words, int bits, int64_t depth_padded, int64_t panel,
                        int64_t chunk, bool past_caches, uint8_t* const* planes) {
  int widths[kMaxSlices];
  const int slices = slice_widths(bits, widths);
  for (int s = 0, low = 0; s < slices; low += widths[s], ++s) {
    const int64_t row = panel * plane_rows(depth_padded, widths[s]) + chunk * 2 * widths[s];
    uint8_t* plane = planes[s] + row * kRowBytes;
    switch (widths[s]) {
      case 8: words_to_plane<T, 8>(words, low, past_caches, plane); break;
      case 4: words_to_plane<T, 4>(words, low, past_caches, plane); break;
      case 2: words_to_plane<T, 2>(words, low, past_caches, plane); break;
      default: words_to_plane<T, 1>(words, low, past_caches, plane);
    }
  }
}

// Makes stored codes of 64 bytes, and notes in the highest bits of bytes whether one is too large.
template <class T>
struct CodeCheck {
  typename T::I32 add, room;
  typename T::I32 seen = T::zero_i32();

  // A code above `top`, if that is below 128, has its highest bit set or gets it from the room
  // that is left; no byte carries into the next but one that is too large.
  explicit CodeCheck(const PackJob& job)
      : add(set1_bytes<T>(job.add)), room(set1_bytes<T>(job.top < 128 ? 127 - job.top : 0)) {}

  typename T::I32 stored(typename T::I32 given) {
    const auto codes = add_bytes<T>(given, add);
    seen = T::or_i32(seen, T::or_i32(codes, T::add_i32(codes, room)));
    return codes;
  }
  bool fits(int top) const {
    const auto high = T::template shr<1>(T::and_i32(seen, set1_bytes<T>(128)));
    return top > 127 || T::reduce_max_i32(high) == 0;
  }
};

// Codes k .. k + count - 1 of a row, stored, then zeros up to whole chunks.
template <class T>
inline void load_run(const PackJob& job, int64_t row, int64_t k, int64_t count,
                     CodeCheck<T>& check, char* codes) {
  const int64_t stride = job.codes.col_stride;
  const char* from = matrix_row(job.codes, row);
  const bool dense = !job.input_order && stride == 1;
  const int64_t whole = dense ? count / kChunk * kChunk : 0;
  // What is read two runs later, of this row or of the next panel's: one run's time is too short.
  const char* next = from + k + 2 * kRun;
  if (k + 2 * kRun >= job.depth) next += kPanel * job.codes.row_stride - job.depth;
  for (int64_t i = 0; i < whole; i += kChunk) {
    T::prefetch_l2(next + i);
    T::store_i32(codes + i, check.stored(T::load_i32(from + k + i)));
  }
  if (whole == count) return;
  if (job.input_order) {
    for (int64_t i = 0; i < count; ++i) codes[i] = from[job.input_order[k + i] * stride];
  } else {
    copy_strided(codes + whole, 1, from + (k + whole) * stride, stride, count - whole, 1);
  }
  const int64_t padded = round_up(count, kChunk);
  const auto pad = static_cast<size_t>(padded - count);
  memset(codes + count, -job.add & 255, pad);  // stored as 0
  for (int64_t i = whole; i < padded; i += kChunk) {
    T::store_i32(codes + i, check.stored(T::load_i32(codes + i)));
  }
}

// A chunk of words from a (depth, cols) matrix, where the 16 outputs lie side by side.
template <class T>
inline void load_words_transposed(const PackJob& job, int64_t n0, int64_t k, CodeCheck<T>& check,
                                  uint8_t* words) {
  for (int r = 0; r < 16; ++r) {
    auto word = T::set1_i32(0);
    auto valid = T::set1_i32(0);
    unroll<4>([&](auto i) NIBBLAS_INLINE_LAMBDA {
      const int64_t row = k + 4 * r + i.value;
      if (row >= job.depth) return;
      const auto codes = T::load_u8(job.codes.data + row * job.codes.col_stride + n0);
      word = T::or_i32(word, T::template shl<8 * i.value>(codes));
      valid = T::or_i32(valid, T::template shl<8 * i.value>(T::set1_i32(255)));
    });
    // What is not there is stored as 0.
    const auto absent = T::and_i32(set1_bytes<T>(-job.add), T::xor_i32(valid, T::set1_i32(-1)));
    T::store_i32(words + r * kRowBytes, check.stored(T::or_i32(word, absent)));
  }
}

// False if a code is out of range.
template <class T>
bool pack(const PackJob& job, int64_t panel) {
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, job.cols - n0);
  const bool transposed = job.codes.row_stride == 1 && !job.codes.row_offsets &&
                          !job.input_order && outputs == kPanel;
  CodeCheck<T> check(job);
  alignas(kRowBytes) uint8_t codes[kPanel * kRunStride];
  if (outputs < kPanel) memset(codes, 0, sizeof codes);
  for (int64_t k = 0; k < job.depth_padded; k += kRun) {
    const int64_t run = smaller(kRun, job.depth_padded - k);
    const int64_t count = smaller(run, job.depth - k);
    for (int n = 0; n < outputs && !transposed; ++n) {
      char* row = reinterpret_cast<char*>(codes + n * kRunStride);
      if (count > 0) load_run<T>(job, n0 + n, k, count, check, row);
      const int64_t filled = count > 0 ? round_up(count, kChunk) : 0;
      memset(row + filled, 0, static_cast<size_t>(run - filled));
    }
    for (int64_t at = 0; at < run; at += kChunk) {
      alignas(kRowBytes) uint8_t words[16 * kRowBytes];
      if (transposed) {
        load_words_transposed<T>(job, n0, k + at, check, words);
      } else {
        T::transpose_words(codes + at, kRunStride, words, kRowBytes);
      }
      store_chunk<T>(words, job.bits, job.depth_padded, panel, (k + at) / kChunk,
                     job.past_caches, job.planes);
    }
  }
  if (job.past_caches) T::drain();
  return check.fits(job.top);
}

}  // namespace
}  // namespace nibblas
