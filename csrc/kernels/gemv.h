// SPDX-License-Identifier: Apache-2.0
// Few rows: each weight byte is used once per row, straight from the packed planes, so the work is
// bound by memory. Several panels are in flight, each a stream of its own.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/tile.h"

namespace nibblas {
namespace {

template <class T, class Operands, GroupKind kGroups, int MR, int NV>
void gemv_panels(const ProductJob& job, int64_t panel) {
  using Source = PlaneSource<T, Operands, kGroups, NV>;
  const Weight& w = *job.weight;
  const PackedRows& x = job.x;
  const TileRows rows = {x.words, x.scales, x.starts, x.sums};
  float acc[MR * NV * kPanel] = {};
  if constexpr (kGroups == GroupKind::two_level) {
    multiply_super_blocks<T, MR>(Source(w, panel, 0), rows, x.segments, acc);
  } else {
    const int64_t last = w.depth_padded - (x.segments - 1) * x.segment;
    multiply_segments<T, MR>(Source(w, panel, 0), rows, x.segments, Source::steps(x.segment),
                             Source::steps(last), w.per_channel ? 0 : 1, acc);
  }
  store_outputs<T>(job, panel, NV, 0, MR, acc);
}

template <class T, class Operands, GroupKind kGroups>
void gemv(const ProductJob& job, int64_t panel0, int64_t panel1) {
  with_rows<T::kGemvRows>(static_cast<int>(job.x.rows), [&](auto mr) {
    constexpr int MR = decltype(mr)::value;
    constexpr int NV = T::gemv_panels(MR);
    int64_t panel = panel0;
    for (; panel + NV <= panel1; panel += NV) {
      gemv_panels<T, Operands, kGroups, MR, NV>(job, panel);
    }
    for (; panel < panel1; ++panel) gemv_panels<T, Operands, kGroups, MR, 1>(job, panel);
  });
}

}  // namespace
}  // namespace nibblas
