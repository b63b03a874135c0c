// SPDX-License-Identifier: Apache-2.0
// The kernel table of a simd type: all kernels, instantiated for it.
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
  table.tile = choose_tile<T>;
  table.pack_rows = pack_rows<T>;
  table.pack_integer_rows = pack_integer_rows<T>;
  table.pack_rows_scratch = pack_rows_scratch_bytes<8>;  // no tile has more rows
  table.product = product<T>;
  table.integer_product = integer_product<T>;
  table.product_scratch = product_scratch_bytes<T>;
  table.row_as_floats = row_as_floats<T>;
  table.quantize_row = quantize_row<T>;
  table.activate = activate<T>;
  table.peak = peak<T>;
  table.read = read<T>;
  return table;
}

}  // namespace
}  // namespace nibblas
