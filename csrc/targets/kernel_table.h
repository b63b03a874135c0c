// SPDX-License-Identifier: Apache-2.0
// What a target exports: tables of functions, each from a file of its own, so that targets whose
// vectors are the same and whose integer dot products differ share all that has none. Each function
// does one unit of work on the calling thread, with scratch memory that the caller owns.
#pragma once

#include "kernels/kernel_types.h"
#include "layout/blocks.h"

namespace nibblas {

// The products of one compute mode.
struct ProductTable {
  Tile (*tile)(const Weight& weight, int64_t rows);

  // Packs the tile of rows that begins at row0; scratch: pack_scratch bytes.
  void (*pack_rows)(const RowsJob& job, int64_t row0, void* scratch);
  size_t (*pack_scratch)(const Weight& weight);

  // Outputs of panels [panel0, panel1) for rows [row0, row1), row0 a multiple of the tile's rows.
  void (*product)(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                  int64_t row1, void* scratch);
  size_t (*product_scratch)(int64_t rows);
};

// What has dot products of integers.
struct KernelTable {
  const char* name;
  ProductTable products;  // compute="int8"

  // Of matmul_integer, with the tiles and scratch memory of `products`.
  void (*pack_integer_rows)(const IntegerRowsJob& job, int64_t row0, void* scratch);
  void (*integer_product)(const IntegerProductJob& job, int64_t panel0, int64_t panel1,
                          int64_t row0, int64_t row1, void* scratch);

  // Runs register-only dot products; returns how many multiply-adds that were.
  double (*peak)(int64_t iterations);
};

// What has floats alone.
struct FloatTable {
  ProductTable products;  // compute="float32"

  // A row as dense floats, zeros after `depth`: in place where it is that already, else in buffer.
  const float* (*row_as_floats)(const Matrix& x, FloatType type, int64_t row, int64_t depth,
                                int64_t padded, const int32_t* order, float* buffer);
  void (*quantize_row)(const Matrix& x, FloatType type, int64_t row, int64_t depth, int64_t segment,
                       void* scratch, int8_t* codes, float* scales);
  void (*activate)(const float* x, float* y, int64_t count, Activation activation);

  // Sums `bytes` read in `streams` streams; returns a value that depends on them all.
  int64_t (*read)(const void* data, size_t bytes, int streams);
};

// Between dense matrices, plain codes and planes.
struct ConversionTable {
  // One panel of 16 outputs each.
  QuantizeResult (*quantize)(const QuantizeJob& job, int64_t panel, void* scratch);
  size_t (*quantize_scratch)(int64_t depth_padded);
  // The bits of a panel's greatest magnitude; at least those of infinity if one is not finite.
  int32_t (*greatest_bits)(const QuantizeJob& job, int64_t panel);
  // False if a code is out of range.
  bool (*pack)(const PackJob& job, int64_t panel);
  void (*unpack)(const UnpackJob& job, int64_t panel);
  void (*dequantize)(const DequantizeJob& job, int64_t panel);

  // Runs of GGUF blocks. unpack: blocks [at, at + blocks) of raw, to the same of each part.
  void (*dequantize_blocks)(BlockType type, const uint8_t* raw, int64_t blocks, float* out);
  void (*unpack_blocks)(BlockType type, const uint8_t* raw, int64_t at, int64_t blocks,
                        const BlockParts& parts);
  QuantizeResult (*quantize_blocks)(BlockType type, const float* x, int64_t blocks, uint8_t* raw);
};

extern const KernelTable kScalarKernels;
extern const FloatTable kScalarFloats;
extern const ConversionTable kScalarConversions;
#if NIBBLAS_X86
extern const KernelTable kAvx2Kernels;
extern const FloatTable kAvx2Floats;
extern const ConversionTable kAvx2Conversions;
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvx512Kernels;
extern const FloatTable kAvx512Floats;
extern const ConversionTable kAvx512Conversions;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAmxKernels;
#endif
#if NIBBLAS_ARM
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotprodKernels;
extern const KernelTable kNeonI8mmKernels;
extern const FloatTable kNeonFloats;
extern const ConversionTable kNeonConversions;
#endif

}  // namespace nibblas
