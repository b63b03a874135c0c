// SPDX-License-Identifier: Apache-2.0
// The products on a matrix unit: depth blocks, panels and rows around the tiles of tiled.h.
#pragma once

#include "kernels/tiled.h"

namespace nibblas {
namespace {

// Rows [row0, row1), rounded up to whole tiles: the last of all has rows of zeros.
inline int64_t rows_in_tiles(const PackedRows& x, int64_t row0, int64_t row1) {
  return round_up(row1 - row0, x.tile_rows);
}

// Whether tiles read the planes themselves: 8-bit codes, where no group ends within a depth block.
inline bool tiles_read_planes(const Weight& w) {
  return w.bits == 8 && (w.per_channel || w.group > kTileBlock);
}

// f(weights, k, depth) for [begin, end) of the depth, block by block.
template <class F>
NIBBLAS_INLINE void for_each_tile_block(const Weight& w, Expand expand, int64_t panel, int panels,
                                        int64_t begin, int64_t end, const Block& block,
                                        const F& f) {
  const int64_t plane = plane_rows(w.depth_padded, 8) * kRowBytes;
  for (int64_t k = begin; k < end; k += kTileBlock) {
    const int64_t depth = smaller(kTileBlock, end - k);
    TileWeights rows = {w.slice[0].data + panel * plane + k / 4 * kRowBytes, plane, kRowBytes};
    if (expand) {
      expand(w, panel, panels, k, depth, block.rows);
      rows = {block.rows, kRowBytes, panels * kRowBytes};
    }
    f(rows, k, depth);
  }
}

// Longer groups, and whole rows: the sums of a segment wait in memory between depth blocks.
template <class T, GroupKind kGroups, class Tiles>
void tile_long_groups(Tiles& tiles, const ProductJob& job, Expand expand, int64_t panel,
                      int panels, int64_t row0, int64_t rows, const ProductScratch& s) {
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  const int m = x.tile_rows;
  for (int64_t segment = 0; segment < x.segments; ++segment) {
    const int64_t begin = segment * x.segment;
    const int64_t end = smaller(begin + x.segment, w.depth_padded);
    expand_groups<T, Ops, kGroups>(w, panel, panels, w.per_channel ? 0 : segment, 1, s.block);
    for (int64_t row = 0; row < rows; row += m) {
      begin_segment<T, Ops, kGroups>(s.block, panels,
                                     TiledRows{x, row0 + row}.parameters(0, segment), m,
                                     s.sums + row * panels * kPanel);
    }
    for_each_tile_block(
        w, expand, panel, panels, begin, end, s.block,
        [&](const TileWeights& weights, int64_t k, int64_t depth) {
          for_each_sums(rows, m, panels, [&](auto rt, auto pt, int64_t row, int n) {
            multiply_tile_part<rt.value, pt.value>(tiles, {x, row0 + row}, k, depth, weights,
                                                   panels, n, s.sums + row * panels * kPanel);
          });
        });
    for (int64_t row = 0; row < rows; row += m) {
      const int64_t at = row * panels * kPanel;
      combine_segment<T, Ops, kGroups>(s.block, panels,
                                       TiledRows{x, row0 + row}.parameters(0, segment), m,
                                       s.sums + at, s.acc + at);
    }
  }
}

// Groups that fit into a depth block, and super-blocks.
template <class T, GroupKind kGroups, class Tiles>
void tile_short_groups(Tiles& tiles, const ProductJob& job, Expand expand, int64_t panel,
                       int panels, int64_t row0, int64_t rows, const ProductScratch& s) {
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  const int m = x.tile_rows;
  for (int64_t k = 0; k < w.depth_padded; k += kTileBlock) {
    const int64_t depth = smaller(kTileBlock, w.depth_padded - k);
    expand(w, panel, panels, k, depth, s.block.rows);
    NextCodes<T> next(job, panel, panels, k, kTileBlock, (rows + m - 1) / m);
    if constexpr (kGroups == GroupKind::two_level) {
      expand_super_blocks<T, Ops>(w, panel, panels, k / kSuperBlock, depth / kSuperBlock, s.block);
      for (int64_t row = 0; row < rows; row += 2 * m) {
        const bool two = row + m < rows;
        for (int tile = 0; tile < 1 + two; ++tile) next.fetch_share();
        for (int n = 0; n < panels; ++n) {
          const auto multiply = [&](auto rt) {
            multiply_tile_supers<T, rt.value>(tiles, w, {x, row0 + row}, k, depth / kSuperBlock,
                                              s.block, panels, n, s.acc + row * panels * kPanel);
          };
          if (two) multiply(Index<2>{}); else multiply(Index<1>{});
        }
      }
    } else {
      expand_groups<T, Ops, kGroups>(w, panel, panels, k / w.group, depth / w.group, s.block);
      for_each_sums(rows, m, panels, [&](auto rt, auto pt, int64_t row, int n) {
        for (int tile = 0; n == 0 && tile < rt.value; ++tile) next.fetch_share();
        multiply_tile_groups<T, kGroups, rt.value, pt.value>(
            tiles, w, {x, row0 + row}, k, depth / w.group, s.block, panels, n,
            s.acc + row * panels * kPanel);
      });
    }
  }
}

template <class T, GroupKind kGroups, class Tiles>
NIBBLAS_NOINLINE void tile_panels(Tiles& tiles, const ProductJob& job, Expand expand,
                                  int64_t panel, int panels, int64_t row0, int64_t row1,
                                  const ProductScratch& s) {
  const Weight& w = *job.weight;
  const int64_t rows = rows_in_tiles(job.x, row0, row1);
  memset(s.acc, 0, static_cast<size_t>(rows * panels * kPanel) * sizeof(float));
  if constexpr (kGroups == GroupKind::two_level) {
    tile_short_groups<T, kGroups>(tiles, job, expand, panel, panels, row0, rows, s);
  } else if (w.per_channel || w.group > kTileBlock) {
    tile_long_groups<T, kGroups>(tiles, job, expand, panel, panels, row0, rows, s);
  } else {
    tile_short_groups<T, kGroups>(tiles, job, expand, panel, panels, row0, rows, s);
  }
  store_outputs<T>(job, panel, panels, row0, row1 - row0, s.acc);
}

template <class T, class Tiles>
void tiled_product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                   int64_t row1, void* scratch) {
  const Weight& w = *job.weight;
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const ProductScratch s = carve_scratch<T>(scratch, rows_in_tiles(job.x, row0, row1));
  const Expand expand = tile_expansion<T>(w, tiles_read_planes(w));
  const GroupKind kind = group_kind<Ops>(w);
  const bool whole = w.per_channel || kind == GroupKind::two_level;
  Tiles tiles;
  tiles.begin(job.x.tile_rows, whole ? kTileDepth : smaller(w.group, kTileDepth));
  for (int64_t panel = panel0; panel < panel1; panel += kTilePanels) {
    const int panels = static_cast<int>(smaller(kTilePanels, panel1 - panel));
    unroll<4>([&](auto k) {
      constexpr GroupKind kGroups = static_cast<GroupKind>(decltype(k)::value);
      if (kind == kGroups) {
        tile_panels<T, kGroups>(tiles, job, expand, panel, panels, row0, row1, s);
      }
    });
  }
  tiles.end();
}

// The row of ones is no tile's: sums [panels][16] go on by vectors, eight at a time for the latency
// of each.
template <class T>
NIBBLAS_NOINLINE void add_ones(const TileWeights& w, int panels, const int32_t* ones,
                               int64_t depth, int32_t* sums) {
  using Dot = typename T::template DotFor<255>;
  constexpr int parts = 8;  // depth is whole tiles, 16 words
  for (int n = 0; n < panels; ++n) {
    const uint8_t* row = w.at + n * w.panel;
    typename Dot::Acc acc[parts];
    unroll<parts>([&](auto i) NIBBLAS_INLINE_LAMBDA { acc[i.value] = T::zero_i32(); });
    for (int64_t j = 0; j < depth / 4; j += parts, row += parts * w.row) {
      unroll<parts>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        acc[i.value] = Dot::step(acc[i.value], Dot::load_w(row + i.value * w.row),
                                 Dot::load_x(ones + j + i.value));
      });
    }
    auto total = T::load_i32(sums + n * kPanel);
    unroll<parts>([&](auto i) NIBBLAS_INLINE_LAMBDA { total = T::add_i32(total, acc[i.value]); });
    T::store_i32(sums + n * kPanel, total);
  }
}

template <class T, class Tiles>
void tiled_integer_product(const IntegerProductJob& job, int64_t panel0, int64_t panel1,
                           int64_t row0, int64_t row1, void* scratch) {
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  const int64_t rows = rows_in_tiles(x, row0, row1);
  const ProductScratch s = carve_scratch<T>(scratch, rows);
  using Ops = IntOps<T, typename T::template DotFor<255>>;
  const Expand expand = tile_expansion<T>(w, w.bits == 8);
  Tiles tiles;
  tiles.begin(x.tile_rows, kTileDepth);
  for (int64_t panel = panel0; panel < panel1; panel += kTilePanels) {
    const int panels = static_cast<int>(smaller(kTilePanels, panel1 - panel));
    int32_t* ones = s.sums + rows * panels * kPanel;
    begin_integers<T, Ops>(job, panel, panels, x.starts + row0, rows, s.sums);
    if (job.ones) begin_integers<T, Ops>(job, panel, panels, job.ones->starts, 1, ones);
    for_each_tile_block(
        w, expand, panel, panels, 0, w.depth_padded, s.block,
        [&](const TileWeights& weights, int64_t k, int64_t depth) {
          for_each_sums(rows, x.tile_rows, panels, [&](auto rt, auto pt, int64_t row, int n) {
            multiply_tile_part<rt.value, pt.value>(tiles, {x, row0 + row}, k, depth, weights,
                                                   panels, n, s.sums + row * panels * kPanel);
          });
          if (job.ones) add_ones<T>(weights, panels, job.ones->words + k / 4, depth, ones);
        });
    store_integers<T>(job, panel, panels, row0, row1 - row0, s.sums, ones);
  }
  tiles.end();
}

// The products of tiles alone. Returns multiply-adds done.
template <class Tiles>
double tiled_peak(int64_t iterations) {
  Tiles tiles;
  tiles.begin(kTileHeight, kTileDepth);
  alignas(64) int32_t sums[kTileHeight][kPanel] = {};
  tiles.template load<4>(sums, kRowBytes);
  tiles.template load<6>(sums, kRowBytes);
  for_sums<2, 2>([&](auto, auto, auto c) NIBBLAS_INLINE_LAMBDA {
    tiles.template zero<c.value>();
  });
  for (int64_t i = 0; i < iterations; ++i) {
    for_sums<2, 2>([&](auto, auto, auto c) NIBBLAS_INLINE_LAMBDA {
      tiles.template dot_unsigned<c.value, 4, 6>();
    });
  }
  tiles.template store<0>(sums, kRowBytes);
  tiles.end();
  volatile int32_t sink = sums[0][0];  // the loop must not be optimized away
  static_cast<void>(sink);
  return static_cast<double>(iterations) * 4 * kTileHeight * kPanel * kTileDepth;
}

}  // namespace
}  // namespace nibblas
