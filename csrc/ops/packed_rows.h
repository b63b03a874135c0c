// SPDX-License-Identifier: Apache-2.0
// What the two products share: memory for packed rows, and how a product is cut into tasks.
#pragma once

#include "ops/array.h"
#include "runtime/scratch.h"

namespace nibblas {

// A product as row blocks x panel blocks, each one task.
struct Partition {
  int64_t rows_per_block;  // a multiple of the tile's rows
  int64_t row_blocks;
  int64_t panels_per_block;
  int64_t panel_blocks;
  int threads;  // that get work
};
Partition partition(const Tile& tile, const Weight& w, int64_t rows, int threads);

struct Block2D {
  int64_t panel0, panel1, row0, row1;
};
Block2D block(const Partition& p, const Weight& w, int64_t rows, int64_t task);

// Rows that are packed at once, so that their packed form stays within a few tens of MB.
int64_t rows_per_pass(const Tile& tile, const Weight& w);

PackedRows allocate_rows(const Tile& tile, const Weight& w, Compute compute, int64_t rows,
                         Scratch& scratch);

void skip_rows(Matrix& m, int64_t rows);

inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace nibblas
