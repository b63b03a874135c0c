// SPDX-License-Identifier: Apache-2.0
// The float table of a simd type.
#pragma once

#include "kernels/limits.h"
#include "kernels/product.h"
#include "kernels/quantize.h"
#include "targets/kernel_table.h"

namespace nibblas {
namespace {

template <class T>
constexpr FloatTable make_floats() {
  FloatTable table{};
  table.products.tile = float_tile<T>;
  table.products.pack_rows = pack_float_rows<T>;
  table.products.pack_scratch = pack_rows_scratch_bytes<1>;
  table.products.product = float_product<T>;
  table.products.product_scratch = product_scratch_bytes<T>;
  table.row_as_floats = row_as_floats<T>;
  table.quantize_row = quantize_row<T>;
  table.activate = activate<T>;
  table.read = read<T>;
  return table;
}

}  // namespace
}  // namespace nibblas
