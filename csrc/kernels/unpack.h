// SPDX-License-Identifier: Apache-2.0
// Planes to codes, and rows of results to memory.
#pragma once

#include "kernels/pack.h"

namespace nibblas {
namespace {

// Adds a plane's slice of 64 codes, the bits from `low` on, to rows of words of four codes; the
// first one begins them.
template <class T, int Bits, bool kFirst>
inline void plane_to_words(const uint8_t* plane, int low, uint8_t* words) {
  constexpr int per_byte = 8 / Bits;
  for (int j = 0; j < 16 / per_byte; ++j) {
    const auto row = T::load_i32(plane + j * kRowBytes);
    unroll<per_byte>([&](auto t) NIBBLAS_INLINE_LAMBDA {
      auto slice = T::and_i32(T::template shr<Bits * t.value>(row), slice_mask<T, Bits>());
      uint8_t* word = words + (per_byte * j + t.value) * kRowBytes;
      if constexpr (!kFirst) slice = T::or_i32(T::load_i32(word), shift_left<T>(slice, low));
      T::store_i32(word, slice);
    });
  }
}

// Codes k .. k + count - 1 (and more, up to whole chunks) of 16 outputs, kRunStride bytes apart.
template <class T>
inline void unpack_run(const Weight& w, int64_t panel, int64_t k, int64_t count, uint8_t* codes) {
  for (int64_t at = 0; at < count; at += kChunk) {
    alignas(kRowBytes) uint8_t words[16 * kRowBytes];
    const uint8_t* rows = words;
    for (int s = 0, low = 0; s < w.slices; low += w.slice[s].bits, ++s) {
      const int bits = w.slice[s].bits;
      const int64_t row = panel * plane_rows(w.depth_padded, bits) + plane_rows(k + at, bits);
      const uint8_t* plane = w.slice[s].data + row * kRowBytes;
      // The same chunk of the next run, to be there when this one is stored.
      for (int64_t i = 0; i < 2 * bits; ++i) {
        T::prefetch_l2(plane + (plane_rows(kRun, bits) + i) * kRowBytes);
      }
      switch (s ? -bits : bits) {
        case 8: rows = plane; break;
        case 4: plane_to_words<T, 4, true>(plane, 0, words); break;
        case 2: plane_to_words<T, 2, true>(plane, 0, words); break;
        case 1: plane_to_words<T, 1, true>(plane, 0, words); break;
        case -2: plane_to_words<T, 2, false>(plane, low, words); break;
        default: plane_to_words<T, 1, false>(plane, low, words);
      }
    }
    T::transpose_words(rows, kRowBytes, codes + at, kRunStride);
  }
}

// A run of a dense row past the caches, line by line. What does not fill a line waits for the next
// run, which finds it in the 64 bytes before `from`; only the ends of the row are parts of lines.
template <class T>
inline void stream_run(char* to, const char* from, int64_t bytes, bool is_first, bool is_last) {
  const auto begun = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kRowBytes);
  int64_t i = -begun;
  if (is_first && begun) {
    i += kRowBytes;
    memcpy(to, from, static_cast<size_t>(smaller(i, bytes)));
  }
  for (; i + kRowBytes <= bytes; i += kRowBytes) T::stream(to + i, T::load_i32(from + i));
  if (is_last && i < bytes) memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
}

// Elements k .. k + count - 1 of a row, in packed order, from where they lie side by side, behind
// the last 64 bytes of the run before.
template <class T>
inline void store_run(const Matrix& out, int64_t row, int64_t k, int64_t count, int64_t bytes,
                      const Weight& w, bool past_caches, const char* from) {
  char* to = mutable_row(out, row);
  if (w.input_order) {
    for (int64_t i = 0; i < count; ++i) {
      copy_strided(to + w.input_order[k + i] * out.col_stride, 0, from + i * bytes, 0, 1, bytes);
    }
  } else if (out.col_stride != bytes) {
    copy_strided(to + k * out.col_stride, out.col_stride, from, bytes, count, bytes);
  } else if (past_caches) {
    stream_run<T>(to + k * bytes, from, count * bytes, k == 0, k + count == w.depth);
  } else {
    memcpy(to + k * bytes, from, static_cast<size_t>(count * bytes));
  }
}

template <class T>
void unpack(const UnpackJob& job, int64_t panel) {
  const Weight& w = *job.weight;
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, w.cols - n0);
  const auto add = set1_bytes<T>(job.add);
  alignas(kRowBytes) uint8_t codes[kPanel * kRunStride];  // behind the last ones of the run before
  for (int64_t k = 0; k < w.depth; k += kRun) {
    const int64_t count = smaller(kRun, w.depth - k);
    unpack_run<T>(w, panel, k, count, codes + kRowBytes);
    for (int n = 0; n < outputs; ++n) {
      char* before = reinterpret_cast<char*>(codes + n * kRunStride);
      for (int64_t i = kRowBytes; job.add && i < kRowBytes + count; i += kRowBytes) {
        T::store_i32(before + i, add_bytes<T>(T::load_i32(before + i), add));
      }
      store_run<T>(job.codes, n0 + n, k, count, 1, w, job.past_caches, before + kRowBytes);
      memcpy(before, before + kRun, kRowBytes);
    }
  }
  if (job.past_caches) T::drain();
}

}  // namespace
}  // namespace nibblas
