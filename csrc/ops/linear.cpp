// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "ops/ops.h"
#include "ops/packed_rows.h"
#include "ops/recent_reads.h"
#include "runtime/dispatch.h"
#include "runtime/fp_env.h"
#include "runtime/num_threads.h"
#include "runtime/pool.h"
#include "runtime/scratch.h"

namespace nibblas {

int thread_count(int asked) { return asked > 0 ? asked : get_num_threads(); }

Plan plan_linear(const Weight& w, Compute compute, int64_t rows, int threads) {
  Plan plan;
  plan.tile = active_target().products(compute).tile(w, rows);
  const Partition p = partition(plan.tile, w, rows, thread_count(threads));
  plan.threads = p.threads;
  plan.tasks = p.row_blocks * p.panel_blocks;
  plan.reason = p.threads == thread_count(threads) ? "as many as the setting allows"
                                                   : "too little work, or too few CPUs, for more";
  return plan;
}

namespace {

void check_shapes(const Array& x, const Weight& w, const Array* bias, const Array& y) {
  if (x.ndim < 1) throw std::invalid_argument("x must have at least one dimension, got a scalar");
  if (x.last() != w.depth) {
    throw std::invalid_argument("weight has " + std::to_string(w.depth) +
                                " input features, x has " + std::to_string(x.last()));
  }
  if (bias && (bias->ndim != 1 || bias->shape[0] != w.cols)) {
    throw std::invalid_argument("bias must have shape (" + std::to_string(w.cols) + ",), got " +
                                shape_text(*bias));
  }
  Array expected = x;
  expected.shape[x.ndim - 1] = w.cols;
  if (y.ndim != x.ndim || !std::equal(y.shape, y.shape + y.ndim, expected.shape)) {
    throw std::invalid_argument("out must have shape " + shape_text(expected) + ", got " +
                                shape_text(y));
  }
}

const float* bias_as_floats(const FloatTable& floats, const Array* bias, Scratch& scratch) {
  if (!bias) return nullptr;
  const int64_t count = bias->shape[0];
  const int64_t padded = round_up(count, kPanel);
  float* buffer = scratch.get<float>(static_cast<size_t>(padded));
  const FpEnvironment environment;
  return floats.row_as_floats({bias->data, 0, bias->last_stride(), nullptr},
                              float_type(bias->dtype), 0, count, padded, nullptr, buffer);
}

}  // namespace

void linear(const Array& x, const Weight& w, const Array* bias, Compute compute,
            Activation activation, const Array& y, int threads) {
  check_shapes(x, w, bias, y);
  const int64_t rows = row_count(x);
  if (rows == 0 || w.cols == 0) return;
  const TargetInfo& target = active_target();
  const ProductTable& kernels = target.products(compute);
  Scratch scratch;
  std::vector<int64_t> x_offsets, y_offsets;
  RowsJob pack = {};
  pack.weight = &w;
  pack.x = as_matrix(x, x_offsets);
  pack.type = float_type(x.dtype);
  ProductJob job = {};
  job.weight = &w;
  job.codes_in = note_read(w);
  job.y = as_matrix(y, y_offsets);
  job.type = float_type(y.dtype);
  job.bias = bias_as_floats(*target.floats, bias, scratch);
  job.activation = activation;

  const int wanted = thread_count(threads);
  const Tile tile = kernels.tile(w, rows);
  const int64_t most = rows_per_pass(tile, w);
  const Partition p = partition(tile, w, std::min(rows, most), wanted);
  pack.packed = allocate_rows(tile, w, compute, std::min(rows, most), scratch);
  const size_t pack_bytes = aligned(kernels.pack_scratch(w));
  const size_t product_bytes = aligned(kernels.product_scratch(p.rows_per_block));
  const size_t thread_bytes = std::max(pack_bytes, product_bytes);
  char* memory = scratch.get<char>(thread_bytes * static_cast<size_t>(p.threads));
  const auto own = [&](int thread) { return memory + thread_bytes * static_cast<size_t>(thread); };

  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    pack.packed.rows = count;
    // A last pass of few rows has another tile than the others: it keeps its rows together.
    const Tile pass_tile = kernels.tile(w, count);
    pack.packed.tile_rows = pass_tile.rows;
    if (!pass_tile.rests) pack.packed.rests = nullptr;
    const int64_t tiles = (count + pass_tile.rows - 1) / pass_tile.rows;
    parallel_for(tiles, p.threads, [&](int64_t t, int thread) {
      kernels.pack_rows(pack, t * pass_tile.rows, own(thread));
    });
    job.x = pack.packed;
    const Partition pass = partition(pass_tile, w, count, wanted);
    parallel_for(pass.row_blocks * pass.panel_blocks, p.threads, [&](int64_t task, int thread) {
      const Block2D b = block(pass, w, count, task);
      kernels.product(job, b.panel0, b.panel1, b.row0, b.row1, own(thread));
    });
    skip_rows(pack.x, count);
    skip_rows(job.y, count);
  }
}

}  // namespace nibblas
