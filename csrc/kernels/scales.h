// SPDX-License-Identifier: Apache-2.0
// Scales and mins of every stored type as float32, 16 outputs of a group at a time.
#pragma once

#include "kernels/values.h"

namespace nibblas {
namespace {

// 2^(e - 128), which goes with codebooks of doubled values; 255 is NaN. Below e = 2 the result is
// subnormal: 2^-127 is the float 0x00400000.
template <class T>
inline typename T::F32 from_e8m0(typename T::I32 e) {
  const auto normal = T::template shl<23>(T::sub_i32(e, T::set1_i32(1)));
  const auto tiny = T::template shl<21>(T::add_i32(e, T::set1_i32(1)));
  const auto bits = T::select_i32(T::lt_i32(e, T::set1_i32(2)), tiny, normal);
  const auto nan = T::lt_i32(T::set1_i32(254), e);
  return T::from_bits(T::select_i32(nan, T::set1_i32(kCanonicalNan), bits));
}

// Half the value of an e4m3 number, for the same codebooks. Moved to where a float32 has its
// exponent and fraction it is short by the biases, 127 - 7, which a product makes up for exactly,
// subnormals included.
template <class T>
inline typename T::F32 from_e4m3(typename T::I32 byte) {
  const auto magnitude = T::and_i32(byte, T::set1_i32(127));
  const auto moved = T::from_bits(T::template shl<20>(magnitude));
  const auto scaled = T::bits(T::mul(moved, T::set1(6.646139978924579e35f)));  // 2^119
  const auto sign = T::template shl<24>(T::and_i32(byte, T::set1_i32(128)));
  const auto nan = T::lt_i32(T::set1_i32(126), magnitude);
  return T::from_bits(T::select_i32(nan, T::set1_i32(kCanonicalNan), T::or_i32(scaled, sign)));
}

// The `index`-th run of 16 scales or mins of a plane.
template <class T>
inline typename T::F32 load_scales(const void* plane, ScaleType type, int64_t index) {
  const char* p = static_cast<const char*>(plane) + index * kPanel * scale_bytes(type);
  switch (type) {
    case ScaleType::float16: return T::load_f16(p);
    case ScaleType::bfloat16: return T::from_bits(T::template shl<16>(T::load_u16(p)));
    case ScaleType::e8m0: return from_e8m0<T>(T::load_u8(p));
    case ScaleType::e4m3: return from_e4m3<T>(T::load_u8(p));
    default: return T::from_bits(T::load_i32(p));
  }
}

// Two-level: the integers that multiply the super-scale and the super-min, of one group.
template <class T>
inline typename T::I32 sub_scale(const Weight& w, int64_t index) {
  const uint8_t* p = static_cast<const uint8_t*>(w.scales) + index * kPanel;
  const auto bytes = T::load_u8(p);
  if (w.nibble_mins) return T::and_i32(bytes, T::set1_i32(15));
  if (w.scale_type == ScaleType::uint8) return bytes;
  return T::template sar<24>(T::template shl<24>(bytes));
}
template <class T>
inline typename T::I32 sub_min(const Weight& w, int64_t index) {
  if (w.nibble_mins) {
    return T::template shr<4>(T::load_u8(static_cast<const uint8_t*>(w.scales) + index * kPanel));
  }
  return T::load_u8(static_cast<const uint8_t*>(w.mins) + index * kPanel);
}
template <class T>
inline typename T::F32 super_scale(const Weight& w, int64_t panel, int64_t super) {
  return load_scales<T>(w.super_scales, ScaleType::float16, panel * w.supers + super);
}
template <class T>
inline typename T::F32 super_min(const Weight& w, int64_t panel, int64_t super) {
  return load_scales<T>(w.super_mins, ScaleType::float16, panel * w.supers + super);
}

// Integer zero points of group g.
template <class T>
inline typename T::I32 group_zeros(const Weight& w, int64_t panel, int64_t g) {
  const uint8_t* zeros = w.zero_points + panel * zero_rows(w) * kPanel;
  if (!w.nibble_zeros) return T::load_u8(zeros + g * kPanel);
  const auto both = T::load_u8(zeros + g / 2 * kPanel);
  return g % 2 ? T::template shr<4>(both) : T::and_i32(both, T::set1_i32(15));
}

// What multiplies the codes of group g. (Two-level: 11 and 8 bits, so the product is exact.)
template <class T>
inline typename T::F32 group_scale(const Weight& w, int64_t panel, int64_t g) {
  const int64_t index = panel * w.groups + g;
  if (w.two_level) {
    const auto super = super_scale<T>(w, panel, g * w.group / kSuperBlock);
    return T::mul(super, T::to_f32(sub_scale<T>(w, index)));
  }
  const auto scale = load_scales<T>(w.scales, w.scale_type, index);
  if (w.tensor_factor == TensorFactor::multiplies) return T::mul(scale, T::set1(w.tensor_scale));
  if (w.tensor_factor == TensorFactor::divides) return T::div(scale, T::set1(w.tensor_scale));
  return scale;
}

// What is added; `scale` is that of the group.
template <class T>
inline typename T::F32 group_min(const Weight& w, int64_t panel, int64_t g,
                                 typename T::F32 scale) {
  const int64_t index = panel * w.groups + g;
  if (w.two_level) {
    const auto super = super_min<T>(w, panel, g * w.group / kSuperBlock);
    return T::mul(super, T::to_f32(sub_min<T>(w, index)));
  }
  const auto value = load_scales<T>(w.mins, w.min_type, index);
  return w.float_zeros ? T::neg(T::mul(value, scale)) : value;
}

}  // namespace
}  // namespace nibblas
