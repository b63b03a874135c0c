// SPDX-License-Identifier: Apache-2.0
// The conversion table of a simd type.
#pragma once

#include "kernels/dequantize.h"
#include "kernels/quantize_blocks.h"
#include "kernels/quantize_weights.h"
#include "kernels/unpack.h"
#include "targets/kernel_table.h"

namespace nibblas {
namespace {

template <class T>
constexpr ConversionTable make_conversions() {
  ConversionTable table{};
  table.quantize = quantize<T>;
  table.quantize_scratch = quantize_scratch_bytes;
  table.greatest_bits = greatest_bits<T>;
  table.pack = pack<T>;
  table.unpack = unpack<T>;
  table.dequantize = dequantize<T>;
  table.dequantize_blocks = dequantize_blocks<T>;
  table.unpack_blocks = unpack_blocks<T>;
  table.quantize_blocks = quantize_blocks<T>;
  return table;
}

}  // namespace
}  // namespace nibblas
