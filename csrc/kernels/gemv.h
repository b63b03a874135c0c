// SPDX-License-Identifier: Apache-2.0
// Few rows: each weight byte is used once per row, straight from the packed planes, so the work is
// bound by memory. Several panels are in flight, or one: see panels_in_flight.
#pragma once

#include "kernels/gemm.h"

namespace nibblas {
namespace {

// Groups whose scales are converted at once: 4 KB of floats for 4 panels.
constexpr int64_t kGroupsAtOnce = 16;

// Weights of more bytes than stay in L2 come from memory, which one panel after the other reads best:
// one stream of codes from the matrix's begin to its end. In the caches, and with more rows or
// floats, where arithmetic counts, panels share what they load of x and hide each other's latency.
constexpr int64_t kCachedBytes = int64_t{1} << 20;

template <class T, class Ops, int MR>
int panels_in_flight(const Weight& w) {
  const bool from_memory = w.panels * plane_rows(w.depth_padded, w.bits) * kRowBytes > kCachedBytes;
  return from_memory && !Ops::kFloat && MR <= T::kStreamRows ? 1 : T::gemv_panels(MR);
}

template <class T, class Operands, GroupKind kGroups, int MR, int NV>
void gemv_panels(const ProductJob& job, int64_t panel, Block groups) {
  using Source = PlaneSource<T, Operands, kGroups, NV>;
  using Ops = typename Operands::Ops;
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  const TileRows rows = {x.words, x.scales, x.starts, x.sums};
  constexpr int64_t at_once = kGroups == GroupKind::two_level ? 2 : kGroupsAtOnce;  // segments
  // Per channel there may be several segments, too, but one scale.
  const int64_t run = w.per_channel ? x.segments : at_once;
  float acc[MR * NV * kPanel] = {};
  for (int64_t s = 0; s < x.segments; s += run) {
    const int64_t count = smaller(run, x.segments - s);
    const int64_t k = s * x.segment;
    const TileRows part = advance(rows, MR, k / 4 * Ops::kQuadParts, s, x.segment_starts);
    if constexpr (kGroups == GroupKind::two_level) {
      expand_super_blocks<T, Ops>(w, panel, NV, s, count, groups);
      multiply_super_blocks<T, MR>(Source(w, panel, k, groups), part, count, acc);
    } else {
      groups.direct = direct_groups(w, panel, w.per_channel ? 0 : s);
      const int64_t last = smaller(x.segment, w.depth_padded - (s + count - 1) * x.segment);
      if constexpr (NV == 1) prefetch_groups<T>(groups.direct, w.per_channel ? 1 : count);
      expand_groups<T, Ops, kGroups>(w, panel, NV, s, w.per_channel ? 1 : count, groups);
      multiply_segments<T, MR>(Source(w, panel, k, groups), part, count,
                               Source::steps(x.segment), Source::steps(last),
                               w.per_channel ? 0 : 1, acc);
    }
  }
  store_outputs<T>(job, panel, NV, 0, MR, acc);
}

template <class T, class Operands, GroupKind kGroups>
void gemv(const ProductJob& job, int64_t panel0, int64_t panel1, void* scratch) {
  const Block groups = carve_scratch<T>(scratch, job.x.rows).block;
  with_rows<T::kGemvRows>(static_cast<int>(job.x.rows), [&](auto mr) {
    constexpr int MR = decltype(mr)::value;
    constexpr int NV = T::gemv_panels(MR);
    int64_t panel = panel0;
    if (panels_in_flight<T, typename Operands::Ops, MR>(*job.weight) == NV) {
      for (; panel + NV <= panel1; panel += NV) {
        gemv_panels<T, Operands, kGroups, MR, NV>(job, panel, groups);
      }
    }
    for (; panel < panel1; ++panel) gemv_panels<T, Operands, kGroups, MR, 1>(job, panel, groups);
  });
}

}  // namespace
}  // namespace nibblas
