// SPDX-License-Identifier: Apache-2.0
// Floats to blocks, sixteen groups at a time: a lane per group, so that every sum runs over k
// ascending on every target. Types with one level of scales are here; their rules are those of
// the `gguf` package. k_quants.h has the others.
#pragma once

#include "kernels/k_quants.h"

namespace nibblas {
namespace {

// Toward zero, of values from 0 to 255; 0 where there is infinity or NaN, as in NumPy.
template <class T>
inline typename T::I32 truncate_small(typename T::F32 a) {
  const auto fits = T::select(T::lt(T::abs(a), T::set1(256)), a, T::zero_f32());
  const auto nearest = T::to_i32(fits);
  const auto above = T::lt(fits, T::to_f32(nearest));
  return T::select_i32(above, T::sub_i32(nearest, T::set1_i32(1)), nearest);
}

// To the nearest integer, halves away from zero; 0 where |a| is 256 or more, or NaN.
template <class T>
inline typename T::I32 round_half_away(typename T::F32 a) {
  const auto size = T::abs(a);
  const auto fits = T::select(T::lt(size, T::set1(256)), size, T::zero_f32());
  const auto nearest = T::to_i32(fits);
  const auto half = T::eq(T::sub(fits, T::to_f32(nearest)), T::set1(0.5f));
  const auto rounded = T::select_i32(half, T::add_i32(nearest, T::set1_i32(1)), nearest);
  return T::select_i32(T::lt(a, T::zero_f32()), T::sub_i32(T::zero_i32(), rounded), rounded);
}

// The codes of 16 blocks in lanes, q[k] by k; their scales go to `scales`.
template <class T, class B>
struct BlockEncoder {
  using F32 = typename T::F32;
  using I32 = typename T::I32;
  static constexpr int kDepth = B::kDepth;

  // d = extreme / -top, codes trunc(x / d + top + 0.5) up to `last`.
  static void symmetric(const F32* x, I32* q, int top, int last, F32& d) {
    d = T::div(first_extreme<T>(x, kDepth), T::set1(static_cast<float>(-top)));
    const F32 inverse = inverse_or_zero<T>(d);
    for (int k = 0; k < kDepth; ++k) {
      const F32 scaled = T::mul(x[k], inverse);
      q[k] = T::min_i32(truncate_small<T>(T::add(scaled, T::set1(static_cast<float>(top) + 0.5f))),
                        T::set1_i32(last));
    }
  }

  // Its own inverse.
  static I32 flip(I32 bits) {
    return T::xor_i32(bits, T::template shr<1>(T::template sar<31>(bits)));
  }

  // d = (max - min) / last, codes trunc((x - min) / d + 0.5).
  static void from_min(const F32* x, I32* q, int last, F32& d, F32& min) {
    // On the bits, flipped so that they order as the values do, -0 before +0.
    auto low = flip(T::bits(x[0])), high = low;
    for (int k = 1; k < kDepth; ++k) {
      low = T::min_i32(low, flip(T::bits(x[k])));
      high = T::max_i32(high, flip(T::bits(x[k])));
    }
    min = T::from_bits(flip(low));
    const F32 max = T::from_bits(flip(high));
    d = T::div(T::sub(max, min), T::set1(static_cast<float>(last)));
    const F32 inverse = inverse_or_zero<T>(d);
    for (int k = 0; k < kDepth; ++k) {
      const F32 scaled = T::mul(T::sub(x[k], min), inverse);
      q[k] = T::min_i32(truncate_small<T>(T::add(scaled, T::set1(0.5f))), T::set1_i32(last));
    }
  }

  // e = floor(log2(max |x|)) - 2 + 127 with log2 in float32, in eight bits; the nearest e2m1.
  static void mxfp4(const F32* x, I32* q, uint8_t* e) {
    auto max = T::zero_i32();
    for (int k = 0; k < kDepth; ++k) max = T::max_i32(max, T::bits(T::abs(x[k])));
    int32_t largest[16], scales[16];
    T::store_i32(largest, max);
    for (int i = 0; i < 16; ++i) {
      e[i] = e8m0_of(largest[i]);
      scales[i] = e[i] < 2 ? 0x00200000 << e[i] : (e[i] - 1) << 23;
    }
    const F32 d = T::from_bits(T::load_i32(scales));
    constexpr float borders[] = {0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};  // of 0 1 2 3 4 6 8 12
    F32 border[7];
    for (int i = 0; i < 7; ++i) border[i] = T::mul(T::set1(borders[i]), d);
    for (int k = 0; k < kDepth; ++k) {
      const F32 size = T::abs(x[k]);
      auto code = T::zero_i32();
      for (int i = 0; i < 7; ++i) {
        code = T::select_i32(T::lt(border[i], size), T::set1_i32(i + 1), code);
      }
      // What rounds to zero is +0.
      const auto sign = T::and_i32(T::template shr<28>(T::bits(x[k])), T::set1_i32(8));
      q[k] = T::select_i32(T::lt(border[0], size), T::or_i32(code, sign), code);
    }
  }

  static uint8_t e8m0_of(int32_t bits) {
    if (bits == 0) return 0;
    int exponent = (bits >> 23) - 127;
    int fraction = bits & 0x7fffff;
    if (exponent == -127) {  // subnormal
      ++exponent;
      for (; fraction < 0x800000; fraction <<= 1) --exponent;
      fraction &= 0x7fffff;
    }
    // A number is 2^n (1 - j 2^-24), its log2 about n - 1.4427 j 2^-24. That rounds to n, the next
    // integer, where it is less than half the spacing of floats beside n: 2^(log - 24) with
    // 2^log <= beside < 2^(log + 1). So for j up to 0.6931 * 2^log, and 709 / 1024 is 0.6924.
    const int n = exponent + 1;
    const int beside = n > 0 ? n - 1 : -n;
    int spacing = 0;
    for (int i = 1; i <= beside; i *= 2) spacing = i;
    const int j = 0x800000 - fraction;
    if (j <= spacing * 709 / 1024) ++exponent;
    return static_cast<uint8_t>((exponent + 125) & 0xff);
  }

  static void encode(const F32* x, I32* q, BlockScales* scales) {
    F32 d = T::zero_f32(), m = d;
    uint8_t e[16] = {};
    if constexpr (B::kType == BlockType::q4_0) symmetric(x, q, 8, 15, d);
    if constexpr (B::kType == BlockType::q5_0) symmetric(x, q, 16, 31, d);
    if constexpr (B::kType == BlockType::q4_1) from_min(x, q, 15, d, m);
    if constexpr (B::kType == BlockType::q5_1) from_min(x, q, 31, d, m);
    if constexpr (B::kType == BlockType::mxfp4) mxfp4(x, q, e);
    uint16_t half_d[16], half_m[16];
    T::store_f16(half_d, d);
    T::store_f16(half_m, m);
    for (int i = 0; i < 16; ++i) {
      scales[i].d = half_d[i];
      scales[i].m = half_m[i];
      scales[i].sub[0] = e[i];
    }
  }
};

// Sixteen groups in a row, `depth` values each, as lanes: out[k] has value k of every group.
// Returns the bits of the largest magnitude.
template <class T, int depth>
inline int32_t load_groups(const float* x, typename T::F32* out) {
  auto largest = T::zero_i32();
  for (int k0 = 0; k0 < depth; k0 += 16) {
    typename T::I32 rows[16];
    for (int i = 0; i < 16; ++i) {
      rows[i] = T::load_i32(x + i * depth + k0);
      largest = T::max_i32(largest, T::and_i32(rows[i], T::set1_i32(0x7fffffff)));
    }
    T::transpose16(rows);
    for (int i = 0; i < 16; ++i) out[k0 + i] = T::from_bits(rows[i]);
  }
  return T::reduce_max_i32(largest);
}

// The other way: 16 vectors of lanes as bytes, `stride` apart from group to group.
template <class T>
inline void store_groups(const typename T::I32* q, uint8_t* to, int stride) {
  typename T::I32 rows[16];
  for (int k = 0; k < 16; ++k) {  // as -128 .. 127
    rows[k] = T::template sar<24>(T::template shl<24>(q[k]));
  }
  T::transpose16(rows);
  for (int i = 0; i < 16; ++i) T::store_i8(to + i * stride, rows[i]);
}

// The bytes of 16 blocks of 32 elements: their codes are what they end with.
template <class T, class B>
inline void write_small_blocks(const typename T::I32* q, BlockScales* scales, uint8_t* raw) {
  typename T::I32 bytes[16];
  nibbles_of_blocks<T>(q, bytes);
  store_groups<T>(bytes, raw + B::kBytes - 16, B::kBytes);
  int32_t words[16];
  if constexpr (B::kHasFifthBits) T::store_i32(words, fifth_bits_of_blocks<T>(q));
  for (int i = 0; i < 16; ++i) {
    if constexpr (B::kHasFifthBits) {
      const uint32_t word = static_cast<uint32_t>(words[i]);
      write_u16(scales[i].fifth_bits, static_cast<uint16_t>(word & 0xffff));
      write_u16(scales[i].fifth_bits + 2, static_cast<uint16_t>(word >> 16));
    }
    B::write(raw + i * B::kBytes, scales[i]);
  }
}

// As many blocks as have 16 groups.
template <class T, class B>
QuantizeResult quantize_batch(const float* x, uint8_t* raw) {
  constexpr int blocks = 16 / B::kGroups;
  typename T::F32 lanes[B::kDepth];
  const int32_t largest = load_groups<T, B::kDepth>(x, lanes);
  if (largest >= 0x7f800000) return QuantizeResult::not_finite;
  typename T::I32 q[B::kDepth];
  BlockScales scales[blocks] = {};
  if constexpr (is_k_quant(B::kType)) {
    if (largest > kTooLargeBits || !KQuant<T, B>::encode(lanes, q, scales)) {
      return QuantizeResult::overflow;
    }
  } else {
    BlockEncoder<T, B>::encode(lanes, q, scales);
  }
  if constexpr (B::kElements == 32) {
    write_small_blocks<T, B>(q, scales, raw);
  } else {
    uint8_t codes[16 * B::kDepth];
    for (int k = 0; k < B::kDepth; k += 16) store_groups<T>(q + k, codes + k, B::kDepth);
    for (int i = 0; i < blocks; ++i) {
      B::write(raw + i * B::kBytes, codes + i * B::kElements, scales[i]);
    }
  }
  return QuantizeResult::done;
}

// Where the scale is the largest magnitude over `top`, no sum is needed, and blocks can be taken
// one by one as they lie: codes x / d to the nearest, plus the zero.
template <class T, class B>
QuantizeResult quantize_rounded(const float* x, int64_t blocks, uint8_t* raw) {
  constexpr float top = B::kType == BlockType::q8_0 ? 127 : 1;
  for (; blocks > 0; --blocks, x += B::kElements, raw += B::kBytes) {
    auto max = T::zero_i32();
    for (int k = 0; k < B::kElements; k += 16) {
      max = T::max_i32(max, T::bits(T::abs(T::load(x + k))));
    }
    const int32_t largest = T::reduce_max_i32(max);
    if (largest >= 0x7f800000) return QuantizeResult::not_finite;
    const auto d = T::div(T::from_bits(T::set1_i32(largest)), T::set1(top));
    const auto inverse = inverse_or_zero<T>(d);
    uint8_t codes[B::kElements];
    for (int k = 0; k < B::kElements; k += 16) {
      const auto code = round_half_away<T>(T::mul(T::load(x + k), inverse));
      T::store_i8(codes + k, T::add_i32(code, T::set1_i32(B::kZero)));
    }
    uint16_t half[16];
    T::store_f16(half, d);
    BlockScales scales = {};
    scales.d = half[0];
    B::write(raw, codes, scales);
  }
  return QuantizeResult::done;
}

template <class T, class B>
QuantizeResult quantize_blocks_of(const float* x, int64_t blocks, uint8_t* raw) {
  constexpr int64_t step = 16 / B::kGroups;
  for (; blocks >= step; blocks -= step) {
    const QuantizeResult result = quantize_batch<T, B>(x, raw);
    if (result != QuantizeResult::done) return result;
    x += step * B::kElements;
    raw += step * B::kBytes;
  }
  if (blocks < 1) return QuantizeResult::done;
  // The last few, filled up with zeros.
  float last_x[16 * B::kDepth] = {};
  uint8_t last_raw[step * B::kBytes];
  memcpy(last_x, x, static_cast<size_t>(blocks * B::kElements) * sizeof(float));
  const QuantizeResult result = quantize_batch<T, B>(last_x, last_raw);
  memcpy(raw, last_raw, static_cast<size_t>(blocks * B::kBytes));
  return result;
}

// A block that is not finite, or a scale that float16 cannot hold, ends it.
template <class T>
QuantizeResult quantize_blocks(BlockType type, const float* x, int64_t blocks, uint8_t* raw) {
  return for_block_type(type, [&](auto block) {
    using B = decltype(block);
    constexpr BlockType of = B::kType;
    if constexpr (of == BlockType::q8_0 || of == BlockType::tq1_0 || of == BlockType::tq2_0) {
      return quantize_rounded<T, B>(x, blocks, raw);
    } else {
      return quantize_blocks_of<T, B>(x, blocks, raw);
    }
  });
}

}  // namespace
}  // namespace nibblas
