// SPDX-License-Identifier: Apache-2.0
// Blocks to floats, and blocks to codes and scales.
#pragma once

#include "kernels/super_block_bytes.h"
#include "kernels/values.h"

namespace nibblas {
namespace {

// f(GgufBlock<type>{})
template <class F>
inline auto for_block_type(BlockType type, const F& f) {
  switch (type) {
    case BlockType::q4_0: return f(GgufBlock<BlockType::q4_0>{});
    case BlockType::q4_1: return f(GgufBlock<BlockType::q4_1>{});
    case BlockType::q5_0: return f(GgufBlock<BlockType::q5_0>{});
    case BlockType::q5_1: return f(GgufBlock<BlockType::q5_1>{});
    case BlockType::q8_0: return f(GgufBlock<BlockType::q8_0>{});
    case BlockType::q2_k: return f(GgufBlock<BlockType::q2_k>{});
    case BlockType::q3_k: return f(GgufBlock<BlockType::q3_k>{});
    case BlockType::q4_k: return f(GgufBlock<BlockType::q4_k>{});
    case BlockType::q5_k: return f(GgufBlock<BlockType::q5_k>{});
    case BlockType::q6_k: return f(GgufBlock<BlockType::q6_k>{});
    case BlockType::iq4_nl: return f(GgufBlock<BlockType::iq4_nl>{});
    case BlockType::iq4_xs: return f(GgufBlock<BlockType::iq4_xs>{});
    case BlockType::mxfp4: return f(GgufBlock<BlockType::mxfp4>{});
    case BlockType::tq1_0: return f(GgufBlock<BlockType::tq1_0>{});
    default: return f(GgufBlock<BlockType::tq2_0>{});
  }
}

constexpr float kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
// Of e2m1, doubled; there is no -0.
constexpr float kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Scales and mins of 16 groups, as floats.
struct GroupScales {
  float s[16];
  float m[16];
};

// Of one block with up to 16 groups (kOneBlock), or of 16 blocks with one each.
template <class T, class B, bool kOneBlock>
inline void read_scales(const uint8_t* raw, int64_t blocks, GroupScales& out) {
  uint16_t d[16] = {}, m[16] = {};
  uint8_t sub[16] = {}, sub_m[16] = {};
  for (int i = 0; i < (kOneBlock ? 1 : 16) && i < blocks; ++i) {
    BlockScales scales = {};
    B::read(raw + i * B::kBytes, scales);
    d[i] = scales.d;
    m[i] = scales.m;
    if constexpr (kOneBlock) {
      for (int g = 0; g < 16; ++g) {
        d[g] = scales.d;
        m[g] = scales.m;
        sub[g] = scales.sub[g];
        sub_m[g] = scales.sub_m[g];
      }
    } else {
      sub[i] = scales.sub[0];
    }
  }
  auto scale = T::load_f16(d);
  auto min = T::load_f16(m);
  const auto sub_scale = T::load_u8(sub);
  if constexpr (B::kSub == SubScale::is_unsigned) {
    scale = T::mul(scale, T::to_f32(sub_scale));
    min = T::neg(T::mul(min, T::to_f32(T::load_u8(sub_m))));
  } else if constexpr (B::kSub == SubScale::is_signed) {
    scale = T::mul(scale, T::to_f32(T::template sar<24>(T::template shl<24>(sub_scale))));
  } else if constexpr (B::kSub == SubScale::e8m0) {
    // 2^(e - 128), for the doubled values: 2^-128 and 2^-127 are subnormal.
    const auto subnormal = T::select_i32(T::lt_i32(sub_scale, T::set1_i32(1)),
                                         T::set1_i32(0x00200000), T::set1_i32(0x00400000));
    const auto normal = T::template shl<23>(T::sub_i32(sub_scale, T::set1_i32(1)));
    scale = T::from_bits(T::select_i32(T::lt_i32(sub_scale, T::set1_i32(2)), subnormal, normal));
  }
  T::store(out.s, scale);
  T::store(out.m, min);
}

// The values of 16 codes before the scale.
template <class T, class B>
inline typename T::F32 code_values(typename T::I32 q) {
  if constexpr (B::kValues == BlockValues::iq4) {
    return T::lookup_f32(T::float_table(kIq4Values), q);
  } else if constexpr (B::kValues == BlockValues::e2m1) {
    return T::lookup_f32(T::float_table(kE2m1Values), q);
  } else if constexpr (B::kType == BlockType::q8_0) {
    return T::to_f32(T::template sar<24>(T::template shl<24>(q)));
  } else {
    return T::to_f32(T::sub_i32(q, T::set1_i32(B::kZero)));
  }
}

template <class T, class B>
inline void store_values(float* to, typename T::I32 codes, float scale, float min) {
  const auto value = code_values<T, B>(codes);
  const auto s = T::set1(scale);
  const auto scaled = B::kHasMins ? T::fma(value, s, T::set1(min)) : T::mul(value, s);
  T::store(to, canonical_nan<T>(scaled));
}

// The product of a scale and a code is exact: at most 11 bits of a float16, 7 of a sub-scale and 7
// of a code (q6_k: 11 + 7 + 5; iq4_xs: 11 + 5 + 7) are no more than 24. So an fma rounds just as
// the product and the sum one after the other do.
template <class T, class B>
void dequantize_blocks_of(const uint8_t* raw, int64_t blocks, float* out) {
  constexpr bool one_block = B::kElements == 256;
  constexpr int64_t step = one_block ? 1 : 16;
  for (int64_t b = 0; b < blocks; b += step) {
    GroupScales scales;
    read_scales<T, B, one_block>(raw + b * B::kBytes, blocks - b, scales);
    for (int64_t i = 0; i < step && b + i < blocks; ++i) {
      const uint8_t* from = raw + (b + i) * B::kBytes;
      float* to = out + (b + i) * B::kElements;
      if constexpr (one_block) {
        uint8_t codes[B::kElements];
        B::template read<T>(from, codes);
        for (int g = 0; g < B::kGroups; ++g) {
          for (int k = g * B::kDepth; k < (g + 1) * B::kDepth; k += 16) {
            store_values<T, B>(to + k, T::load_u8(codes + k), scales.s[g], scales.m[g]);
          }
        }
      } else {
        typename T::I32 codes[2];
        B::template read<T>(from, codes);
        store_values<T, B>(to, codes[0], scales.s[i], scales.m[i]);
        store_values<T, B>(to + 16, codes[1], scales.s[i], scales.m[i]);
      }
    }
  }
}

template <class T>
void dequantize_blocks(BlockType type, const uint8_t* raw, int64_t blocks, float* out) {
  for_block_type(type,
                 [&](auto block) { dequantize_blocks_of<T, decltype(block)>(raw, blocks, out); });
}

// `at`: the index of the first block in the arrays of `parts`.
template <class T>
void unpack_blocks(BlockType type, const uint8_t* raw, int64_t at, int64_t blocks,
                   const BlockParts& parts) {
  for_block_type(type, [&](auto block) {
    using B = decltype(block);
    for (int64_t b = at; b < at + blocks; ++b) {
      const uint8_t* p = raw + b * B::kBytes;
      uint8_t* codes = parts.codes + b * B::kElements;
      if constexpr (B::kElements == 256) {
        B::template read<T>(p, codes);
      } else {
        typename T::I32 lanes[2];
        B::template read<T>(p, lanes);
        for (int i = 0; i < 2; ++i) {  // as -128 .. 127
          T::store_i8(codes + 16 * i, T::template sar<24>(T::template shl<24>(lanes[i])));
        }
      }
      BlockScales scales = {};
      B::read(p, scales);
      const size_t groups = B::kGroups;
      if (parts.scales) memcpy(parts.scales + b * B::kGroups, scales.sub, groups);
      if (parts.mins) memcpy(parts.mins + b * B::kGroups, scales.sub_m, groups);
      if (parts.block_scales) parts.block_scales[b] = scales.d;
      if (parts.block_mins) parts.block_mins[b] = scales.m;
    }
  });
}

}  // namespace
}  // namespace nibblas
