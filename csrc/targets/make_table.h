// SPDX-License-Identifier: Apache-2.0
// The kernel table of a simd type.
#pragma once

#include "kernels/integer.h"
#include "kernels/limits.h"
#include "kernels/product.h"
#include "kernels/quantize.h"
#include "targets/kernel_table.h"

namespace nibblas {
namespace {

template <class T>
constexpr KernelTable make_table() {
  KernelTable table{};
  table.name = T::kName;
  table.products.tile = int8_tile<T>;
  table.products.pack_rows = pack_quantized_rows<T>;
  table.products.pack_scratch = pack_rows_scratch_bytes<kMostTileRows>;
  table.products.product = int8_product<T>;
  table.products.product_scratch = product_scratch_bytes<T>;
  table.pack_integer_rows = pack_integer_rows<T>;
  table.integer_product = integer_product<T>;
  table.peak = peak<T>;
  return table;
}

}  // namespace
}  // namespace nibblas
