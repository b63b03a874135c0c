// SPDX-License-Identifier: Apache-2.0
// The operations: they check shapes and cut the work into tasks for the thread pool. Types and
// names come checked; memory for outputs comes from the caller.
#pragma once

#include "layout/blocks.h"
#include "ops/array.h"

namespace nibblas {

// y = activation(x W^T + bias): x (..., K), bias (N,) or null, y (..., N).
void linear(const Array& x, const Weight& weight, const Array* bias, Compute compute,
            Activation activation, const Array& y, int threads);

// How linear would run: the tile, and how many threads get work.
struct Plan {
  Tile tile;
  int threads;
  int64_t tasks;
  const char* reason;  // for the number of threads
};
Plan plan_linear(const Weight& weight, Compute compute, int64_t rows, int threads);

// c = (a - a_zero)(b - b_zero) modulo 2^32: a (..., K) int8 or uint8, c (..., N) int32. Zero points
// have one element, or one per row of the last two dimensions of a / per column; null is 0.
struct ZeroPoints {
  std::vector<int32_t> values;  // 1 or as many as rows (a) or columns (b)
};
void matmul_integer(const Array& a, const Array& b, const ZeroPoints& a_zero,
                    const ZeroPoints& b_zero, const Array& c, int threads);
// b as a packed weight; `center` is the code that means 0.
void matmul_integer(const Array& a, const Weight& b, int center, const ZeroPoints& a_zero,
                    const ZeroPoints& b_zero, const Array& c, int threads);

// codes (..., K) int8 and scales (..., G) float32 of x; group 0 is the whole row.
void quantize_activations(const Array& x, int64_t group, const Array& codes, const Array& scales,
                          int threads);

// Fills the planes that `job` names; its members weight, nearest and tensor_scale are from here.
// `codebook` has 16 values, or is null. Returns the tensor_scale: 1 unless scales are e4m3.
float quantize_weight(const Array& weight, QuantizeJob job, const float* codebook, int threads);
// To fresh planes at multiples of 64 bytes; false if a code is out of range.
bool pack_codes(const Array& codes, PackJob job, int threads);
// To fresh codes in C order: the stored ones, plus `add` modulo 256.
void unpack_codes(const Weight& weight, const Array& codes, int add, int threads);
// is_fresh: `out` is new, and in C order.
void dequantize(const Weight& weight, const Array& out, bool is_fresh, int threads);
void take(const Weight& weight, const int64_t* indices, int64_t count, const Array& out,
          int threads);

// GGUF blocks, dense: to floats, to codes and scales, and from floats.
void dequantize_blocks(BlockType type, const uint8_t* raw, int64_t blocks, float* out,
                       int threads);
void unpack_blocks(BlockType type, const uint8_t* raw, int64_t blocks, const BlockParts& parts,
                   int threads);
void quantize_blocks(BlockType type, const float* x, int64_t blocks, uint8_t* raw, int threads);

void activate(const float* x, float* y, int64_t count, Activation activation);

// GOP/s of the active target's register-only dot products on this thread, over about `seconds`.
double peak_dot(double seconds);
// GB/s of the best of 1, 2, 4 and 8 streams over memory of `bytes`, on this thread.
double read_bandwidth(int64_t bytes);

// The threads that a call uses: `asked`, or the process's number when that is 0.
int thread_count(int asked);

}  // namespace nibblas
