// SPDX-License-Identifier: Apache-2.0
// Many rows: NV panels of weights are expanded once per depth block, into L1 or L2, and swept by
// all rows of x. See gemv.h for few rows.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/expand.h"
#include "kernels/rests.h"
#include "kernels/tile.h"

namespace nibblas {
namespace {

// Codes expanded at once. int8: 1024 codes x 4 panels x 16 outputs are 64 KB, read from L2 at 10
// bytes a cycle; the tile alone then ran at 98 % of the dot-product peak, with 512 codes at 96 %.
// float32: 256 codes are 64 KB too, and 512 where a target widens them. Multiples of every group
// that is combined inside the tile.
template <class Ops>
constexpr int64_t kDepthBlock = Ops::kFloat ? 256 : 1024 / Ops::kQuadParts;

// Few rows sweep a block only a few times: 16 KB of it stay in L1 between them. (Held to AVX2, 8
// and 12 rows of int8 4,096 deep took 0.8 of the time of longer blocks.)
template <class Ops>
int64_t depth_block(const Weight& w, int64_t rows) {
  if (rows > (Ops::kRestsX ? kFewSweptRows : 8)) return kDepthBlock<Ops>;
  const int64_t few = Ops::kFloat ? 64 : 256;
  return w.group > few && w.group <= kDepthBlock<Ops> ? w.group : few;
}

// Rows and panels of a tile. Two-level schemes may have one of their own.
template <class T, class Ops>
constexpr int tile_rows(bool two_level) {
  const int rows = two_level && T::kTwoLevelRows ? T::kTwoLevelRows : T::kGemmRows;
  return Ops::kMostRows < rows ? Ops::kMostRows : rows;
}
template <class T>
constexpr int gemm_panels_of(bool two_level) {
  static_assert(T::kTwoLevelRows <= T::kGemmRows && T::kTwoLevelPanels <= T::kGemmPanels);
  return two_level && T::kTwoLevelRows ? T::kTwoLevelPanels : T::kGemmPanels;
}

// Scratch of one product: the block, then running sums and segment sums of [rows][panels][16].
struct ProductScratch {
  Block block;
  float* acc;
  int32_t* sums;
};

template <class T>
constexpr int widest_panels() {
  int most = T::kGemmPanels;
  for (int rows = 1; rows <= T::kGemvRows; ++rows) {
    if (T::gemv_panels(rows) > most) most = T::gemv_panels(rows);
  }
  return most;
}

// Operand rows of a block: one per code (float32), per 4 codes, or per 2 where a target widens.
template <class T>
constexpr size_t kBlockRowBytes = size_t{512} * T::kGemmPanels * kRowBytes;
template <class T>
constexpr size_t kBlockScaleBytes = size_t{1024 / 16} * widest_panels<T>() * kPanel * sizeof(float);

template <class T>
size_t product_scratch_bytes(int64_t rows) {
  const size_t sums = static_cast<size_t>(rows + 1) * widest_panels<T>() * kPanel * sizeof(float);
  return kBlockRowBytes<T> + 5 * kBlockScaleBytes<T> + 2 * sums;
}

template <class T>
ProductScratch carve_scratch(void* memory, int64_t rows) {
  uint8_t* p = static_cast<uint8_t*>(memory);
  ProductScratch s = {};
  s.block.rows = p;
  p += kBlockRowBytes<T>;
  s.block.scales = reinterpret_cast<float*>(p);
  p += kBlockScaleBytes<T>;
  s.block.mins = reinterpret_cast<float*>(p);
  p += kBlockScaleBytes<T>;
  s.block.zeros = reinterpret_cast<int32_t*>(p);
  p += kBlockScaleBytes<T>;
  s.block.factors = reinterpret_cast<int32_t*>(p);
  p += kBlockScaleBytes<T>;
  s.block.pairs = reinterpret_cast<int32_t*>(p);
  p += kBlockScaleBytes<T>;
  s.acc = reinterpret_cast<float*>(p);
  p += static_cast<size_t>(rows + 1) * widest_panels<T>() * kPanel * sizeof(float);
  s.sums = reinterpret_cast<int32_t*>(p);
  return s;
}

// p + n, where an array that a job does not need stays null.
template <class P>
inline P* offset(P* p, int64_t n) {
  return p ? p + n : p;
}

// f(m, first row, TileRows at the tile's first segment) for each tile of [row0, row1): `most` rows,
// the last one fewer.
template <class F>
NIBBLAS_INLINE void for_each_tile(const PackedRows& x, int64_t row0, int64_t row1, int most,
                                  const F& f) {
  for (int64_t row = row0; row < row1; row += most) {
    const int m = static_cast<int>(smaller(most, row1 - row));
    const int64_t at = row * x.segments;
    const TileRows tile = {x.words + row * x.row_words, offset(x.scales, at),
                           x.starts + at * x.segment_starts, offset(x.sums, at),
                           row + m < row1 ? m * x.row_words : 0};
    f(m, row, tile);
  }
}

// The part of a tile's rows that begins `words` words into each row and at a segment.
inline TileRows advance(TileRows x, int m, int64_t words, int64_t segment, int64_t starts = 1) {
  return {x.words + words * m, x.scales + segment * m, x.starts + segment * starts * m,
          offset(x.sums, segment * m), x.ahead};
}

// The first sums of one segment, for the m rows of a tile.
template <class T, class Ops, GroupKind kGroups>
NIBBLAS_NOINLINE void begin_segment(const Block& group, int panels, TileRows x, int m,
                                    int32_t* sums) {
  for (int row = 0; row < m; ++row) {
    for (int n = 0; n < panels; ++n, sums += kPanel) {
      const int32_t start = Ops::kFloat ? 0 : x.starts[row];
      if constexpr (kGroups == GroupKind::zero_points) {
        const auto zeros = Ops::as_zeros(T::load_i32(group.zeros + n * kPanel));
        Ops::store_sum(sums, Ops::first(start, zeros));
      } else {
        Ops::store_sum(sums, Ops::first(start));
      }
    }
  }
}

// Adds the finished sums of one segment to acc.
template <class T, class Ops, GroupKind kGroups>
NIBBLAS_NOINLINE void combine_segment(const Block& group, int panels, TileRows x, int m,
                                      const int32_t* sums, float* acc) {
  for (int row = 0; row < m; ++row) {
    const float a = Ops::kFloat ? 0.0f : x.scales[row];
    for (int n = 0; n < panels; ++n, sums += kPanel, acc += kPanel) {
      const auto scale = T::load(group.scales + n * kPanel);
      auto sum = Ops::combine(Ops::load_sum(sums), a, scale, T::load(acc));
      if constexpr (kGroups == GroupKind::mins) {
        sum = T::fma(T::set1(x.sums[row]), T::load(group.mins + n * kPanel), sum);
      }
      T::store(acc, sum);
    }
  }
}

// Brings the codes that will be expanded after this block into L2, a share at each tile. (Without
// it a product of 128 rows spent 4 % of its time waiting for them.)
template <class T>
class NextCodes {
 public:
  NextCodes(const ProductJob& job, int64_t panel, int panels, int64_t k, int64_t depth,
            int64_t tiles)
      : weight_(*job.weight), tiles_(tiles), fetches_(job.codes_in != CodesIn::l2) {
    const Weight& w = weight_;
    k += depth;
    if (k >= w.depth_padded) {
      k = 0;
      panel += panels;
    }
    panel_ = panel;
    end_ = smaller(panel + panels, w.panels);
    k_ = k;
    depth_ = smaller(depth, w.depth_padded - k);
  }
  void fetch_share() {
    if (!fetches_) return;
    for (int s = 0; s < weight_.slices; ++s) {
      const int width = weight_.slice[s].bits;
      const int64_t rows = plane_rows(depth_, width);
      const int64_t first = rows * tile_ / tiles_;
      const int64_t last = smaller(rows * (tile_ + 1) / tiles_, rows);
      for (int64_t panel = panel_; panel < end_; ++panel) {
        const int64_t row = panel * plane_rows(weight_.depth_padded, width) + plane_rows(k_, width);
        for (int64_t i = first; i < last; ++i) {
          T::prefetch_l2(weight_.slice[s].data + (row + i) * kRowBytes);
        }
      }
    }
    ++tile_;
  }

 private:
  const Weight& weight_;
  int64_t tiles_, panel_, end_, k_, depth_, tile_ = 0;
  bool fetches_;
};

inline void clear_sums(int64_t rows, int panels, float* acc) {
  memset(acc, 0, static_cast<size_t>(rows * panels * kPanel) * sizeof(float));
}

// The outputs of m rows into L1, while their last products are summed up: rows are often a page
// apart, which no hardware prefetcher foresees.
template <class T>
NIBBLAS_INLINE void fetch_outputs(const Matrix& y, int64_t panel, int panels, int64_t row, int m) {
  if (y.col_stride > 4) return;
  for (int i = 0; i < m; ++i) {
    const char* at = matrix_row(y, row + i) + panel * kPanel * y.col_stride;
    for (int n = 0; n < panels; ++n) T::prefetch(at + n * kPanel * y.col_stride);
  }
}

// A part of one segment for m of at most kRows rows.
template <class T, int kRows, class Source>
NIBBLAS_INLINE void multiply_rows(const Source& weights, TileRows x, int m, int64_t steps,
                                  int32_t* sums) {
  with_rows<kRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA {
    multiply_part<T, mr.value>(weights, x, steps, sums);
  });
}

// Depth [k, k + depth) of such a tile, with the rests of its rows in the last block. `x` begins at
// the rows' first words. Where those are for widening, codes are widened as they are read.
template <class T, class Ops, int kRows, class Source>
NIBBLAS_INLINE void multiply_block(const Source& weights, int64_t panel, int64_t k, int64_t depth,
                                   const PackedRows& rows, int64_t row, int m, TileRows x,
                                   int32_t* sums) {
  if constexpr (Ops::kRestsX) {
    const Weight& w = weights.weight;
    if (!rows.rests || rows.rest_counts[row] < 0) {
      using Wide = typename T::template DotFor<255>;
      const SweptPlanes<T, Wide, Source::kPanels> planes(w, panel, k, weights.block, true);
      x = advance(x, m, k / 4 * Wide::kQuadParts, 0);
      return multiply_rows<T, kRows>(planes, x, m, planes.steps(depth), sums);
    }
    if (k + depth == w.depth_padded) {
      add_rests<T, Ops, Source::kPanels>(w, panel, rows, row, m, sums);
    }
  }
  x = advance(x, m, k / 4 * Ops::kQuadParts, 0);
  multiply_rows<T, kRows>(weights, x, m, weights.steps(depth), sums);
}

// Below, a tile's sums wait in memory from block to block, the tiles' one after the other. Where
// the first block is the last, too, all tiles use the same place, which then stays in L1.

// Groups that fit into a depth block: running sums are combined inside the tile.
template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_short_groups(const ProductJob& job, Expand expand, int64_t panel, int64_t row0,
                       int64_t row1, const ProductScratch& s) {
  const Weight& w = *job.weight;
  constexpr int kRows = tile_rows<T, Ops>(kGroups == GroupKind::two_level);
  const int64_t block = depth_block<Ops>(w, row1 - row0);
  const int64_t tiles = (row1 - row0 + kRows - 1) / kRows;
  using Source = BlockSource<T, Ops, kGroups, NV>;
  for (int64_t k = 0; k < w.depth_padded; k += block) {
    const int64_t depth = smaller(block, w.depth_padded - k);
    expand(w, panel, NV, k, depth, s.block.rows);
    if constexpr (kGroups == GroupKind::two_level) {
      expand_super_blocks<T, Ops>(w, panel, NV, k / kSuperBlock, depth / kSuperBlock, s.block);
    } else {
      expand_groups<T, Ops, kGroups>(w, panel, NV, k / w.group, depth / w.group, s.block);
    }
    const int64_t words = k / 4 * Ops::kQuadParts;
    const bool last = k + depth == w.depth_padded;
    NextCodes<T> next(job, panel, NV, k, block, tiles);
    for_each_tile(job.x, row0, row1, kRows, [&](int m, int64_t row, TileRows x) {
      next.fetch_share();
      float* acc = s.acc + (depth == w.depth_padded ? 0 : row - row0) * NV * kPanel;
      if (k == 0) clear_sums(m, NV, acc);
      if (last) fetch_outputs<T>(job.y, panel, NV, row, m);
      const Source source(w, s.block);
      const int64_t segment = k / job.x.segment;
      const TileRows part = advance(x, m, words, segment, job.x.segment_starts);
      with_rows<kRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA {
        if constexpr (kGroups == GroupKind::two_level) {
          multiply_super_blocks<T, mr.value>(source, part, depth / kSuperBlock, acc);
        } else {
          const int64_t steps = Source::steps(w.group);
          multiply_segments<T, mr.value>(source, part, depth / w.group, steps, steps, 1, acc);
        }
      });
      if (last) store_outputs<T>(job, panel, NV, row, m, acc);
    });
  }
}

// f(source, k, depth) for the operands of [begin, end) of the depth, for tiles that need no scales:
// expanded block by block, or the planes themselves where their rows are operands as they stand
// (`expand` is null; `fetch`: whether these ask for codes ahead).
template <class T, class Ops, int NV, class F>
NIBBLAS_INLINE void for_each_block(const Weight& w, Expand expand, int64_t panel, int64_t begin,
                                   int64_t end, int64_t block, const Block& memory, bool fetch,
                                   const F& f) {
  for (int64_t k = begin; k < end; k += block) {
    const int64_t depth = smaller(block, end - k);
    if constexpr (Ops::kPlaneIsOperand) {
      if (!expand) {
        f(SweptPlanes<T, typename Ops::Dot, NV>(w, panel, k, memory, fetch), k, depth);
        continue;
      }
    }
    expand(w, panel, NV, k, depth, memory.rows);
    f(BlockSource<T, Ops, GroupKind::constant, NV>(w, memory), k, depth);
  }
}

// Longer groups, and whole rows: the sums of a segment wait in memory between depth blocks.
template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_long_groups(const ProductJob& job, Expand expand, int64_t panel, int64_t row0,
                      int64_t row1, const ProductScratch& s) {
  const Weight& w = *job.weight;
  constexpr int kRows = tile_rows<T, Ops>(false);
  const int64_t block = depth_block<Ops>(w, row1 - row0);
  const int64_t tiles = (row1 - row0 + job.x.tile_rows - 1) / job.x.tile_rows;
  // Planes that several tiles sweep are asked for by shares, too (avx2 took 0.81 to 0.93 of the
  // time so), but not four panels at once (avx512vnni from memory: 1.1 to 1.5 of the time).
  const bool shares = expand || (Ops::kRestsX && tiles > 1);
  for (int64_t segment = 0; segment < job.x.segments; ++segment) {
    const int64_t begin = segment * job.x.segment;
    const int64_t end = smaller(begin + job.x.segment, w.depth_padded);
    const bool last = segment + 1 == job.x.segments;
    expand_groups<T, Ops, kGroups>(w, panel, NV, w.per_channel ? 0 : segment, 1, s.block);
    for_each_block<T, Ops, NV>(
        w, expand, panel, begin, end, block, s.block, !shares,
        [&](const auto& weights, int64_t k, int64_t depth) {
          NextCodes<T> next(job, panel, NV, k, block, tiles);
          for_each_tile(job.x, row0, row1, job.x.tile_rows, [&](int m, int64_t row, TileRows x) {
            if (shares) next.fetch_share();
            const int64_t at = (depth == w.depth_padded ? 0 : row - row0) * NV * kPanel;
            int32_t* sums = s.sums + at;
            float* acc = s.acc + at;
            const TileRows part = advance(x, m, 0, segment);
            if (k == begin) begin_segment<T, Ops, kGroups>(s.block, NV, part, m, sums);
            if (last && k + depth == end) fetch_outputs<T>(job.y, panel, NV, row, m);
            multiply_block<T, Ops, kRows>(weights, panel, k, depth, job.x, row, m, part, sums);
            if (k + depth < end) return;
            if (segment == 0) clear_sums(m, NV, acc);
            combine_segment<T, Ops, kGroups>(s.block, NV, part, m, sums, acc);
            if (last) store_outputs<T>(job, panel, NV, row, m, acc);
          });
        });
  }
}

template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_panels(const ProductJob& job, Expand expand, int64_t panel, int64_t row0, int64_t row1,
                 const ProductScratch& s) {
  const Weight& w = *job.weight;
  if (w.depth_padded == 0) {
    clear_sums(row1 - row0, NV, s.acc);
    return store_outputs<T>(job, panel, NV, row0, row1 - row0, s.acc);
  }
  if constexpr (kGroups == GroupKind::two_level) {
    gemm_short_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  } else if constexpr (Ops::kRestsX) {  // per channel only
    gemm_long_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  } else if (w.per_channel || w.group > kDepthBlock<Ops>) {
    gemm_long_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  } else {
    gemm_short_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  }
}

// f(Index<NV>, panel) over [panel0, panel1): NV panels at a time, then the rest by halves.
template <int NV, class F>
NIBBLAS_INLINE void for_each_panels(int64_t panel0, int64_t panel1, const F& f) {
  for (; panel1 - panel0 >= NV; panel0 += NV) f(Index<NV>{}, panel0);
  if constexpr (NV > 1) for_each_panels<NV / 2>(panel0, panel1, f);
}

// Whether a plane row is an operand as it stands, and no group ends within a depth block.
template <class Ops>
bool reads_planes(const Weight& w) {
  return Ops::kPlaneIsOperand && w.bits == 8 && (w.per_channel || w.group > kDepthBlock<Ops>);
}

template <class T, class Ops, GroupKind kGroups>
void gemm(const ProductJob& job, Expand expand, int64_t panel0, int64_t panel1, int64_t row0,
          int64_t row1, void* scratch) {
  const ProductScratch s = carve_scratch<T>(scratch, row1 - row0);
  if (reads_planes<Ops>(*job.weight)) expand = nullptr;
  constexpr int kPanels = gemm_panels_of<T>(kGroups == GroupKind::two_level);
  for_each_panels<kPanels>(panel0, panel1, [&](auto nv, int64_t panel) {
    gemm_panels<T, Ops, kGroups, nv.value>(job, expand, panel, row0, row1, s);
  });
}

}  // namespace
}  // namespace nibblas
