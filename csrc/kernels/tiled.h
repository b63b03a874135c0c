// SPDX-License-Identifier: Apache-2.0
// Many rows on a matrix unit: 32 rows of x by 2 panels at a time, 2 x 2 tiles of sums from 2 tiles
// of x and 2 of weights. What the tiles sum up is exact in int32 and combined by vectors, in the
// order of the contract.
//
// The arithmetic, for Sapphire Rapids by its published rates (a product of full tiles takes 16
// cycles, 52 until its result is there; loads of 64 bytes two a cycle, stores one; float32
// operations on zmm two a cycle):
//
//   per channel    4 products (64 cycles) need 4 tiles of 16 loads (32 cycles): bound by the tiles,
//                  8 times the rate of vpdpbusd (two of 64 products a cycle).
//   groups of 32   16 rows x 16 outputs: a product of half depth, then per row and panel a start, a
//                  conversion, a scale, an fma (32 cycles), the sum's way through memory and that
//                  of acc (2 stores: 32 cycles, 4 loads). vpdpbusd takes 16 * (8 + 3) / 2 = 88.
//                  Tiles of 2 x 2 are kept for short groups too: 3 of 4 loads of x and weights are
//                  saved, and the combine of one group covers the products of the next.
//   groups of 128  two products (32 cycles) beside the same combine: both at their limit.
//   two-level      8 products a super-block (low and high bytes, see expand_factored), 128 cycles,
//                  beside some 60 of combine: half the tiles' rate, 4 times that of vpdpbusd.
#pragma once

#include "kernels/integer.h"
#include "kernels/tiled_operands.h"

namespace nibblas {
namespace {

// Fewer rows take the vectors. For 16 outputs x 64 codes in groups of 32, vectors take 11 cycles a
// row; tiles take 16 plane rows to expand (24 cycles), then about 4 a row: they would be even at 4
// rows, were the weights at hand. From DRAM one core gets some 4 bytes a cycle, so their 576 bytes
// take 144 cycles, which the vectors fill with up to 13 rows. (Not measured yet.)
constexpr int64_t kFewestTileRows = 16;

inline bool uses_tiles(int64_t rows) { return rows >= kFewestTileRows; }

// Codes expanded at once, 32 KB for 4 panels: they and the 16 KB of 32 rows of x are in L1 (48 KB),
// and each code of x that comes from L2 meets 4 panels.
constexpr int64_t kTileBlock = 512;
constexpr int kTilePanels = 4;

// Tiles of about the same height: 17 rows are 9 and 8, not 16 and 1.
inline Tile choose_tile_shape(int64_t rows) {
  const int64_t tiles = (rows + kTileHeight - 1) / kTileHeight;
  Tile tile;
  tile.rows = static_cast<int>((rows + tiles - 1) / tiles);
  tile.panels = kTilePanels;
  tile.depth = kTileBlock;
  tile.x_row_words = 1;
  tile.rests = false;
  tile.kernel = "tiles";
  return tile;
}

// Tiles of C: row tile r and panel p at 2 r + p; x at 4 and 5, weights at 6 and 7.
template <int RT, int PT, class F>
NIBBLAS_INLINE void for_sums(const F& f) {
  unroll<RT>([&](auto r) NIBBLAS_INLINE_LAMBDA {
    unroll<PT>([&](auto p) NIBBLAS_INLINE_LAMBDA { f(r, p, Index<2 * r.value + p.value>{}); });
  });
}

// The sums go on by `count` tiles along the depth. Bytes of x from one row tile to the next and
// from 64 codes to the next 64.
template <int RT, int PT, bool kLowHigh, class Tiles>
NIBBLAS_INLINE void multiply_tiles(Tiles& tiles, const int8_t* x, int64_t x_tile, int64_t x_step,
                                   TileWeights w, int64_t count) {
  do {
    unroll<PT>([&](auto p) NIBBLAS_INLINE_LAMBDA {
      tiles.template load<6 + p.value>(w.at + p.value * w.panel, w.row);
    });
    unroll<RT>([&](auto r) NIBBLAS_INLINE_LAMBDA {
      tiles.template load<4 + r.value>(x + r.value * x_tile, kTileDepth);
      unroll<PT>([&](auto p) NIBBLAS_INLINE_LAMBDA {
        constexpr int c = 2 * r.value + p.value;
        if constexpr (kLowHigh && p.value == 1) {
          tiles.template dot_signed<c, 4 + r.value, 6 + p.value>();
        } else {
          tiles.template dot_unsigned<c, 4 + r.value, 6 + p.value>();
        }
      });
    });
    x += x_step;
    w.at += w.row * (kTileDepth / 4);
  } while (--count > 0);
}

// f(Index<RT>, Index<PT>, row, n) for one or two row tiles from `row` on and one or two panels.
template <class F>
NIBBLAS_INLINE void for_each_sums(int64_t rows, int m, int panels, const F& f) {
  for (int64_t row = 0; row < rows; row += 2 * m) {
    const bool two = row + m < rows;
    for (int n = 0; n < panels; n += 2) {
      if (n + 1 < panels) {
        if (two) f(Index<2>{}, Index<2>{}, row, n); else f(Index<1>{}, Index<2>{}, row, n);
      } else {
        if (two) f(Index<2>{}, Index<1>{}, row, n); else f(Index<1>{}, Index<1>{}, row, n);
      }
    }
  }
}

// What the functions below read of a product: x from some row on, and where running sums are.
struct TiledRows {
  const PackedRows& x;
  int64_t row;

  const int8_t* codes(int64_t k) const {
    const int8_t* tile = reinterpret_cast<const int8_t*>(x.words + row * x.row_words);
    return tile + k / kTileDepth * step() + k % kTileDepth;
  }
  int64_t tile_bytes() const { return x.tile_rows * x.row_words * 4; }
  int64_t step() const { return x.tile_rows * kTileDepth; }
  // Those of row tile r, from a segment on.
  TileRows parameters(int r, int64_t segment) const {
    const int64_t at = (row + r * x.tile_rows) * x.segments;
    const TileRows tile = {x.words, x.scales + at, x.starts + at * x.segment_starts,
                           offset(x.sums, at)};
    return advance(tile, x.tile_rows, 0, segment, x.segment_starts);
  }
};

// Sums of up to 2 x 2 tiles on their way to the vectors: one set fills while the other is read.
struct TileSums {
  alignas(64) int32_t of[2][4][kTileHeight][kPanel];
};

template <int RT, int PT, class Tiles>
NIBBLAS_INLINE void store_tiles(Tiles& tiles, int32_t (*sums)[kTileHeight][kPanel]) {
  for_sums<RT, PT>([&](auto, auto, auto c) NIBBLAS_INLINE_LAMBDA {
    tiles.template store<c.value>(sums[c.value], kRowBytes);
  });
}

// The groups of a depth block, one after the other: acc [rows][panels][16] goes on.
template <class T, GroupKind kGroups, int RT, int PT, class Tiles>
NIBBLAS_NOINLINE void multiply_tile_groups(Tiles& tiles, const Weight& w, TiledRows x, int64_t k,
                                           int64_t groups, const Block& block, int panels, int n,
                                           float* acc) {
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const int m = x.x.tile_rows;
  const int64_t first = k / w.group;
  const int64_t count = w.group > kTileDepth ? w.group / kTileDepth : 1;
  const TileWeights rows = {block.rows + n * kRowBytes, kRowBytes, panels * kRowBytes};
  TileSums sums;
  const auto multiply = [&](int64_t g) NIBBLAS_INLINE_LAMBDA {
    for_sums<RT, PT>([&](auto, auto, auto c) NIBBLAS_INLINE_LAMBDA {
      tiles.template zero<c.value>();
    });
    TileWeights group = rows;
    group.at += g * (w.group / 4) * rows.row;
    multiply_tiles<RT, PT, false>(tiles, x.codes(k + g * w.group), x.tile_bytes(), x.step(), group,
                                  count);
  };
  multiply(0);
  store_tiles<RT, PT>(tiles, sums.of[0]);
  for (int64_t g = 0; g < groups; ++g) {
    if (g + 1 < groups) multiply(g + 1);
    const int64_t at = (g * panels + n) * kPanel;
    typename T::F32 scale[PT], min[PT];
    typename T::I32 zeros[PT];
    unroll<PT>([&](auto p) NIBBLAS_INLINE_LAMBDA {
      scale[p.value] = T::load(block.scales + at + p.value * kPanel);
      if constexpr (kGroups == GroupKind::mins) {
        min[p.value] = T::load(block.mins + at + p.value * kPanel);
      }
      if constexpr (kGroups == GroupKind::zero_points) {
        zeros[p.value] = T::load_i32(block.zeros + at + p.value * kPanel);
      }
    });
    unroll<RT>([&](auto r) NIBBLAS_INLINE_LAMBDA {
      const TileRows part = x.parameters(r.value, first + g);
      float* to = acc + (r.value * m * panels + n) * kPanel;
      for (int row = 0; row < m; ++row, to += panels * kPanel) {
        const int32_t start = part.starts[row];  // once for all panels
        const float a = part.scales[row];
        unroll<PT>([&](auto p) NIBBLAS_INLINE_LAMBDA {
          auto c = T::load_i32(sums.of[g % 2][2 * r.value + p.value][row]);
          if constexpr (kGroups == GroupKind::zero_points) {
            c = T::add_i32(c, Ops::first(start, zeros[p.value]));
          } else {
            c = T::add_i32(c, Ops::first(start));
          }
          float* lanes = to + p.value * kPanel;
          auto sum = Ops::combine(c, a, scale[p.value], T::load(lanes));
          if constexpr (kGroups == GroupKind::mins) {
            sum = T::fma(T::set1(part.sums[row]), min[p.value], sum);
          }
          T::store(lanes, sum);
        });
      }
    });
    if (g + 1 < groups) store_tiles<RT, PT>(tiles, sums.of[(g + 1) % 2]);
  }
}

// The super-blocks of a depth block, for one panel: C = low + 256 * high.
template <class T, int RT, class Tiles>
NIBBLAS_NOINLINE void multiply_tile_supers(Tiles& tiles, const Weight& w, TiledRows x, int64_t k,
                                           int64_t supers, const Block& block, int panels, int n,
                                           float* acc) {
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const int m = x.x.tile_rows;
  const int pairs = w.super_mins ? pairs_per_super(w) : 0;
  TileWeights rows = {block.rows + 2 * n * kRowBytes, kRowBytes, 2 * panels * kRowBytes};
  TileSums sums;
  const auto multiply = [&](int64_t s) NIBBLAS_INLINE_LAMBDA {
    for_sums<RT, 2>([&](auto, auto, auto c) NIBBLAS_INLINE_LAMBDA {
      tiles.template zero<c.value>();
    });
    TileWeights super = rows;
    super.at += s * (kSuperBlock / 4) * rows.row;
    multiply_tiles<RT, 2, true>(tiles, x.codes(k + s * kSuperBlock), x.tile_bytes(), x.step(),
                                super, kSuperBlock / kTileDepth);
  };
  multiply(0);
  store_tiles<RT, 2>(tiles, sums.of[0]);
  for (int64_t s = 0; s < supers; ++s) {
    if (s + 1 < supers) multiply(s + 1);
    const int64_t at = (s * panels + n) * kPanel;
    const auto scale = T::load(block.scales + at);
    const int32_t* pair = block.pairs + (s * pairs * panels + n) * kPanel;
    unroll<RT>([&](auto r) NIBBLAS_INLINE_LAMBDA {
      const TileRows part = x.parameters(r.value, k / kSuperBlock + s);
      float* to = acc + (r.value * m * panels + n) * kPanel;
      for (int row = 0; row < m; ++row, to += panels * kPanel) {
        const auto low = T::load_i32(sums.of[s % 2][2 * r.value][row]);
        const auto high = T::load_i32(sums.of[s % 2][2 * r.value + 1][row]);
        const auto c = T::add_i32(low, T::template shl<8>(high));
        auto sum = Ops::combine(c, part.scales[row], scale, T::load(to));
        if (pairs > 0) {
          auto of_mins = T::zero_i32();
          for (int i = 0; i < pairs; ++i) {
            of_mins = T::dot_i16(of_mins, T::load_i32(pair + i * panels * kPanel),
                                 T::set1_i32(part.starts[i * m + row]));
          }
          const auto u = T::mul(T::set1(part.scales[row]), T::to_f32(of_mins));
          sum = T::fma(u, T::load(block.mins + at), sum);
        }
        T::store(to, sum);
      }
    });
    if (s + 1 < supers) store_tiles<RT, 2>(tiles, sums.of[(s + 1) % 2]);
  }
}

// A run of depth that no group ends in: sums [rows][panels][16] go on.
template <int RT, int PT, class Tiles>
NIBBLAS_NOINLINE void multiply_tile_part(Tiles& tiles, TiledRows x, int64_t k, int64_t depth,
                                         TileWeights w, int panels, int n, int32_t* sums) {
  const auto at = [&](int r, int p) {
    return sums + (r * x.x.tile_rows * panels + n + p) * kPanel;
  };
  w.at += n * w.panel;
  for_sums<RT, PT>([&](auto r, auto p, auto c) NIBBLAS_INLINE_LAMBDA {
    tiles.template load<c.value>(at(r.value, p.value), panels * kRowBytes);
  });
  multiply_tiles<RT, PT, false>(tiles, x.codes(k), x.tile_bytes(), x.step(), w,
                                depth / kTileDepth);
  for_sums<RT, PT>([&](auto r, auto p, auto c) NIBBLAS_INLINE_LAMBDA {
    tiles.template store<c.value>(at(r.value, p.value), panels * kRowBytes);
  });
}

}  // namespace
}  // namespace nibblas
