// SPDX-License-Identifier: Apache-2.0
// Which kernel a product takes: by bits, compute mode, kind of offset and number of rows.
#pragma once

#include "kernels/gemm.h"
#include "kernels/gemv.h"

namespace nibblas {
namespace {

template <class T>
Tile choose_tile(const Weight& w, Compute compute, int64_t rows) {
  const bool few = rows <= T::kGemvRows;
  const bool is_float = compute == Compute::float32;
  const bool wide = w.bits == 8 ? T::template IntDot<8>::kWideX : T::template IntDot<4>::kWideX;
  Tile tile;
  tile.rows = few ? static_cast<int>(rows > 0 ? rows : 1) : T::kGemmRows;
  tile.panels = few ? T::gemv_panels(tile.rows) : T::kGemmPanels;
  const int64_t block =
      is_float ? kDepthBlock<FloatOps<T>> : kDepthBlock<typename IntSplit<T, 8>::Ops>;
  tile.depth = few ? 0 : block;
  tile.x_row_words = is_float ? 4 : wide ? 2 : 1;
  tile.kernel = few ? "gemv" : "gemm";
  return tile;
}

template <class T, class Split, OffsetKind kOffset>
void product_of(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
                void* scratch) {
  if (job.x.rows <= T::kGemvRows) {
    gemv<T, Split, kOffset>(job, panel0, panel1);
  } else {
    gemm<T, Split, kOffset>(job, panel0, panel1, row0, row1, scratch);
  }
}

template <class T, class Split>
void product_by_offset(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                       int64_t row1, void* scratch) {
  switch (offset_kind(*job.weight)) {
    case OffsetKind::constant:
      return product_of<T, Split, OffsetKind::constant>(job, panel0, panel1, row0, row1, scratch);
    case OffsetKind::zero_points:
      return product_of<T, Split, OffsetKind::zero_points>(job, panel0, panel1, row0, row1,
                                                           scratch);
    case OffsetKind::mins:
      return product_of<T, Split, OffsetKind::mins>(job, panel0, panel1, row0, row1, scratch);
  }
}

template <class T>
void product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
             void* scratch) {
  const bool byte_codes = job.weight->bits == 8;
  if (job.compute == Compute::int8) {
    if (byte_codes) {
      product_by_offset<T, IntSplit<T, 8>>(job, panel0, panel1, row0, row1, scratch);
    } else {
      product_by_offset<T, IntSplit<T, 4>>(job, panel0, panel1, row0, row1, scratch);
    }
  } else if (byte_codes) {
    product_by_offset<T, FloatSplit<T, 8>>(job, panel0, panel1, row0, row1, scratch);
  } else {
    product_by_offset<T, FloatSplit<T, 4>>(job, panel0, panel1, row0, row1, scratch);
  }
}

}  // namespace
}  // namespace nibblas
