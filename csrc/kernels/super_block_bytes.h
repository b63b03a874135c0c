// SPDX-License-Identifier: Apache-2.0
// The bytes of the block types with 256 elements: K-quants, IQ4_XS and the ternary ones.
#pragma once

#include "kernels/block_bytes.h"

namespace nibblas {
namespace {

template <>
struct GgufBlock<BlockType::q2_k> : BlockBase<BlockType::q2_k> {
  static constexpr SubScale kSub = SubScale::is_unsigned;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    memset(q, 0, 256);
    add_pairs<0>(p + 16, q);
  }
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p + 80);
    s.m = read_u16(p + 82);
    for (int i = 0; i < 16; ++i) {
      s.sub[i] = u8(p[i] & 15);
      s.sub_m[i] = u8(p[i] >> 4);
    }
  }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    for (int i = 0; i < 16; ++i) p[i] = u8(s.sub[i] | s.sub_m[i] << 4);
    write_pairs<0>(p + 16, q);
    write_u16(p + 80, s.d);
    write_u16(p + 82, s.m);
  }
};

template <>
struct GgufBlock<BlockType::q3_k> : BlockBase<BlockType::q3_k> {
  static constexpr SubScale kSub = SubScale::is_signed;
  static constexpr int kZero = 4;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    memset(q, 0, 256);
    add_pairs<0>(p + 32, q);
    add_bits<2>(p, q);
  }
  // Scales have 6 bits, minus 32: 16 nibbles in 8 bytes, then the upper pairs of i, i + 4, i + 8
  // and i + 12 in byte i of 4.
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p + 108);
    const uint8_t* low = p + 96;
    const uint8_t* high = p + 104;
    for (int i = 0; i < 16; ++i) {
      const int nibble = i < 8 ? low[i] & 15 : low[i - 8] >> 4;
      s.sub[i] = u8((nibble | (high[i % 4] >> 2 * (i / 4) & 3) << 4) - 32);
    }
  }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    write_bits<2>(p, q);
    write_pairs<0>(p + 32, q);
    memset(p + 96, 0, 12);
    for (int i = 0; i < 16; ++i) {
      const int sub = (s.sub[i] + 32) & 63;
      p[96 + i % 8] = u8(p[96 + i % 8] | (sub & 15) << (i < 8 ? 0 : 4));
      p[104 + i % 4] = u8(p[104 + i % 4] | sub >> 4 << 2 * (i / 4));
    }
    write_u16(p + 108, s.d);
  }
};

template <>
struct GgufBlock<BlockType::q4_k> : BlockBase<BlockType::q4_k> {
  static constexpr SubScale kSub = SubScale::is_unsigned;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    for (int i = 0; i < 4; ++i) read_nibbles<32>(p + 16 + 32 * i, q + 64 * i);
  }
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p);
    s.m = read_u16(p + 2);
    read_six_bits(p + 4, s.sub, s.sub_m);
  }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    write_scales(p, s);
    for (int i = 0; i < 4; ++i) write_nibbles<32>(p + 16 + 32 * i, q + 64 * i);
  }
  static void write_scales(uint8_t* p, const BlockScales& s) {
    write_u16(p, s.d);
    write_u16(p + 2, s.m);
    write_six_bits(p + 4, s.sub, s.sub_m);
  }
};

template <>
struct GgufBlock<BlockType::q5_k> : BlockBase<BlockType::q5_k> {
  static constexpr SubScale kSub = SubScale::is_unsigned;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    for (int i = 0; i < 4; ++i) read_nibbles<32>(p + 48 + 32 * i, q + 64 * i);
    add_bits<4>(p + 16, q);
  }
  static void read(const uint8_t* p, BlockScales& s) { GgufBlock<BlockType::q4_k>::read(p, s); }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    GgufBlock<BlockType::q4_k>::write_scales(p, s);
    write_bits<4>(p + 16, q);
    for (int i = 0; i < 4; ++i) write_nibbles<32>(p + 48 + 32 * i, q + 64 * i);
  }
};

template <>
struct GgufBlock<BlockType::q6_k> : BlockBase<BlockType::q6_k> {
  static constexpr SubScale kSub = SubScale::is_signed;
  static constexpr int kZero = 32;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    for (int h = 0; h < 2; ++h) read_nibbles<64>(p + 64 * h, q + 128 * h);
    add_pairs<4>(p + 128, q);
  }
  static void read(const uint8_t* p, BlockScales& s) {
    memcpy(s.sub, p + 192, 16);
    s.d = read_u16(p + 208);
  }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    for (int h = 0; h < 2; ++h) write_nibbles<64>(p + 64 * h, q + 128 * h);
    write_pairs<4>(p + 128, q);
    memcpy(p + 192, s.sub, 16);
    write_u16(p + 208, s.d);
  }
};

template <>
struct GgufBlock<BlockType::iq4_xs> : BlockBase<BlockType::iq4_xs> {
  static constexpr BlockValues kValues = BlockValues::iq4;
  static constexpr SubScale kSub = SubScale::is_signed;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    for (int i = 0; i < 8; ++i) {
      typename T::I32 lanes[2];
      read_nibble_lanes<T>(p + 8 + 16 * i, lanes);
      T::store_i8(q + 32 * i, lanes[0]);
      T::store_i8(q + 32 * i + 16, lanes[1]);
    }
  }
  // 6 bits, minus 32: the upper pairs in a word, the nibbles in the four bytes after it.
  static void read(const uint8_t* p, BlockScales& s) {
    s.d = read_u16(p);
    const int high = read_u16(p + 2);
    for (int i = 0; i < 8; ++i) {
      s.sub[i] = u8(((p[4 + i / 2] >> 4 * (i % 2) & 15) | (high >> 2 * i & 3) << 4) - 32);
    }
  }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    int high = 0;
    for (int i = 0; i < 8; ++i) high |= ((s.sub[i] + 32) & 63) >> 4 << 2 * i;
    write_u16(p, s.d);
    write_u16(p + 2, static_cast<uint16_t>(high));
    for (int i = 0; i < 4; ++i) {
      p[4 + i] = u8((s.sub[2 * i] & 15) | (s.sub[2 * i + 1] & 15) << 4);
    }
    for (int i = 0; i < 8; ++i) write_nibbles<16>(p + 8 + 16 * i, q + 32 * i);
  }
};

template <>
struct GgufBlock<BlockType::tq2_0> : BlockBase<BlockType::tq2_0> {
  static constexpr int kZero = 1;
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    memset(q, 0, 256);
    add_pairs<0>(p, q);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.d = read_u16(p + 64); }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    write_pairs<0>(p, q);
    write_u16(p + 64, s.d);
  }
};

// Five digits to base 3 in a byte, read by multiplication: the byte is the fraction
// ceil(256 n / 243) / 256 of the number n, times 3^i its integer part's last digit is digit i, the
// most significant first. 32 bytes hold 160 elements, 16 hold 80, and 4 hold 16 in four digits:
// digit i of byte j is element i * bytes + j of the run.
template <>
struct GgufBlock<BlockType::tq1_0> : BlockBase<BlockType::tq1_0> {
  static constexpr int kZero = 1;
  template <int bytes, int digits>
  static void read_digits(const uint8_t* p, uint8_t* q) {
    int power = 1;
    for (int i = 0; i < digits; ++i, power *= 3) {
      for (int j = 0; j < bytes; ++j) q[i * bytes + j] = u8((p[j] * power & 255) * 3 >> 8);
    }
  }
  template <int bytes, int digits>
  static void write_digits(uint8_t* p, const uint8_t* q) {
    for (int j = 0; j < bytes; ++j) {
      int number = 0;
      for (int i = 0; i < 5; ++i) number = number * 3 + (i < digits ? q[i * bytes + j] : 0);
      p[j] = u8((number * 256 + 242) / 243);
    }
  }
  template <class T>
  static void read(const uint8_t* p, uint8_t* q) {
    read_digits<32, 5>(p, q);
    read_digits<16, 5>(p + 32, q + 160);
    read_digits<4, 4>(p + 48, q + 240);
  }
  static void read(const uint8_t* p, BlockScales& s) { s.d = read_u16(p + 52); }
  static void write(uint8_t* p, const uint8_t* q, const BlockScales& s) {
    write_digits<32, 5>(p, q);
    write_digits<16, 5>(p + 32, q + 160);
    write_digits<4, 4>(p + 48, q + 240);
    write_u16(p + 52, s.d);
  }
};

}  // namespace
}  // namespace nibblas
