// SPDX-License-Identifier: Apache-2.0
// Codes from their planes, four consecutive k of 16 outputs at a time.
#pragma once

#include "kernels/values.h"

namespace nibblas {
namespace {

constexpr int count_slices(int bits) { return bits ? (bits & 1) + count_slices(bits >> 1) : 0; }

// The highest of the powers of two that make up `bits` comes first: 6 = 4 + 2.
constexpr int slice_width(int bits, int slice) {
  int width = 8;
  for (int left = slice; !(bits & width) || left-- > 0;) width /= 2;
  return width;
}
constexpr int slice_low(int bits, int slice) {
  return slice == 0 ? 0 : slice_low(bits, slice - 1) + slice_width(bits, slice - 1);
}

// Quads that fill whole rows of every plane.
constexpr int whole_quads(int bits) { return 8 / (bits & -bits); }

constexpr int larger(int a, int b) { return a > b ? a : b; }

// Reads NV panels side by side. A quad is an I32 whose byte i of lane c is the code of output c at
// the quad's i-th k.
template <class T, int Bits, int LeastQuads = 1>
class CodeReader {
 public:
  static constexpr int kSlices = count_slices(Bits);
  static constexpr int kQuads = larger(whole_quads(Bits), LeastQuads);
  static constexpr int kStep = 4 * kQuads;  // codes

  // The rows of a step, of each plane after the other. (Loaded once: where quads read memory
  // themselves, GCC loads a row again for each of them.)
  struct Rows {
    typename T::I32 row[kStep * Bits / 32];
  };

  template <int slice>
  static constexpr int rows_per_step() {
    return kStep * slice_width(Bits, slice) / 32;
  }

  // From k on, a multiple of kStep.
  CodeReader(const Weight& w, int64_t panel, int64_t k) {
    for (int s = 0; s < kSlices; ++s) {
      const int width = w.slice[s].bits;
      stride_[s] = plane_rows(w.depth_padded, width) * kRowBytes;
      row_[s] = w.slice[s].data + panel * stride_[s] + plane_rows(k, width) * kRowBytes;
    }
  }

  // The step's rows of the n-th panel.
  NIBBLAS_INLINE Rows load(int n) const {
    Rows rows;
    unroll<kSlices>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      constexpr int first = kStep * slice_low(Bits, s.value) / 32;
      const uint8_t* from = row_[s.value] + n * stride_[s.value];
      unroll<rows_per_step<s.value>()>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        rows.row[first + i.value] = T::load_i32(from + i.value * kRowBytes);
      });
    });
    return rows;
  }

  // Asks for the n-th panel's rows `bytes` ahead of the step.
  NIBBLAS_INLINE void prefetch(int n, int64_t bytes) const {
    for_rows(n, [bytes](const uint8_t* row) NIBBLAS_INLINE_LAMBDA { T::prefetch(row + bytes); });
  }
  // The same into L2: as many misses of L1 as several streams would take are not to be had (on Zen
  // 4 a product of one row ran at 2/3 of the bandwidth so). Where the panel ends within `bytes`,
  // with `left` steps left, so does the stream, which then goes on `panels` panels after this one.
  NIBBLAS_INLINE void prefetch_l2(int n, int64_t bytes, int64_t left, int panels) const {
    unroll<kSlices>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      constexpr int64_t step = rows_per_step<s.value>() * kRowBytes;
      const int64_t stride = stride_[s.value];
      const uint8_t* ahead = row_[s.value] + n * stride + bytes;
      if (left * step <= bytes) ahead += (panels - 1) * stride;
      unroll<rows_per_step<s.value>()>(
          [&](auto i) NIBBLAS_INLINE_LAMBDA { T::prefetch_l2(ahead + i.value * kRowBytes); });
    });
  }

  // Quad q of a step; `loose` allows anything above the codes in its bytes.
  template <int q, bool loose = false>
  static NIBBLAS_INLINE typename T::I32 quad(const Rows& rows) {
    auto code = T::zero_i32();
    unroll<kSlices>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      constexpr int width = slice_width(Bits, s.value);
      constexpr int low = slice_low(Bits, s.value);
      constexpr int per_byte = 8 / width;
      constexpr int shift = q % per_byte * width - low;
      auto part = rows.row[kStep * low / 32 + q / per_byte];
      // Bits that cross into a neighbouring byte are outside the mask.
      if constexpr (shift > 0) part = T::template shr<shift>(part);
      if constexpr (shift < 0) part = T::template shl<-shift>(part);
      if constexpr (width < 8 && !(loose && kSlices == 1)) {
        part = T::and_i32(part, mask<width, low>());
      }
      if constexpr (s.value == 0) {
        code = part;
      } else {
        code = T::or_i32(code, part);
      }
    });
    return code;
  }

  // The high halves of a row's bytes, 16 times the codes.
  template <int r>
  static NIBBLAS_INLINE typename T::I32 high_in_place(const Rows& rows) {
    return T::and_i32(rows.row[r], mask<4, 4>());
  }

  NIBBLAS_INLINE void next() {
    unroll<kSlices>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      row_[s.value] += rows_per_step<s.value>() * kRowBytes;
    });
  }

 private:
  // f(row) for the step's rows of the n-th panel.
  template <class F>
  NIBBLAS_INLINE void for_rows(int n, const F& f) const {
    unroll<kSlices>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      const uint8_t* from = row_[s.value] + n * stride_[s.value];
      unroll<rows_per_step<s.value>()>(
          [&](auto i) NIBBLAS_INLINE_LAMBDA { f(from + i.value * kRowBytes); });
    });
  }

  template <int width, int low>
  static typename T::I32 mask() {
    return T::set1_i32(static_cast<int32_t>(0x01010101u * (((1u << width) - 1) << low)));
  }

  const uint8_t* row_[kSlices];
  int64_t stride_[kSlices];
};

// f(Index<bits>) for a width known at run time.
template <class F>
void with_bits(int bits, const F& f) {
  switch (bits) {
    case 1: return f(Index<1>{});
    case 2: return f(Index<2>{});
    case 3: return f(Index<3>{});
    case 4: return f(Index<4>{});
    case 5: return f(Index<5>{});
    case 6: return f(Index<6>{});
    case 7: return f(Index<7>{});
    default: return f(Index<8>{});
  }
}

}  // namespace
}  // namespace nibblas
