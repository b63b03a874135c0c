// SPDX-License-Identifier: Apache-2.0
// Many rows: NV panels of weights are expanded once per depth block, into L1 or L2, and swept by
// all rows of x. See gemv.h for few rows.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/tile.h"

namespace nibblas {
namespace {

// Codes expanded at once. int8: 1024 codes x 4 panels x 16 outputs are 64 KB, read from L2 at 10
// bytes a cycle; the tile alone then ran at 98 % of the dot-product peak, with 512 codes at 96 %.
// float32: 256 codes are 64 KB too. Multiples of every group that is combined inside the tile.
template <class Ops>
constexpr int64_t kDepthBlock = Ops::kFloat ? 256 : 1024;

// Scratch of one product: the block, then running sums and segment sums of [rows][NV][16].
struct ProductScratch {
  Block block;
  float* acc;
  int32_t* sums;
};

// Operand rows of a block: one per code (float32), per 4 codes, or per 2 where a target widens.
template <class T>
constexpr size_t kBlockRowBytes = size_t{512} * T::kGemmPanels * kRowBytes;
template <class T>
constexpr size_t kBlockScaleBytes = size_t{1024 / 16} * T::kGemmPanels * kPanel * sizeof(float);

template <class T>
constexpr int widest_panels() {
  int most = T::kGemmPanels;
  for (int rows = 1; rows <= T::kGemvRows; ++rows) {
    if (T::gemv_panels(rows) > most) most = T::gemv_panels(rows);
  }
  return most;
}

template <class T>
size_t product_scratch_bytes(int64_t rows) {
  const size_t sums = static_cast<size_t>(rows + 1) * widest_panels<T>() * kPanel * sizeof(float);
  return kBlockRowBytes<T> + 3 * kBlockScaleBytes<T> + 2 * sums;
}

template <class T>
ProductScratch carve_scratch(void* memory, int64_t rows) {
  uint8_t* p = static_cast<uint8_t*>(memory);
  ProductScratch s;
  s.block.rows = p;
  p += kBlockRowBytes<T>;
  s.block.scales = reinterpret_cast<float*>(p);
  p += kBlockScaleBytes<T>;
  s.block.mins = reinterpret_cast<float*>(p);
  p += kBlockScaleBytes<T>;
  s.block.zeros = p;
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

// f(Index<m>, first row, TileRows at the tile's first segment) for each tile of [row0, row1).
template <int MaxRows, class F>
NIBBLAS_INLINE void for_each_tile(const PackedRows& x, int64_t row0, int64_t row1, const F& f) {
  for (int64_t row = row0; row < row1; row += MaxRows) {
    const int m = static_cast<int>(smaller(MaxRows, row1 - row));
    const int64_t at = row * x.segments;
    const TileRows tile = {x.words + row * x.row_words, offset(x.scales, at), x.starts + at,
                           offset(x.sums, at)};
    with_rows<MaxRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA { f(mr, row, tile); });
  }
}

// The part of a tile's rows that begins `words` words into each row and at a segment.
inline TileRows advance(TileRows x, int m, int64_t words, int64_t segment) {
  return {x.words + words * m, x.scales + segment * m, x.starts + segment * m,
          offset(x.sums, segment * m)};
}

// Adds the finished sums of one segment to acc, for the m rows of a tile.
template <class T, class Source>
NIBBLAS_NOINLINE void combine_segment(const Source& w, TileRows x, int m, int64_t g,
                                      const int32_t* sums, float* acc) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  for (int n = 0; n < NV; ++n) {
    const auto scale = w.scale(n, g);
    for (int row = 0; row < m; ++row) {
      const int at = (row * NV + n) * kPanel;
      const float a = Ops::kFloat ? 0.0f : x.scales[row];
      auto sum = Ops::combine(Ops::load_sum(sums + at), a, scale, T::load(acc + at));
      if constexpr (Source::kKind == OffsetKind::mins) {
        sum = T::fma(T::set1(x.sums[row]), w.min(n, g), sum);
      }
      T::store(acc + at, sum);
    }
  }
}

template <class Source>
NIBBLAS_NOINLINE void begin_segment(const Source& w, TileRows x, int m, int32_t* sums) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  for (int row = 0; row < m; ++row) {
    for (int n = 0; n < NV; ++n) {
      Ops::store_sum(sums + (row * NV + n) * kPanel, first_sum(w, x.starts, row, n));
    }
  }
}

// Brings the codes that will be expanded after this block into L2, a share at each tile. (Without
// it a product of 128 rows spent 4 % of its time waiting for them.)
template <class T, class Ops>
class NextCodes {
 public:
  NextCodes(const Weight& w, int64_t panel, int panels, int64_t k, int64_t tiles) {
    k += kDepthBlock<Ops>;
    if (k >= w.depth_padded) {
      k = 0;
      panel += panels;
    }
    stride_ = plane_rows(w.depth_padded, w.bits) * kRowBytes;
    panels_ = smaller(panels, w.panels - panel);
    next_ = w.slice[0].data + panel * stride_ + plane_rows(k, w.bits) * kRowBytes;
    rows_ = plane_rows(smaller(kDepthBlock<Ops>, w.depth_padded - k), w.bits);
    share_ = (rows_ + tiles - 1) / tiles;
  }
  void fetch_share() {
    for (int64_t n = 0; n < panels_; ++n) {
      for (int64_t row = 0; row < smaller(share_, rows_); ++row) {
        T::prefetch_l2(next_ + n * stride_ + row * kRowBytes);
      }
    }
    next_ += share_ * kRowBytes;
    rows_ -= share_;
  }

 private:
  const uint8_t* next_;
  int64_t stride_, panels_, rows_, share_;
};

// Groups that fit into a depth block: running sums are combined inside the tile.
template <class T, class Split, OffsetKind kOffset, int NV>
void gemm_short_groups(const ProductJob& job, int64_t panel, int64_t row0, int64_t row1,
                       const ProductScratch& s) {
  using Ops = typename Split::Ops;
  const Weight& w = *job.weight;
  for (int64_t k = 0; k < w.depth_padded; k += kDepthBlock<Ops>) {
    const int64_t depth = smaller(kDepthBlock<Ops>, w.depth_padded - k);
    expand_block<T, Split, kOffset, NV>(w, panel, k, depth, true, s.block);
    const int64_t rows = plane_rows(w.group, w.bits) * Split::kParts;
    const int64_t words = plane_rows(k, w.bits) * Split::kParts;
    NextCodes<T, Ops> next(w, panel, NV, k, (row1 - row0) / T::kGemmRows + 1);
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      next.fetch_share();
      multiply_segments<T, m.value>(BlockSource<T, Ops, kOffset, NV>(s.block),
                                    advance(x, m.value, words, k / w.group), depth / w.group, rows,
                                    rows, 1, s.acc + (row - row0) * NV * kPanel);
    });
  }
}

// Operands of `depth` codes from k on, for tiles that need no scales: expanded into the block, or
// the plane itself where its rows are operands as they stand. Only float32 operands differ by the
// kind of offset, and that is gone once they are expanded.
template <class T, class Split, OffsetKind kOffset, int NV>
NIBBLAS_INLINE auto operands(const Weight& w, int64_t panel, int64_t k, int64_t depth,
                             const Block& block) {
  if constexpr (Split::kParts == 1) {
    PlaneSource<T, Split, OffsetKind::constant, NV> planes(w, panel);
    planes.codes += plane_rows(k, w.bits) * kRowBytes;
    return planes;
  } else {
    expand_block<T, Split, kOffset, NV>(w, panel, k, depth, false, block);
    return BlockSource<T, typename Split::Ops, OffsetKind::constant, NV>(block);
  }
}

// Longer groups, and whole rows: the sums of a segment wait in memory between depth blocks.
template <class T, class Split, OffsetKind kOffset, int NV>
void gemm_long_groups(const ProductJob& job, int64_t panel, int64_t row0, int64_t row1,
                      const ProductScratch& s) {
  using Ops = typename Split::Ops;
  const Weight& w = *job.weight;
  PlaneSource<T, Split, kOffset, NV> planes(w, panel);
  for (int64_t segment = 0; segment < job.x.segments; ++segment) {
    const int64_t begin = segment * job.x.segment;
    const int64_t end = smaller(begin + job.x.segment, w.depth_padded);
    const int64_t g = w.per_channel ? 0 : segment;
    planes.begin_group(g);
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      begin_segment(planes, advance(x, m.value, 0, segment), m.value,
                    s.sums + (row - row0) * NV * kPanel);
    });
    for (int64_t k = begin; k < end; k += kDepthBlock<Ops>) {
      const int64_t depth = smaller(kDepthBlock<Ops>, end - k);
      const auto weights = operands<T, Split, kOffset, NV>(w, panel, k, depth, s.block);
      const int64_t words = plane_rows(k, w.bits) * Split::kParts;
      const int64_t rows = plane_rows(depth, w.bits) * Split::kParts;
      for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
        multiply_part<T, m.value>(weights, x.words + words * m.value, rows,
                                  s.sums + (row - row0) * NV * kPanel);
      });
    }
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      const int64_t at = (row - row0) * NV * kPanel;
      combine_segment<T>(planes, advance(x, m.value, 0, segment), m.value, g, s.sums + at,
                         s.acc + at);
    });
  }
}

template <class T, class Split, OffsetKind kOffset, int NV>
void gemm_panels(const ProductJob& job, int64_t panel, int64_t row0, int64_t row1,
                 const ProductScratch& s) {
  memset(s.acc, 0, static_cast<size_t>(row1 - row0) * NV * kPanel * sizeof(float));
  if (job.weight->per_channel || job.weight->group > kDepthBlock<typename Split::Ops>) {
    gemm_long_groups<T, Split, kOffset, NV>(job, panel, row0, row1, s);
  } else {
    gemm_short_groups<T, Split, kOffset, NV>(job, panel, row0, row1, s);
  }
  store_outputs<T>(job, panel, NV, row0, row1 - row0, s.acc);
}

// f(Index<NV>, panel) over [panel0, panel1): NV panels at a time, then the rest by halves.
template <int NV, class F>
NIBBLAS_INLINE void for_each_panels(int64_t panel0, int64_t panel1, const F& f) {
  for (; panel1 - panel0 >= NV; panel0 += NV) f(Index<NV>{}, panel0);
  if constexpr (NV > 1) for_each_panels<NV / 2>(panel0, panel1, f);
}

template <class T, class Split, OffsetKind kOffset>
void gemm(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
          void* scratch) {
  const ProductScratch s = carve_scratch<T>(scratch, row1 - row0);
  for_each_panels<T::kGemmPanels>(panel0, panel1, [&](auto nv, int64_t panel) {
    gemm_panels<T, Split, kOffset, nv.value>(job, panel, row0, row1, s);
  });
}

}  // namespace
}  // namespace nibblas
