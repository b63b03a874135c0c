// SPDX-License-Identifier: Apache-2.0
// The jobs that ops/ hands to kernels: raw pointers and sizes, checked before they get here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/weight.h"

namespace nibblas {

enum class FloatType : uint8_t { float32, float16, bfloat16 };
enum class Compute : uint8_t { int8, float32 };
enum class Activation : uint8_t { none, relu, gelu, gelu_tanh, silu };
enum class Offset : uint8_t { symmetric, zero_point, min };
enum class QuantizeResult : int { done, not_finite, overflow };

// A matrix in memory. Rows lie row_stride bytes apart, or where row_offsets says.
struct Matrix {
  char* data;
  int64_t row_stride;          // bytes
  int64_t col_stride;          // bytes
  const int64_t* row_offsets;  // bytes from data, or null
};

// What is multiplied apart of a word of four codes of a row of x: see rests.h.
struct Rest {
  int32_t word;
  int32_t codes;  // four int8
};

// At most one word in so many has a rest. (A rest takes as long as two words; with one at every
// eighth word, a product takes about as long as by widening.)
constexpr int64_t kWordsPerRest = 8;

// The rows of x as the tiles read them. A tile is `tile_rows` rows (the last one has fewer); for a
// tile of m rows each array is [depth or segment][m], so that one step reads m adjacent words.
struct PackedRows {
  int64_t rows;
  int64_t row_words;  // words a row takes in `words`
  int64_t segments;   // runs of depth with one scale
  int64_t segment;    // codes in a segment (the last of a row may be shorter)
  int tile_rows;
  int32_t* words;   // int8 x 4, int16 x 2 or one float32 each
  float* scales;    // int8 compute: a
  int64_t segment_starts;  // starts of a segment: 1, or as many as a super-block has pairs
  int32_t* starts;  // int8 compute: -zero * sum of codes; -sum where the zero point varies;
                    // two-level: see pair_sums
  float* sums;      // what multiplies a min: a * float(sum of codes), or the sum of x
  // Of rows whose tiles may be packed for pairs, without their rests; null in other products.
  Rest* rests;           // [row][rest_room]
  int64_t rest_room;     // of a row
  int32_t* rest_counts;  // how many a row has; -1 where its tile is packed for widening
};

// Sizes of the tile that a product of `rows` rows uses.
struct Tile {
  int rows;         // rows per tile: how x is packed
  int panels;       // panels per tile
  int64_t depth;    // codes swept at once; 0 when multiplied straight from the planes
  int x_row_words;  // words per 4 codes of a packed row: 1, 2 (int16, or halves) or 4 (float32)
  bool rests;       // whether tiles may be packed for pairs
  const char* kernel;
};

// Quantizes and packs rows of x.
struct RowsJob {
  const Weight* weight;
  Matrix x;
  FloatType type;
  PackedRows packed;
};

// Packs rows of integers for matmul_integer.
struct IntegerRowsJob {
  const Weight* weight;
  Matrix a;
  bool is_unsigned;
  bool zeros_vary;  // among outputs: `starts` get -sum
  int zero;  // else subtracted through `starts`: the weight's zero point in its unsigned codes
  PackedRows packed;
};

// Where the codes of a weight are likely to be.
enum class CodesIn { memory, l3, l2 };

// y = activation(x W^T + bias)
struct ProductJob {
  const Weight* weight;
  CodesIn codes_in;
  PackedRows x;
  Matrix y;
  FloatType type;
  const float* bias;  // [cols] or null
  Activation activation;
};

// c = (a - a_zero) (b - b_zero)^T modulo 2^32
struct IntegerProductJob {
  const Weight* weight;
  CodesIn codes_in;
  PackedRows x;            // of a, as signed codes
  const PackedRows* ones;  // one row of ones, or null when every a_zero is 0
  const int32_t* a_zero;   // [rows] against the signed codes
  const uint8_t* b_zero;   // [panels, 16] in the unsigned codes, or null: in `starts`
  Matrix y;                // int32
};

constexpr int kCodebook = 16;  // entries of a codebook

// The distinct entries of a codebook in ascending order, the greatest repeated to make 16.
struct Nearest {
  float values[kCodebook];
  float codes[kCodebook];
  float above[kCodebook];  // x > above[i]: entry i + 1 is nearer than i; infinite at repeats
  bool is_lopsided;        // the ends differ in magnitude
};

struct QuantizeJob {
  Matrix weight;
  FloatType type;
  int64_t cols, depth, depth_padded, group, groups;
  int bits;
  int top_code;             // the greatest code of integers; 2 is ternary
  const Nearest* nearest;   // codebook, or null for integers
  Offset offset;            // of integers
  const float* candidates;  // scales of the least-squares search: see nibblas/_candidates.py
  int candidate_count;      // (with mins: pairs); a codebook has at least one, the plain rule's
  float tensor_scale;       // multiplies e4m3 scales
  ScaleType scale_type;
  ScaleType min_type;
  uint8_t* planes[kMaxSlices];
  void* scales;
  uint8_t* zero_points;
  void* mins;
};

struct PackJob {
  Matrix codes;  // bytes (cols, depth)
  int add;       // to each, modulo 256, makes it the stored code
  int top;       // the greatest stored code; above 127 nothing is checked
  const int32_t* input_order;  // as in Weight
  int64_t cols, depth, depth_padded;
  int bits;
  bool past_caches;  // the planes, which then begin at multiples of 64
  uint8_t* planes[kMaxSlices];
};

struct UnpackJob {
  const Weight* weight;
  Matrix codes;      // bytes (cols, depth)
  int add;           // to each stored code, modulo 256
  bool past_caches;  // its rows, where they are dense
};

struct DequantizeJob {
  const Weight* weight;
  Matrix out;  // (cols, depth)
  FloatType type;
  bool past_caches;  // its rows, where they are dense
};

}  // namespace nibblas
