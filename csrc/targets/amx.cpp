// SPDX-License-Identifier: Apache-2.0
// Integer products of many rows on tiles; everything else is avx512vnni's.
#include "simd/amx.h"

#include "kernels/tiled_product.h"
#include "targets/kernel_table.h"
#if NIBBLAS_EMULATE_TILES
#include "simd/emulated_tiles.h"
#endif

namespace nibblas {
namespace {

using T = AmxVectors;
#if NIBBLAS_EMULATE_TILES
using Tiles = EmulatedTiles;
#else
using Tiles = AmxTiles;
#endif
constexpr const KernelTable& kVectors = kAvx512VnniKernels;

Tile tile(const Weight& w, Compute compute, int64_t rows) {
  return uses_tiles(compute, rows) ? choose_tile_shape(rows) : kVectors.tile(w, compute, rows);
}

void pack_rows(const RowsJob& job, int64_t row0, void* scratch) {
  if (!uses_tiles(job.compute, job.packed.rows)) return kVectors.pack_rows(job, row0, scratch);
  pack_tile_rows<T>(job, row0, scratch);
}

void pack_integer_rows(const IntegerRowsJob& job, int64_t row0, void* scratch) {
  if (!uses_tiles(Compute::int8, job.packed.rows)) {
    return kVectors.pack_integer_rows(job, row0, scratch);
  }
  nibblas::pack_integer_rows<T, TileOrder>(job, row0, scratch);
}

void product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
             void* scratch) {
  if (!uses_tiles(job.compute, job.x.rows)) {
    return kVectors.product(job, panel0, panel1, row0, row1, scratch);
  }
  tiled_product<T, Tiles>(job, panel0, panel1, row0, row1, scratch);
}

void integer_product(const IntegerProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                     int64_t row1, void* scratch) {
  if (!uses_tiles(Compute::int8, job.x.rows)) {
    return kVectors.integer_product(job, panel0, panel1, row0, row1, scratch);
  }
  tiled_integer_product<T, Tiles>(job, panel0, panel1, row0, row1, scratch);
}

// For rows that take the vectors, too: they need less.
size_t product_scratch(int64_t rows) { return product_scratch_bytes<T>(rows + kTileRows); }

const float* row_as_floats(const Matrix& x, FloatType type, int64_t row, int64_t depth,
                           int64_t padded, const int32_t* order, float* buffer) {
  return kVectors.row_as_floats(x, type, row, depth, padded, order, buffer);
}

void quantize_row(const float* x, int64_t depth, int64_t group, int8_t* codes, float* scales) {
  kVectors.quantize_row(x, depth, group, codes, scales);
}

void activate(const float* x, float* y, int64_t count, Activation activation) {
  kVectors.activate(x, y, count, activation);
}

int64_t read(const void* data, size_t bytes, int streams) {
  return kVectors.read(data, bytes, streams);
}

}  // namespace

extern constexpr KernelTable kAmxKernels = {
    "amx", tile, pack_rows, pack_integer_rows, pack_rows_scratch_bytes<kTileRows>, product,
    integer_product, product_scratch, row_as_floats, quantize_row, activate, tiled_peak<Tiles>,
    read};

}  // namespace nibblas
