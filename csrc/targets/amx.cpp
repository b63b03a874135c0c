// SPDX-License-Identifier: Apache-2.0
// Integer products of many rows on tiles; fewer rows take avx512vnni's.
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

Tile tile(const Weight& w, int64_t rows) {
  return uses_tiles(rows) ? choose_tile_shape(rows) : kVectors.products.tile(w, rows);
}

void pack_rows(const RowsJob& job, int64_t row0, void* scratch) {
  if (!uses_tiles(job.packed.rows)) return kVectors.products.pack_rows(job, row0, scratch);
  pack_tile_rows<T>(job, row0, scratch);
}

void product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
             void* scratch) {
  if (!uses_tiles(job.x.rows)) {
    return kVectors.products.product(job, panel0, panel1, row0, row1, scratch);
  }
  tiled_product<T, Tiles>(job, panel0, panel1, row0, row1, scratch);
}

// Rows that take the vectors need less.
size_t product_scratch(int64_t rows) { return product_scratch_bytes<T>(rows + kTileHeight); }

void pack_integers(const IntegerRowsJob& job, int64_t row0, void* scratch) {
  if (!uses_tiles(job.packed.rows)) return kVectors.pack_integer_rows(job, row0, scratch);
  pack_integer_rows<T, TileOrder>(job, row0, scratch);
}

void multiply_integers(const IntegerProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                       int64_t row1, void* scratch) {
  if (!uses_tiles(job.x.rows)) {
    return kVectors.integer_product(job, panel0, panel1, row0, row1, scratch);
  }
  tiled_integer_product<T, Tiles>(job, panel0, panel1, row0, row1, scratch);
}

}  // namespace

extern constexpr KernelTable kAmxKernels = {
    "amx",
    {tile, pack_rows, pack_rows_scratch_bytes<kTileHeight>, product, product_scratch},
    pack_integers,
    multiply_integers,
    tiled_peak<Tiles>,
};

}  // namespace nibblas
