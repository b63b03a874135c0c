// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/ops.h"
#include "ops/packed_rows.h"
#include "ops/recent_reads.h"
#include "runtime/dispatch.h"
#include "runtime/pool.h"

namespace nibblas {
namespace {

constexpr int kSignedCenter = 128;  // the code that means 0 of a signed byte

// Zero points against signed codes, one per row of a; empty when all are 0.
std::vector<int32_t> row_zeros(const Array& a, const ZeroPoints& zero, int64_t rows) {
  const int shift = a.dtype == DType::uint8 ? kSignedCenter : 0;
  const auto& v = zero.values;
  const int64_t per_matrix = a.ndim >= 2 ? a.shape[a.ndim - 2] : 1;
  if (v.size() > 1 && static_cast<int64_t>(v.size()) != per_matrix) {
    throw std::invalid_argument("a_zero_point must be a scalar or have shape (" +
                                std::to_string(per_matrix) + ",), got " +
                                std::to_string(v.size()) + " values");
  }
  std::vector<int32_t> zeros;
  bool any = false;
  for (int64_t row = 0; row < rows; ++row) {
    const size_t i = v.size() > 1 ? static_cast<size_t>(row % per_matrix) : 0;
    zeros.push_back((v.empty() ? 0 : v[i]) - shift);
    any = any || zeros.back() != 0;
  }
  if (!any) zeros.clear();
  return zeros;
}

// A row of ones, packed like any other: its product is the sums of b's columns.
PackedRows pack_ones(const KernelTable& kernels, Tile tile, const IntegerRowsJob& a,
                     Scratch& scratch, char* own) {
  const Weight& w = *a.weight;
  tile.rows = 1;
  tile.rests = false;
  int8_t* ones = scratch.get<int8_t>(static_cast<size_t>(std::max<int64_t>(w.depth, 1)));
  std::fill(ones, ones + w.depth, int8_t{1});
  IntegerRowsJob job = {};
  job.weight = &w;
  job.a = {reinterpret_cast<char*>(ones), w.depth, 1, nullptr};
  job.zeros_vary = a.zeros_vary;
  job.zero = a.zero;
  job.packed = allocate_rows(tile, w, Compute::int8, 1, scratch);
  kernels.pack_integer_rows(job, 0, own);
  return job.packed;
}

}  // namespace

void matmul_integer(const Array& a, const Weight& weight, int center, const ZeroPoints& a_zero,
                    const ZeroPoints& b_zero, const Array& c, int threads) {
  Weight w = weight;
  w.two_level = false;  // only codes count: no kernel is to sum them by super-blocks
  if (a.ndim < 1) throw std::invalid_argument("a must have at least one dimension, got a scalar");
  if (a.last() != w.depth) {
    throw std::invalid_argument("b has " + std::to_string(w.depth) + " rows, a has " +
                                std::to_string(a.last()) + " columns");
  }
  const auto& bz = b_zero.values;
  if (bz.size() > 1 && static_cast<int64_t>(bz.size()) != w.cols) {
    throw std::invalid_argument("b_zero_point must be a scalar or have shape (" +
                                std::to_string(w.cols) + ",), got " + std::to_string(bz.size()) +
                                " values");
  }
  Array expected = a;
  expected.shape[a.ndim - 1] = w.cols;
  if (c.ndim != a.ndim || !std::equal(c.shape, c.shape + c.ndim, expected.shape)) {
    throw std::invalid_argument("out must have shape " + shape_text(expected) + ", got " +
                                shape_text(c));
  }
  const int64_t rows = row_count(a);
  if (rows == 0 || w.cols == 0) return;
  const KernelTable& kernels = active_kernels();
  Scratch scratch;
  std::vector<int64_t> a_offsets, c_offsets;
  const std::vector<int32_t> zeros = row_zeros(a, a_zero, rows);

  IntegerRowsJob pack = {};
  pack.weight = &w;
  pack.a = as_matrix(a, a_offsets);
  pack.is_unsigned = a.dtype == DType::uint8;
  IntegerProductJob job = {};
  job.weight = &w;
  job.codes_in = note_read(w);
  job.y = as_matrix(c, c_offsets);
  if (bz.size() > 1) {
    uint8_t* codes = scratch.get<uint8_t>(static_cast<size_t>(w.panels * kPanel));
    std::fill(codes, codes + w.panels * kPanel, uint8_t{0});
    for (size_t n = 0; n < bz.size(); ++n) codes[n] = static_cast<uint8_t>(bz[n] + center);
    job.b_zero = codes;
    pack.zeros_vary = true;
  } else {
    pack.zero = (bz.empty() ? 0 : bz[0]) + center;
  }

  const int wanted = thread_count(threads);
  const Tile tile = kernels.products.tile(w, rows);
  const int64_t most = rows_per_pass(tile, w);
  const Partition p = partition(tile, w, std::min(rows, most), wanted);
  pack.packed = allocate_rows(tile, w, Compute::int8, std::min(rows, most), scratch);
  const size_t thread_bytes = std::max(aligned(kernels.products.pack_scratch(w)),
                                       aligned(kernels.products.product_scratch(p.rows_per_block)));
  char* memory = scratch.get<char>(thread_bytes * static_cast<size_t>(p.threads));
  const auto own = [&](int thread) { return memory + thread_bytes * static_cast<size_t>(thread); };
  PackedRows ones;
  if (!zeros.empty()) {
    ones = pack_ones(kernels, tile, pack, scratch, own(0));
    job.ones = &ones;
  }

  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    const Tile pass_tile = kernels.products.tile(w, count);
    pack.packed.rows = count;
    pack.packed.tile_rows = pass_tile.rows;
    if (!pass_tile.rests) pack.packed.rests = nullptr;
    const int64_t tiles = (count + pass_tile.rows - 1) / pass_tile.rows;
    parallel_for(tiles, p.threads, [&](int64_t t, int thread) {
      kernels.pack_integer_rows(pack, t * pass_tile.rows, own(thread));
    });
    job.x = pack.packed;
    job.a_zero = zeros.empty() ? nullptr : zeros.data() + first;
    const Partition pass = partition(pass_tile, w, count, wanted);
    parallel_for(pass.row_blocks * pass.panel_blocks, p.threads, [&](int64_t task, int thread) {
      const Block2D b = block(pass, w, count, task);
      kernels.integer_product(job, b.panel0, b.panel1, b.row0, b.row1, own(thread));
    });
    skip_rows(pack.a, count);
    skip_rows(job.y, count);
  }
}

void matmul_integer(const Array& a, const Array& b, const ZeroPoints& a_zero,
                    const ZeroPoints& b_zero, const Array& c, int threads) {
  if (b.ndim != 2) {
    throw std::invalid_argument("b must have two dimensions (K, N), got shape " + shape_text(b));
  }
  Weight w = {};
  w.depth = b.shape[0];
  w.cols = b.shape[1];
  w.depth_padded = padded_depth(w.depth, 0);
  w.panels = (w.cols + kPanel - 1) / kPanel;
  w.group = w.depth_padded;
  w.groups = 1;
  w.per_channel = true;
  set_integer_codes(w, 8, 0);
  w.slices = 1;
  const bool is_signed = b.dtype == DType::int8;

  Scratch scratch;
  PackJob job = {};
  job.codes = {b.data, b.strides[1], b.strides[0], nullptr};  // b^T: a row per output
  job.add = is_signed ? kSignedCenter : 0;
  job.top = 255;
  job.cols = w.cols;
  job.depth = w.depth;
  job.depth_padded = w.depth_padded;
  job.bits = 8;
  const int64_t bytes = w.panels * plane_rows(w.depth_padded, 8) * kRowBytes;
  job.planes[0] = scratch.get<uint8_t>(static_cast<size_t>(bytes));
  w.slice[0] = {job.planes[0], 8};
  const ConversionTable& conversions = active_conversions();
  const int pack_threads = bytes < (int64_t{1} << 18) ? 1 : thread_count(threads);
  parallel_for(w.panels, pack_threads, [&](int64_t panel, int) { conversions.pack(job, panel); });
  matmul_integer(a, w, is_signed ? kSignedCenter : 0, a_zero, b_zero, c, threads);
}

}  // namespace nibblas
