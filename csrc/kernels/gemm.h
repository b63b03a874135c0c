// SPDX-License-Identifier: Apache-2.0
// Many rows: NV panels of weights are expanded once per depth block, into L1 or L2, and swept by
// all rows of x. See gemv.h for few rows.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/expand.h"
#include "kernels/tile.h"

namespace nibblas {
namespace {

// Codes expanded at once. int8: 1024 codes x 4 panels x 16 outputs are 64 KB, read from L2 at 10
// bytes a cycle; the tile alone then ran at 98 % of the dot-product peak, with 512 codes at 96 %.
// float32: 256 codes are 64 KB too. Multiples of every group that is combined inside the tile.
template <class Ops>
constexpr int64_t kDepthBlock = Ops::kFloat ? 256 : 1024;

// Few rows sweep a block only once or twice: 16 KB of it stay in L1 between the two.
template <class Ops>
int64_t depth_block(const Weight& w, int64_t rows) {
  if (rows > 8) return kDepthBlock<Ops>;
  const int64_t few = Ops::kFloat ? 64 : 256;
  return w.group > few && w.group <= kDepthBlock<Ops> ? w.group : few;
}

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
  return kBlockRowBytes<T> + 5 * kBlockScaleBytes<T> + 2 * sums;
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

// f(Index<m>, first row, TileRows at the tile's first segment) for each tile of [row0, row1).
template <int MaxRows, class F>
NIBBLAS_INLINE void for_each_tile(const PackedRows& x, int64_t row0, int64_t row1, const F& f) {
  for (int64_t row = row0; row < row1; row += MaxRows) {
    const int m = static_cast<int>(smaller(MaxRows, row1 - row));
    const int64_t at = row * x.segments;
    const TileRows tile = {x.words + row * x.row_words, offset(x.scales, at),
                           x.starts + at * x.segment_starts, offset(x.sums, at)};
    with_rows<MaxRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA { f(mr, row, tile); });
  }
}

// The part of a tile's rows that begins `words` words into each row and at a segment.
inline TileRows advance(TileRows x, int m, int64_t words, int64_t segment, int64_t starts = 1) {
  return {x.words + words * m, x.scales + segment * m, x.starts + segment * starts * m,
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
      if constexpr (Source::kKind == GroupKind::mins) {
        sum = T::fma(T::set1(x.sums[row]), w.min(n, g, scale), sum);
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
template <class T>
class NextCodes {
 public:
  NextCodes(const Weight& w, int64_t panel, int panels, int64_t k, int64_t depth, int64_t tiles)
      : weight_(w), tiles_(tiles) {
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
};

// Groups that fit into a depth block: running sums are combined inside the tile.
template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_short_groups(const ProductJob& job, Expand expand, int64_t panel, int64_t row0,
                       int64_t row1, const ProductScratch& s) {
  const Weight& w = *job.weight;
  const int64_t block = depth_block<Ops>(w, row1 - row0);
  const int64_t tiles = (row1 - row0 + T::kGemmRows - 1) / T::kGemmRows;
  using Source = BlockSource<T, Ops, kGroups, NV>;
  for (int64_t k = 0; k < w.depth_padded; k += block) {
    const int64_t depth = smaller(block, w.depth_padded - k);
    expand(w, panel, k, depth, s.block.rows);
    expand_groups<T, Ops, kGroups, NV>(w, panel, k, depth, s.block);
    const int64_t words = Source::steps(k);
    NextCodes<T> next(w, panel, NV, k, block, tiles);
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      next.fetch_share();
      float* acc = s.acc + (row - row0) * NV * kPanel;
      const Source source(w, s.block);
      const int64_t segment = k / job.x.segment;
      const TileRows part = advance(x, m.value, words, segment, job.x.segment_starts);
      if constexpr (kGroups == GroupKind::two_level) {
        multiply_super_blocks<T, m.value>(source, part, depth / kSuperBlock, acc);
      } else {
        const int64_t steps = Source::steps(w.group);
        multiply_segments<T, m.value>(source, part, depth / w.group, steps, steps, 1, acc);
      }
    });
  }
}

// f(source, k, depth) for the operands of [begin, end) of the depth, for tiles that need no scales:
// expanded block by block, or the planes themselves where their rows are operands as they stand
// (`expand` is null).
template <class T, class Ops, int NV, class F>
NIBBLAS_INLINE void for_each_block(const Weight& w, Expand expand, int64_t panel, int64_t begin,
                                   int64_t end, int64_t block, const Block& memory, const F& f) {
  for (int64_t k = begin; k < end; k += block) {
    const int64_t depth = smaller(block, end - k);
    if constexpr (Ops::kPlaneIsOperand) {
      if (!expand) {
        f(PlaneSource<T, IntCodes<T, 8>, GroupKind::constant, NV>(w, panel, k), k, depth);
        continue;
      }
    }
    expand(w, panel, k, depth, memory.rows);
    f(BlockSource<T, Ops, GroupKind::constant, NV>(w, memory), k, depth);
  }
}

// What combine_segment and first_sum read of the planes: the parameters of a group.
template <class T, class Ops_, GroupKind kGroups, int NV>
struct GroupSource {
  using Ops = Ops_;
  static constexpr int kPanels = NV;
  static constexpr GroupKind kKind = kGroups;
  const Weight& weight;
  int64_t panel;
  typename Ops::Zero zeros[NV];

  void begin_group(int64_t g) {
    if constexpr (kGroups == GroupKind::zero_points) {
      for (int n = 0; n < NV; ++n) {
        const int64_t index = (panel + n) * weight.groups + g;
        zeros[n] = Ops::load_zeros(weight.zero_points + index * kPanel);
      }
    }
  }
  typename T::F32 scale(int n, int64_t g) const { return group_scale<T>(weight, panel + n, g); }
  typename T::F32 min(int n, int64_t g, typename T::F32 scale) const {
    return group_min<T>(weight, panel + n, g, scale);
  }
};

// Longer groups, and whole rows: the sums of a segment wait in memory between depth blocks.
template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_long_groups(const ProductJob& job, Expand expand, int64_t panel, int64_t row0,
                      int64_t row1, const ProductScratch& s) {
  const Weight& w = *job.weight;
  const int64_t block = depth_block<Ops>(w, row1 - row0);
  GroupSource<T, Ops, kGroups, NV> groups = {w, panel, {}};
  for (int64_t segment = 0; segment < job.x.segments; ++segment) {
    const int64_t begin = segment * job.x.segment;
    const int64_t end = smaller(begin + job.x.segment, w.depth_padded);
    const int64_t g = w.per_channel ? 0 : segment;
    groups.begin_group(g);
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      begin_segment(groups, advance(x, m.value, 0, segment), m.value,
                    s.sums + (row - row0) * NV * kPanel);
    });
    for_each_block<T, Ops, NV>(
        w, expand, panel, begin, end, block, s.block,
        [&](const auto& weights, int64_t k, int64_t depth) {
          const int64_t words = k / 4 * Ops::kQuadParts;
          for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
            multiply_part<T, m.value>(weights, x.words + words * m.value, weights.steps(depth),
                                      s.sums + (row - row0) * NV * kPanel);
          });
        });
    for_each_tile<T::kGemmRows>(job.x, row0, row1, [&](auto m, int64_t row, TileRows x) {
      const int64_t at = (row - row0) * NV * kPanel;
      combine_segment<T>(groups, advance(x, m.value, 0, segment), m.value, g, s.sums + at,
                         s.acc + at);
    });
  }
}

template <class T, class Ops, GroupKind kGroups, int NV>
void gemm_panels(const ProductJob& job, Expand expand, int64_t panel, int64_t row0, int64_t row1,
                 const ProductScratch& s) {
  const Weight& w = *job.weight;
  memset(s.acc, 0, static_cast<size_t>(row1 - row0) * NV * kPanel * sizeof(float));
  if constexpr (kGroups == GroupKind::two_level) {
    gemm_short_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  } else if (w.per_channel || w.group > kDepthBlock<Ops>) {
    gemm_long_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  } else {
    gemm_short_groups<T, Ops, kGroups, NV>(job, expand, panel, row0, row1, s);
  }
  store_outputs<T>(job, panel, NV, row0, row1 - row0, s.acc);
}

// f(Index<NV>, panel) over [panel0, panel1): NV panels at a time, then the rest by halves.
template <int NV, class F>
NIBBLAS_INLINE void for_each_panels(int64_t panel0, int64_t panel1, const F& f) {
  for (; panel1 - panel0 >= NV; panel0 += NV) f(Index<NV>{}, panel0);
  if constexpr (NV > 1) for_each_panels<NV / 2>(panel0, panel1, f);
}

// How the codes of a weight are expanded, for NV = kGemmPanels and its halves.
struct Expanders {
  Expand by_panels[4];  // of 1, 2, 4, 8

  Expand of(int panels) const { return by_panels[panels >= 8 ? 3 : panels >= 4 ? 2 : panels / 2]; }
};

template <class T, class Operands, GroupKind kGroups>
Expanders expanders() {
  Expanders e = {};
  // 8-bit codes may be operands as they stand, where no scales come in between.
  e.by_panels[0] = expand_codes<T, Operands, kGroups, 1>;
  if constexpr (T::kGemmPanels >= 2) e.by_panels[1] = expand_codes<T, Operands, kGroups, 2>;
  if constexpr (T::kGemmPanels >= 4) e.by_panels[2] = expand_codes<T, Operands, kGroups, 4>;
  if constexpr (T::kGemmPanels >= 8) e.by_panels[3] = expand_codes<T, Operands, kGroups, 8>;
  return e;
}

// Whether a plane row is an operand as it stands, and no group ends within a depth block.
template <class Ops>
bool reads_planes(const Weight& w) {
  return Ops::kPlaneIsOperand && w.bits == 8 && (w.per_channel || w.group > kDepthBlock<Ops>);
}

template <class T, class Ops, GroupKind kGroups>
void gemm(const ProductJob& job, const Expanders& expand, int64_t panel0, int64_t panel1,
          int64_t row0, int64_t row1, void* scratch) {
  const ProductScratch s = carve_scratch<T>(scratch, row1 - row0);
  for_each_panels<T::kGemmPanels>(panel0, panel1, [&](auto nv, int64_t panel) {
    const Expand f = reads_planes<Ops>(*job.weight) ? nullptr : expand.of(nv.value);
    gemm_panels<T, Ops, kGroups, nv.value>(job, f, panel, row0, row1, s);
  });
}

}  // namespace
}  // namespace nibblas
