// SPDX-License-Identifier: Apache-2.0
// Integer products without scales, modulo 2^32. Operands are packed like weights and activations:
// b as unsigned codes, a as signed ones, and every zero point goes through a sum:
//   (a - za)(b - zb) = [a b - zb sum(a)] - za [1 b - zb K]
// The second bracket is what a row of ones gives, so it is computed as one more row of a.
#pragma once

#include "kernels/product.h"

namespace nibblas {
namespace {

template <class T>
NIBBLAS_NOINLINE void store_integers(const IntegerProductJob& job, int64_t panel, int panels,
                                     int64_t row0, int64_t rows, const int32_t* sums,
                                     const int32_t* ones) {
  for (int n = 0; n < panels; ++n) {
    const int64_t col = (panel + n) * kPanel;
    const int64_t count = smaller(kPanel, job.weight->cols - col);
    for (int64_t row = 0; row < rows; ++row) {
      auto c = T::load_i32(sums + (row * panels + n) * kPanel);
      if (job.ones) {
        const auto zero = T::set1_i32(job.a_zero[row0 + row]);
        c = T::sub_i32(c, T::mul_i32(zero, T::load_i32(ones + n * kPanel)));
      }
      char* to = mutable_row(job.y, row0 + row) + col * job.y.col_stride;
      store_lanes<T>(to, job.y.col_stride, count, FloatType::float32, T::from_bits(c));
    }
  }
}

// The first sums of m rows: -zb * sum(a).
template <class T, class Ops>
NIBBLAS_NOINLINE void begin_integers(const IntegerProductJob& job, int64_t panel, int panels,
                                     const int32_t* starts, int64_t rows, int32_t* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int n = 0; n < panels; ++n) {
      auto c = T::set1_i32(starts[row]);
      if (job.b_zero) {
        c = T::mul_i32(c, Ops::as_zeros(T::load_u8(job.b_zero + (panel + n) * kPanel)));
      }
      T::store_i32(sums + (row * panels + n) * kPanel, c);
    }
  }
}

inline TileRows ones_row(const IntegerProductJob& job) {
  return {job.ones->words, nullptr, nullptr, nullptr};
}

template <class T, class Ops, int NV>
void integer_gemm_panels(const IntegerProductJob& job, Expand expand, int64_t panel, int64_t row0,
                         int64_t row1, const ProductScratch& s) {
  const Weight& w = *job.weight;
  int32_t* ones = s.sums + (row1 - row0) * NV * kPanel;
  if (job.ones) begin_integers<T, Ops>(job, panel, NV, job.ones->starts, 1, ones);
  if (w.depth_padded == 0) {
    begin_integers<T, Ops>(job, panel, NV, job.x.starts + row0, row1 - row0, s.sums);
    return store_integers<T>(job, panel, NV, row0, row1 - row0, s.sums, ones);
  }
  for_each_block<T, Ops, NV>(
      w, expand, panel, 0, w.depth_padded, depth_block<Ops>(w, row1 - row0), s.block, true,
      [&](const auto& weights, int64_t k, int64_t depth) {
        const bool last = k + depth == w.depth_padded;
        constexpr int rows = tile_rows<T, Ops>(false);  // the weight is no two-level one here
        if (job.ones) {
          multiply_block<T, Ops, 1>(weights, panel, k, depth, *job.ones, 0, 1, ones_row(job), ones);
        }
        for_each_tile(job.x, row0, row1, job.x.tile_rows, [&](int m, int64_t row, TileRows x) {
          const int64_t at = (depth == w.depth_padded ? 0 : row - row0) * NV * kPanel;
          int32_t* sums = s.sums + at;  // see gemm_short_groups
          if (k == 0) begin_integers<T, Ops>(job, panel, NV, job.x.starts + row, m, sums);
          if (last) fetch_outputs<T>(job.y, panel, NV, row, m);
          multiply_block<T, Ops, rows>(weights, panel, k, depth, job.x, row, m, x, sums);
          if (last) store_integers<T>(job, panel, NV, row, m, sums, ones);
        });
      });
}

template <class T, class Operands, int kRows, int NV>
NIBBLAS_NOINLINE void integer_gemv_panels(const IntegerProductJob& job, int64_t panel, int m,
                                          int64_t row, TileRows x) {
  using Source = PlaneSource<T, Operands, GroupKind::constant, NV>;
  using Ops = typename Operands::Ops;
  const Weight& w = *job.weight;
  int32_t sums[kRows * NV * kPanel];
  int32_t ones[NV * kPanel] = {};
  begin_integers<T, Ops>(job, panel, NV, job.x.starts + row, m, sums);
  if (job.ones) begin_integers<T, Ops>(job, panel, NV, job.ones->starts, 1, ones);
  for (int64_t k = 0; k < w.depth_padded; k += kSegment) {  // see kHighInPlace
    const Source planes(w, panel, k, {}, asks_ahead<Ops>(job));
    const int64_t steps = Source::steps(smaller(kSegment, w.depth_padded - k));
    const int64_t words = k / 4 * Ops::kQuadParts;
    multiply_rows<T, kRows>(planes, advance(x, m, words, 0), m, steps, sums);
    if (job.ones) multiply_part<T, 1>(planes, advance(ones_row(job), 1, words, 0), steps, ones);
  }
  store_integers<T>(job, panel, NV, row, m, sums, ones);
}

template <class T, class Operands>
void integer_product_of(const IntegerProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                        int64_t row1, void* scratch) {
  const ProductScratch s = carve_scratch<T>(scratch, row1 - row0);
  const auto sweep = [&](auto use, Expand expand) {
    using Ops = typename decltype(use)::Operands::Ops;
    for_each_panels<T::kGemmPanels>(panel0, panel1, [&](auto nv, int64_t panel) {
      integer_gemm_panels<T, Ops, nv.value>(job, expand, panel, row0, row1, s);
    });
  };
  bool few = takes_planes<T, Operands>(*job.weight, job.x.rows);
  if constexpr (Operands::Swept::Ops::kRestsX) {
    if (job.x.rests) {
      if (sweeps_planes(job.x, row0, row1)) return sweep(Use<typename Operands::Swept>{}, nullptr);
      few = false;
    }
  }
  if constexpr (straight(Operands::kBits, GroupKind::constant)) {
    if (few) {
      return for_each_gemv_tile<T>(job.x, panel0, panel1, reads_one_stream<T>(job),
                                   [&](auto nv, int64_t panel, int m, int64_t row, TileRows x) {
                                     constexpr int kRows = most_gemv_rows<T>(nv.value);
                                     integer_gemv_panels<T, Operands, kRows, nv.value>(job, panel,
                                                                                       m, row, x);
                                   });
    }
  }
  // A single row of 1 to 3 bits comes here, too, though its tile is gemv's: packed it is the same.
  using ManyRows = typename Operands::ManyRows;
  using Ops = typename ManyRows::Ops;
  sweep(Use<ManyRows>{},
        reads_planes<Ops>(*job.weight) ? nullptr : expand_codes<T, ManyRows, false>);
}

template <class T>
void integer_product(const IntegerProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                     int64_t row1, void* scratch) {
  with_bits(job.weight->bits, [&](auto bits) {
    constexpr int top = (1 << decltype(bits)::value) - 1;
    using Dot = typename T::template IntegerDotFor<top>;
    using Operands = IntCodes<T, decltype(bits)::value, Dot>;
    integer_product_of<T, Operands>(job, panel0, panel1, row0, row1, scratch);
  });
}

}  // namespace
}  // namespace nibblas
