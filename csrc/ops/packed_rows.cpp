// SPDX-License-Identifier: Apache-2.0
#include "ops/packed_rows.h"

#include <algorithm>

#include "runtime/num_threads.h"

namespace nibblas {
namespace {

// Rows swept over an expanded block: their running sums, 64 bytes per row and panel, stay in L2
// (512 x 4 panels: 128 KB), and expanding is paid once for that many.
constexpr int64_t kRowBlock = 512;

// Packed rows of one pass: bounds the memory of a call with very many rows.
constexpr int64_t kPassBytes = int64_t{64} << 20;

// Multiply-adds worth a thread: some 5 us of a fast GEMM, more of a GEMV; waking one costs as much.
constexpr int64_t kWorkPerThread = int64_t{1} << 20;

// The same for a thread beyond the CPUs. It gains nothing but a larger share of a busy machine, and
// must be woken each time, for none can spin then: with 4 threads 2 CPUs took 1.38 times as long as
// with 2 for a product of 0.1 ms.
constexpr int64_t kWorkPerExtraThread = 32 * kWorkPerThread;

// Tasks per thread: a thread that is late, or was taken away, costs at most a quarter of its share.
constexpr int64_t kTasksPerThread = 4;

// Multiply-adds of a task, unless its rows and one tile of panels are more already: a call is given
// up between tasks. 1 ms where dot products have instructions, 30 ms on the scalar target.
constexpr int64_t kMostWorkPerTask = int64_t{1} << 27;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Partition partition(const Tile& tile, const Weight& w, int64_t rows, int threads) {
  Partition p;
  rows = std::max<int64_t>(rows, 1);
  const int64_t work = rows * w.cols * std::max<int64_t>(w.depth, 1);
  const int64_t shares = std::clamp<int64_t>(work / kWorkPerThread, 1, threads);
  p.threads = static_cast<int>(
      std::min(shares, std::max<int64_t>(machine_cpus(), work / kWorkPerExtraThread)));
  p.rows_per_block = tile.depth == 0 ? rows : kRowBlock / tile.rows * tile.rows;
  p.row_blocks = ceil_div(rows, p.rows_per_block);
  const int64_t units = std::max<int64_t>(ceil_div(w.panels, tile.panels), 1);  // whole tiles
  const int64_t tasks = std::max(shares == 1 ? 1 : shares * kTasksPerThread,
                                 ceil_div(work, kMostWorkPerTask));
  const int64_t panel_blocks = std::clamp<int64_t>(ceil_div(tasks, p.row_blocks), 1, units);
  p.panels_per_block = ceil_div(units, panel_blocks) * tile.panels;
  p.panel_blocks = std::max<int64_t>(ceil_div(w.panels, p.panels_per_block), 1);
  p.rows_per_block = std::min(p.rows_per_block, rows);
  return p;
}

Block2D block(const Partition& p, const Weight& w, int64_t rows, int64_t task) {
  const int64_t row = task % p.row_blocks;
  const int64_t panel = task / p.row_blocks;
  return {panel * p.panels_per_block, std::min((panel + 1) * p.panels_per_block, w.panels),
          row * p.rows_per_block, std::min((row + 1) * p.rows_per_block, rows)};
}

int64_t rows_per_pass(const Tile& tile, const Weight& w) {
  const int64_t row_bytes = std::max<int64_t>(w.depth_padded * tile.x_row_words, 1);
  return std::max(kPassBytes / row_bytes, kRowBlock) / tile.rows * tile.rows;
}

PackedRows allocate_rows(const Tile& tile, const Weight& w, Compute compute, int64_t rows,
                         Scratch& scratch) {
  PackedRows x = {};
  x.rows = rows;
  x.tile_rows = tile.rows;
  x.row_words = w.depth_padded / 4 * tile.x_row_words;
  const bool integers = compute == Compute::int8;
  x.segment = w.group;
  if (integers && w.per_channel) x.segment = std::min(w.depth_padded, kSegment);
  if (integers && w.two_level) x.segment = kSuperBlock;
  // A start for each pair of groups of a super-block: groups of 256 have no second one.
  x.segment_starts =
      integers && w.two_level ? std::max<int64_t>(kSuperBlock / w.group / 2, 1) : 1;
  x.segments = x.segment ? ceil_div(w.depth_padded, x.segment) : 0;
  // Some kernels fill the last tile up with rows of zeros. Integer products have one start a row,
  // also where there is no depth.
  const int64_t room = ceil_div(rows, tile.rows) * tile.rows;
  const size_t parameters = static_cast<size_t>(room * std::max<int64_t>(x.segments, 1));
  x.words = scratch.get<int32_t>(static_cast<size_t>(room * x.row_words));
  x.scales = scratch.get<float>(parameters);
  x.starts = scratch.get<int32_t>(parameters * static_cast<size_t>(x.segment_starts));
  if (tile.rests) {
    x.rest_room = x.row_words / tile.x_row_words / kWordsPerRest;
    x.rests = scratch.get<Rest>(static_cast<size_t>(rows * x.rest_room));
    x.rest_counts = scratch.get<int32_t>(static_cast<size_t>(rows));
  }
  const bool sums = has_mins(w) && !(integers && w.two_level);
  x.sums = sums ? scratch.get<float>(parameters) : nullptr;
  return x;
}

void skip_rows(Matrix& m, int64_t rows) {
  if (m.row_offsets) {
    m.row_offsets += rows;
  } else {
    m.data += rows * m.row_stride;
  }
}

}  // namespace nibblas
