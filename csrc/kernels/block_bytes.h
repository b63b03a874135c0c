// SPDX-License-Identifier: Apache-2.0
// The bytes of each block type, both ways: codes and scales out of a block, and into one. This file
// has the types of 32 elements, two vectors of 16 lanes; super_block_bytes.h those of 256, as loops
// over bytes, which compilers vectorize.
#pragma once

#include <cstring>

#include "layout/blocks.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

// The scales of one block.
struct BlockScales {
  uint16_t d;       // float16 bits
  uint16_t m;       // float16 bits
  uint8_t sub[16];  // per group
  uint8_t sub_m[16];
  uint8_t fifth_bits[4];  // q5_0 and q5_1, to write
};

inline uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
inline void write_u16(uint8_t* p, uint16_t a) {
  p[0] = static_cast<uint8_t>(a & 0xff);
  p[1] = static_cast<uint8_t>(a >> 8);
}
inline uint8_t u8(int a) { return static_cast<uint8_t>(a); }

// n bytes: codes 0 .. n-1 in the low nibbles, n .. 2n-1 in the high ones.
template <int n>
inline void read_nibbles(const uint8_t* p, uint8_t* q) {
  for (int j = 0; j < n; ++j) {
    q[j] = u8(p[j] & 15);
    q[j + n] = u8(p[j] >> 4);
  }
}
template <int n>
inline void write_nibbles(uint8_t* p, const uint8_t* q) {
  for (int j = 0; j < n; ++j) p[j] = u8((q[j] & 15) | (q[j + n] & 15) << 4);
}

// 64 bytes of 2-bit fields: field t of byte 32h + j is element 128h + 32t + j; times 2^up.
template <int up>
inline void add_pairs(const uint8_t* p, uint8_t* q) {
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 4; ++t) {
      for (int j = 0; j < 32; ++j) {
        q[128 * h + 32 * t + j] = u8(q[128 * h + 32 * t + j] | (p[32 * h + j] >> 2 * t & 3) << up);
      }
    }
  }
}
template <int down>
inline void write_pairs(uint8_t* p, const uint8_t* q) {
  for (int h = 0; h < 2; ++h) {
    const uint8_t* from = q + 128 * h;
    for (int j = 0; j < 32; ++j) {
      p[32 * h + j] = u8((from[j] >> down & 3) | (from[j + 32] >> down & 3) << 2 |
                         (from[j + 64] >> down & 3) << 4 | (from[j + 96] >> down & 3) << 6);
    }
  }
}

// 32 bytes of single bits: bit t of byte j is element 32t + j; times 2^at.
template <int at>
inline void add_bits(const uint8_t* p, uint8_t* q) {
  for (int t = 0; t < 8; ++t) {
    for (int j = 0; j < 32; ++j) q[32 * t + j] = u8(q[32 * t + j] | (p[j] >> t & 1) << at);
  }
}
template <int at>
inline void write_bits(uint8_t* p, const uint8_t* q) {
  for (int j = 0; j < 32; ++j) p[j] = 0;
  for (int t = 0; t < 8; ++t) {
    for (int j = 0; j < 32; ++j) p[j] = u8(p[j] | (q[32 * t + j] >> at & 1) << t);
  }
}

// 16 bytes: lane j of q[0] in the low nibbles, of q[1] in the high ones.
template <class T>
inline void read_nibble_lanes(const uint8_t* p, typename T::I32* q) {
  const auto bytes = T::load_u8(p);
  q[0] = T::and_i32(bytes, T::set1_i32(15));
  q[1] = T::template shr<4>(bytes);
}
constexpr int32_t kLaneBits[16] = {1 << 0,  1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                   1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                   1 << 12, 1 << 13, 1 << 14, 1 << 15};

// 4 bytes: bit j of the word is bit 4 of element j.
template <class T>
inline void add_fifth_bits(const uint8_t* p, typename T::I32* q) {
  const auto lane_bits = T::load_i32(kLaneBits);
  for (int i = 0; i < 2; ++i) {
    const auto bits = T::and_i32(T::set1_i32(p[2 * i] | p[2 * i + 1] << 8), lane_bits);
    const auto set = T::lt_i32(T::zero_i32(), bits);
    q[i] = T::or_i32(q[i], T::select_i32(set, T::set1_i32(16), T::zero_i32()));
  }
}
// Of 16 blocks at once, a lane each: the bytes of their nibbles, and the words of their fifth bits.
template <class T>
inline void nibbles_of_blocks(const typename T::I32* q, typename T::I32* bytes) {
  for (int k = 0; k < 16; ++k) {
    bytes[k] = T::or_i32(T::and_i32(q[k], T::set1_i32(15)), T::template shl<4>(q[k + 16]));
  }
}
template <class T>
inline typename T::I32 fifth_bits_of_blocks(const typename T::I32* q) {
  auto words = T::zero_i32();
  for (int k = 31; k >= 0; --k) {
    words = T::or_i32(T::template shl<1>(words), T::template shr<4>(q[k]));
  }
  return words;
}

// 12 bytes: 8 scales and 8 mins of 6 bits. Bytes 0 .. 3 have the first four scales, 4 .. 7 the
// first four mins, 8 .. 11 the low nibbles of the last four (scales low); the upper two bits of
// those are the upper two bits of bytes 0 .. 7.
inline void read_six_bits(const uint8_t* p, uint8_t* scales, uint8_t* mins) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = u8(p[i] & 63);
    mins[i] = u8(p[i + 4] & 63);
    scales[i + 4] = u8((p[i + 8] & 15) | p[i] >> 6 << 4);
    mins[i + 4] = u8(p[i + 8] >> 4 | p[i + 4] >> 6 << 4);
  }
}
inline void write_six_bits(uint8_t* p, const uint8_t* scales, const uint8_t* mins) {
  for (int i = 0; i < 4; ++i) {
    p[i] = u8(scales[i] | scales[i + 4] >> 4 << 6);
    p[i + 4] = u8(mins[i] | mins[i + 4] >> 4 << 6);
    p[i + 8] = u8((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
  }
}

// How codes become values, before the scale: code - kZero, or an entry of a table.
enum class BlockValues { linear, iq4, e2m1 };
// What the bytes of BlockScales::sub are.
enum class SubScale { none, is_unsigned, is_signed, e8m0 };

template <BlockType kOf>
struct BlockBase {
  static constexpr BlockType kType = kOf;
  static constexpr int kElements = block_shape(kOf).elements;
  static constexpr int kBytes = block_shape(kOf).bytes;
  static constexpr int kGroups = block_shape(kOf).groups;
  static constexpr int kDepth = kElements / kGroups;  // of a group
  static constexpr bool kHasMins = block_shape(kOf).has_block_mins;
  static constexpr BlockValues kValues = BlockValues::linear;
  static constexpr SubScale kSub = SubScale::none;
  static constexpr int kZero = 0;
  static constexpr bool kHasFifthBits = kOf == BlockType::q5_0 || kOf == BlockType::q5_1;
};

template <BlockType type>
struct GgufBlock;

template <>
struct GgufBlock<BlockType::q4_0> : BlockBase<BlockType::q4_0> {
  static constexpr int kZero = 8;
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    read_nibble_lanes<T>(p + 2, q);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.d = read_u16(p); }
  static void write(uint8_t* p, const BlockScales& s) { write_u16(p, s.d); }
};

template <>
struct GgufBlock<BlockType::q4_1> : BlockBase<BlockType::q4_1> {
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    read_nibble_lanes<T>(p + 4, q);
  }
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p);
    s.m = read_u16(p + 2);
  }
  static void write(uint8_t* p, const BlockScales& s) {
    write_u16(p, s.d);
    write_u16(p + 2, s.m);
  }
};

template <>
struct GgufBlock<BlockType::q5_0> : BlockBase<BlockType::q5_0> {
  static constexpr int kZero = 16;
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    read_nibble_lanes<T>(p + 6, q);
    add_fifth_bits<T>(p + 2, q);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.d = read_u16(p); }
  static void write(uint8_t* p, const BlockScales& s) {
    write_u16(p, s.d);
    memcpy(p + 2, s.fifth_bits, 4);
  }
};

template <>
struct GgufBlock<BlockType::q5_1> : BlockBase<BlockType::q5_1> {
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    read_nibble_lanes<T>(p + 8, q);
    add_fifth_bits<T>(p + 4, q);
  }
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p);
    s.m = read_u16(p + 2);
  }
  static void write(uint8_t* p, const BlockScales& s) {
    write_u16(p, s.d);
    write_u16(p + 2, s.m);
    memcpy(p + 4, s.fifth_bits, 4);
  }
};

template <>
struct GgufBlock<BlockType::q8_0> : BlockBase<BlockType::q8_0> {
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    q[0] = T::load_u8(p + 2);
    q[1] = T::load_u8(p + 18);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.d = read_u16(p); }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    write_u16(p, s.d);
    memcpy(p + 2, q, 32);
  }
};

template <>
struct GgufBlock<BlockType::iq4_nl> : GgufBlock<BlockType::q4_0> {
  static constexpr BlockType kType = BlockType::iq4_nl;
  static constexpr BlockValues kValues = BlockValues::iq4;
  static constexpr int kZero = 0;
};

template <>
struct GgufBlock<BlockType::mxfp4> : BlockBase<BlockType::mxfp4> {
  static constexpr BlockValues kValues = BlockValues::e2m1;
  static constexpr SubScale kSub = SubScale::e8m0;
  template <class T>
  static void read(const uint8_t* p, typename T::I32* q) {
    read_nibble_lanes<T>(p + 1, q);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.sub[0] = p[0]; }
  static void write(uint8_t* p, const BlockScales& s) { p[0] = s.sub[0]; }
};

}  // namespace
}  // namespace nibblas
