// SPDX-License-Identifier: Apache-2.0
// What a packed weight is: sizes, planes and the meaning of each. Plain data that every room reads.
#pragma once

#include <cstdint>

namespace nibblas {

// Output features stored together. 16 outputs x 4 codes are 64 bytes: one zmm, two ymm, four NEON
// dot-product operands or one AMX tile row.
constexpr int kPanel = 16;

// A plane row: 16 outputs x 32 bits.
constexpr int kRowBytes = 64;

// Depth is summed in int32 over at most this many codes: 65,536 * 127 * 255 = 2,122,383,360 < 2^31.
constexpr int64_t kSegment = 65536;

// Codes under one super-scale of the two-level schemes.
constexpr int64_t kSuperBlock = 256;

constexpr int kMaxSlices = 3;

// Integer zero points of codes of at most this many bits are nibbles: a byte for 32 codes would be
// 10 % of a weight of 2 bits.
constexpr int kNibbleZeroBits = 3;

constexpr int kLayoutVersion = 1;

enum class ScaleType : uint8_t { float32, float16, bfloat16, e8m0, e4m3, uint8, int8 };

enum class CodebookType : uint8_t { none, float32, int8 };

// What a number of the whole matrix does to every scale.
enum class TensorFactor : uint8_t { none, multiplies, divides };

// One bit-slice of the codes: uint8 [panels, depth_padded * bits / 32, 16, 4]. Byte [p, j, c, i]
// holds, at bits bits*t .. bits*t + bits - 1, the slice of output 16p + c at
// k = (8/bits)*4*j + 4*t + i.
struct Slice {
  const uint8_t* data;
  int bits;
};

// A packed weight W (cols, depth): value = (code - zero) * scale, fma(code - zero, scale, min), or
// with a codebook values[code] * scale.
struct Weight {
  int64_t cols;          // N, output features
  int64_t depth;         // K, input features
  int64_t depth_padded;  // K rounded up: see padded_depth
  int64_t panels;        // ceil(N / 16)
  int64_t group;         // codes along K that share a scale; depth_padded when per channel
  int64_t groups;        // scales per output: depth_padded / group, 1 when per channel
  bool per_channel;
  int bits;    // of a code, 1 .. 8
  int slices;  // planes that hold a code, lowest bits first
  Slice slice[kMaxSlices];

  ScaleType scale_type;
  const void* scales;  // [panels, groups, 16]
  TensorFactor tensor_factor;
  float tensor_scale;

  int zero;  // zero point of the whole matrix, in operands (see top_operand); 0 with zero_points
  const uint8_t* zero_points;  // [panels, groups, 16] or null
  bool nibble_zeros;           // [panels, ceil(groups / 2), 16]: the even group in the low nibble
  ScaleType min_type;
  const void* mins;  // [panels, groups, 16] or null: the value added
  bool float_zeros;  // mins holds float zero points z instead: the min is -(z * scale)

  // Two-level schemes: scales and mins are 8-bit factors of these.
  bool two_level;
  bool nibble_mins;          // both factors in a byte of scales: the scale's in its low nibble
  int64_t supers;            // depth_padded / 256
  const void* super_scales;  // float16 [panels, supers, 16]
  const void* super_mins;    // the same, or null

  CodebookType codebook_type;
  float values[16];      // with a codebook, or 4-bit codes: what a code stands for
  uint8_t operands[16];  // with a codebook: its integers (float32: rint(127 value)) plus zero
  int top_operand;       // the greatest unsigned operand of integer products

  const int32_t* input_order;  // [depth]: packed position -> input feature, or null
};

namespace {

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Kp: K rounded up to whole groups and to whole 64-code runs. group 0 is per channel.
inline int64_t padded_depth(int64_t depth, int64_t group, bool two_level = false) {
  if (two_level) return round_up(depth, kSuperBlock);
  return round_up(depth, group > 64 ? group : 64);
}

// Codes of `bits` bits as unsigned operands, `zero` being that of the value 0.
inline void set_integer_codes(Weight& w, int bits, int zero) {
  w.bits = bits;
  w.zero = zero;
  w.codebook_type = CodebookType::none;
  w.top_operand = (1 << bits) - 1;
  for (int code = 0; code < 16; ++code) w.values[code] = static_cast<float>(code - zero);
}

// How a code of `bits` is cut into planes, lowest slice first: 6 = 4 + 2, 5 = 4 + 1, 3 = 2 + 1.
inline int slice_widths(int bits, int widths[kMaxSlices]) {
  int count = 0;
  for (int width = 8; width >= 1; width /= 2) {
    if (bits & width) widths[count++] = width;
  }
  return count;
}

// Bytes of a stored scale, min or float zero point.
inline int64_t scale_bytes(ScaleType type) {
  switch (type) {
    case ScaleType::float32: return 4;
    case ScaleType::float16:
    case ScaleType::bfloat16: return 2;
    default: return 1;
  }
}

// Rows of 16 bytes that zero points have per panel.
inline int64_t zero_rows(const Weight& w) { return w.nibble_zeros ? (w.groups + 1) / 2 : w.groups; }

inline bool has_mins(const Weight& w) { return w.mins || w.nibble_mins; }

// Rows of 64 bytes that a plane of `bits` has per panel.
inline int64_t plane_rows(int64_t depth_padded, int bits) { return depth_padded * bits / 32; }

}  // namespace
}  // namespace nibblas
