// SPDX-License-Identifier: Apache-2.0
// Few rows: each weight byte is used once per row, straight from the packed planes, so the work is
// bound by memory. Several panels are in flight, or one: see reads_one_stream.
#pragma once

#include "kernels/gemm.h"

namespace nibblas {
namespace {

// Groups whose scales are converted at once: 4 KB of floats for 4 panels.
constexpr int64_t kGroupsAtOnce = 16;

// Rows up to here are multiplied straight from the planes, a tile after the other at the same
// panels: they share what the first has brought into the caches. More rows are better off with
// codes that are expanded once for all of them. Integers of 8 bits are operands as they stand, or
// become them by widening, of which the expansion is no less work (avx2 at 12 rows, avx512 at 48:
// 0.73 and 0.88 of its time; floats of 8 rows take 0.64 straight). Two-level schemes have borders
// of their own.
template <class T, class Ops>
int straight_rows(const Weight& w) {
  if (Ops::kWideX) return 2 * T::kStraightRows;
  if (w.two_level && !Ops::kFloat) return T::two_level_straight_rows(w.bits);
  return w.bits == 8 && w.per_channel && !Ops::kFloat ? T::kGemvRows : T::kStraightRows;
}

// Rows of a tile, all of about the same height.
template <class T>
int gemv_tile_rows(int64_t rows) {
  const int64_t tiles = (rows + T::kGemvRows - 1) / T::kGemvRows;
  return tiles ? static_cast<int>((rows + tiles - 1) / tiles) : 1;
}

// From memory, weights are best read one panel after the other: one stream of codes from the
// matrix's beginning to its end. In caches, and with more rows or floats, where arithmetic counts,
// panels share what they load of x and hide each other's latency. (1 row of 1024x1024 int4: from
// memory one stream takes 0.75 of the time of four on avx512vnni and 0.61 of that of two on avx2,
// from L2 1.4 and 1.2; 2048x2048, from L3, 1.4 and 1.1, int8 the same.)
template <class T, class Job>
bool reads_one_stream(const Job& job) {
  return job.x.rows <= T::kStreamRows && job.codes_in == CodesIn::memory;
}

// Whether to ask for codes ahead. In caches that only takes the place of loads (1 row from L2: int8
// 0.88 of the time without; from L3: 0.8 to 0.97; floats from L3 1.03).
template <class Ops, class Job>
bool asks_ahead(const Job& job) {
  return job.codes_in == CodesIn::memory || (Ops::kFloat && job.codes_in == CodesIn::l3);
}

// The highest tile that takes so many panels at once.
template <class T>
constexpr int most_gemv_rows(int panels) {
  int most = T::kGemvRows;
  while (panels > 1 && T::gemv_panels(most) != panels) --most;
  return most;
}

// f(Index<NV>, panel, m, row, TileRows) for NV panels at a time, and for each tile of m rows of x.
template <class T, class F>
NIBBLAS_INLINE void for_each_gemv_tile(const PackedRows& x, int64_t panel0, int64_t panel1,
                                       bool one_stream, const F& f) {
  constexpr int kWide = T::gemv_panels(1);
  const bool wide = !one_stream && T::gemv_panels(x.tile_rows) == kWide;
  int64_t panel = panel0;
  const auto advance_by = [&](auto nv) NIBBLAS_INLINE_LAMBDA {
    for (; panel + nv.value <= panel1; panel += nv.value) {
      for_each_tile(x, 0, x.rows, x.tile_rows,
                    [&](int m, int64_t row, TileRows tile) { f(nv, panel, m, row, tile); });
    }
  };
  if (kWide > 1 && wide) advance_by(Index<kWide>{});
  advance_by(Index<1>{});
}

// m of at most kRows rows.
template <class T, class Operands, GroupKind kGroups, int kRows, int NV>
NIBBLAS_NOINLINE void gemv_panels(const ProductJob& job, int64_t panel, int m, int64_t row,
                                  TileRows rows, Block groups, bool fetch) {
  using Source = PlaneSource<T, Operands, kGroups, NV>;
  using Ops = typename Operands::Ops;
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  float acc[kRows * NV * kPanel];
  clear_sums(m, NV, acc);
  if constexpr (kGroups == GroupKind::two_level) {
    Source planes(w, panel, 0, groups, fetch);
    if constexpr (Source::template kKeeps<1>) planes.keep(rows.words, x.row_words * 4 * m, 0);
    with_rows<kRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA {
      multiply_super_blocks<T, mr.value>(planes, rows, x.segments, acc);
    });
    return store_outputs<T>(job, panel, NV, row, m, acc);
  }
  // Per channel there may be several segments, too, but one scale.
  const int64_t run = w.per_channel ? x.segments : kGroupsAtOnce;
  for (int64_t s = 0; s < x.segments; s += run) {
    const int64_t count = smaller(run, x.segments - s);
    const int64_t k = s * x.segment;
    const TileRows part = advance(rows, m, k / 4 * Ops::kQuadParts, s, x.segment_starts);
    groups.direct = direct_groups(w, panel, w.per_channel ? 0 : s);
    const int64_t last = smaller(x.segment, w.depth_padded - (s + count - 1) * x.segment);
    if constexpr (NV == 1) prefetch_groups<T>(groups.direct, w.per_channel ? 1 : count);
    expand_groups<T, Ops, kGroups>(w, panel, NV, s, w.per_channel ? 1 : count, groups);
    Source planes(w, panel, k, groups, fetch);
    if constexpr (Source::template kKeeps<1>) {
      planes.keep(rows.words, x.row_words * 4 * m, Source::steps(k));
    }
    with_rows<kRows>(m, [&](auto mr) NIBBLAS_INLINE_LAMBDA {
      multiply_segments<T, mr.value>(planes, part, count, Source::steps(x.segment),
                                     Source::steps(last), w.per_channel ? 0 : 1, acc);
    });
  }
  store_outputs<T>(job, panel, NV, row, m, acc);
}

template <class T, class Operands, GroupKind kGroups>
void gemv(const ProductJob& job, int64_t panel0, int64_t panel1, void* scratch) {
  const Block groups = carve_scratch<T>(scratch, job.x.rows).block;
  const bool one_stream = !Operands::Ops::kFloat && reads_one_stream<T>(job);
  const bool fetch = asks_ahead<typename Operands::Ops>(job);
  for_each_gemv_tile<T>(job.x, panel0, panel1, one_stream,
                        [&](auto nv, int64_t panel, int m, int64_t row, TileRows x) {
                          constexpr int kRows = most_gemv_rows<T>(nv.value);
                          gemv_panels<T, Operands, kGroups, kRows, nv.value>(job, panel, m, row, x,
                                                                             groups, fetch);
                        });
}

// The same of a single row, with less code: integers of few bits always take one stream; floats,
// which have to wait for each addition, never do.
template <class T, class Operands, GroupKind kGroups>
void gemv_of_one_row(const ProductJob& job, int64_t panel0, int64_t panel1, void* scratch) {
  using Ops = typename Operands::Ops;
  constexpr int NV = Ops::kFloat || Ops::kHalvesX ? T::gemv_panels(1) : 1;
  const Block groups = carve_scratch<T>(scratch, 1).block;
  const bool one_stream = !Ops::kFloat && reads_one_stream<T>(job);
  const bool fetch = asks_ahead<Ops>(job);
  const TileRows x = {job.x.words, job.x.scales, job.x.starts, job.x.sums};
  int64_t panel = panel0;
  for (; !one_stream && panel + NV <= panel1; panel += NV) {
    gemv_panels<T, Operands, kGroups, 1, NV>(job, panel, 1, 0, x, groups, fetch);
  }
  for (; panel < panel1; ++panel) {
    gemv_panels<T, Operands, kGroups, 1, 1>(job, panel, 1, 0, x, groups, fetch);
  }
}

}  // namespace
}  // namespace nibblas
