// SPDX-License-Identifier: Apache-2.0
// Rows of x and weights as a matrix unit takes them: tiles of 16 rows of x by 64 codes, and plane
// rows of 16 outputs by 4 codes as they stand.
#pragma once

#include "kernels/gemm.h"
#include "kernels/quantize.h"

namespace nibblas {
namespace {

constexpr int kTileHeight = 16;     // of x, at most, and outputs of a panel
constexpr int64_t kTileDepth = 64;  // codes of a row in a tile of x: 16 plane rows in a weights'

// A tile's rows of x: [depth / 64][m][64], so that 64 codes of each row are a tile as they stand,
// and a shorter tile the part of one. Every tile has m rows, the last ones of zeros if need be.
struct TileOrder {
  static constexpr bool kWholeTiles = true;
  static void put(const Weight& w, const int8_t* codes, int m, int count, int64_t row0,
                  const PackedRows& out) {
    int8_t* to = reinterpret_cast<int8_t*>(out.words + row0 * out.row_words);
    for (int64_t k = 0; k < w.depth_padded; k += kTileDepth) {
      for (int i = 0; i < count; ++i, to += kTileDepth) {
        memcpy(to, codes + i * w.depth_padded + k, kTileDepth);
      }
      memset(to, 0, static_cast<size_t>((m - count) * kTileDepth));
      to += (m - count) * kTileDepth;
    }
  }
};

template <class T>
void pack_tile_rows(const RowsJob& job, int64_t row0, void* scratch) {
  const PackedRows& out = job.packed;
  const int m = out.tile_rows;
  const int count = static_cast<int>(smaller(m, out.rows - row0));
  if (count < m) {
    const int64_t at = row0 * out.segments;
    const size_t bytes = static_cast<size_t>(m * out.segments) * 4;
    memset(out.scales + at, 0, bytes);
    memset(out.starts + at * out.segment_starts, 0,
           bytes * static_cast<size_t>(out.segment_starts));
    if (out.sums) memset(out.sums + at, 0, bytes);
  }
  pack_quantized_rows<T, TileOrder>(job, row0, scratch);
}

// Weights for tiles: rows of 64 bytes, so many bytes apart from one panel to the next and from four
// codes to the next four.
struct TileWeights {
  const uint8_t* at;
  int64_t panel;
  int64_t row;
};

// Two-level: codes times the factor of their group, (code - zero) * factor, whose magnitude is at
// most 128 * 255 < 2^15. The low byte (unsigned) and the high one (signed) go to rows of their own,
// [depth / 4][panels][2][64], so that a super-block is two dot products over all of its 256 codes
// and the sum is low + 256 * high. (Group by group, the sum of each would have to leave the tiles:
// for groups of 16 that is 16 times as often.)
template <class T, class Operands>
void expand_factored(const Weight& w, int64_t panel, int panels, int64_t k0, int64_t depth,
                     uint8_t* rows) {
  using Reader = CodeReader<T, Operands::kBits>;
  const Operands operands(w);
  const auto bytes = T::set1_i32(0x00ff00ff);
  const auto twice = [](typename T::I32 a) {  // the low half of each lane in both
    return T::or_i32(T::and_i32(a, T::set1_i32(0xffff)), T::template shl<16>(a));
  };
  const auto zero = twice(T::set1_i32(w.super_mins ? 0 : w.zero));
  const int64_t stride = 2 * panels * kRowBytes;
  for (int n = 0; n < panels; ++n) {
    Reader reader(w, panel + n, k0);
    uint8_t* to = rows + 2 * n * kRowBytes;
    auto factor = zero;
    for (int64_t k = k0; k < k0 + depth; k += Reader::kStep, reader.next()) {
      const auto codes = reader.load(0);
      unroll<Reader::kQuads>([&](auto q) NIBBLAS_INLINE_LAMBDA {
        const int64_t at = k + 4 * q.value;
        if (q.value % 4 == 0 && at % w.group == 0) {
          factor = twice(sub_scale<T>(w, (panel + n) * w.groups + at / w.group));
        }
        const auto quad = operands.template operand<0>(Reader::template quad<q.value>(codes));
        const auto product = [&](typename T::I32 code) NIBBLAS_INLINE_LAMBDA {
          return T::mul_i16(T::sub_i16(T::and_i32(code, bytes), zero), factor);
        };
        const auto even = product(quad);
        const auto odd = product(T::template shr<8>(quad));
        T::store_i32(to, T::or_i32(T::and_i32(even, bytes),
                                   T::template shl<8>(T::and_i32(odd, bytes))));
        T::store_i32(to + kRowBytes,
                     T::or_i32(T::and_i32(T::template shr<8>(even), bytes),
                               T::and_i32(odd, T::set1_i32(static_cast<int32_t>(0xff00ff00)))));
        to += stride;
      });
    }
  }
}

// The way from a weight's planes to the block; null where they are operands as they stand.
template <class T>
Expand tile_expansion(const Weight& w, bool reads_planes) {
  Expand expand = nullptr;
  if (reads_planes) return expand;
  with_int_operands<T>(w, [&](auto use) {
    using Operands = typename decltype(use)::Operands;
    expand = expand_codes<T, Operands, false>;
    if constexpr (has_kind<Operands>(GroupKind::two_level)) {
      if (w.two_level) expand = expand_factored<T, Operands>;
    }
  });
  return expand;
}

}  // namespace
}  // namespace nibblas
