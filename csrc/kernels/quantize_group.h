// SPDX-License-Identifier: Apache-2.0
// What the rules of weight quantization share. A group lies as floats [count][16]: a lane per
// output, so that every sum runs over k ascending.
#pragma once

#include "kernels/pack.h"
#include "kernels/scales.h"

namespace nibblas {
namespace {

template <class T>
inline typename T::F32 round_to_stored(typename T::F32 a, ScaleType type) {
  switch (type) {
    case ScaleType::float16: {
      uint16_t stored[kPanel];
      T::store_f16(stored, a);
      return T::load_f16(stored);
    }
    case ScaleType::bfloat16: return T::from_bits(T::template shl<16>(to_bfloat16<T>(a)));
    default: return a;
  }
}

template <class T>
inline void store_scales(void* plane, ScaleType type, int64_t index, typename T::F32 a) {
  char* p = static_cast<char*>(plane) + index * kPanel * scale_bytes(type);
  switch (type) {
    case ScaleType::float16: return T::store_f16(p, a);
    case ScaleType::bfloat16: return T::store_u16(p, to_bfloat16<T>(a));
    default: return T::store(reinterpret_cast<float*>(p), a);
  }
}

// 0 .. 255, stored through the signed byte of the same bits.
template <class T>
inline void store_bytes(void* plane, int64_t index, typename T::I32 a) {
  T::store_i8(static_cast<char*>(plane) + index * kPanel,
              T::template sar<24>(T::template shl<24>(a)));
}

template <class T>
inline typename T::F32 clamp(typename T::F32 a, typename T::F32 low, typename T::F32 high) {
  const auto raised = T::select(T::lt(a, low), low, a);
  return T::select(T::lt(high, raised), high, raised);
}

template <class T>
inline typename T::F32 infinity() {
  return T::from_bits(T::set1_i32(0x7f800000));
}
template <class T>
inline typename T::Mask is_finite(typename T::F32 a) {
  return T::lt(T::abs(a), infinity<T>());
}
template <class T>
inline int32_t any_infinite(typename T::F32 a) {
  return T::reduce_max_i32(T::select_i32(is_finite<T>(a), T::zero_i32(), T::set1_i32(1)));
}

template <class T>
inline typename T::Mask is_zero(typename T::F32 a) {
  return T::eq(a, T::zero_f32());
}
// Lanes whose stored scale is 0 divide by 1 instead; their codes are set apart afterwards.
template <class T>
inline typename T::F32 usable(typename T::F32 scale) {
  return T::select(is_zero<T>(scale), T::set1(1.0f), scale);
}

template <class T>
struct GroupRange {
  typename T::F32 extreme, amax, low, high;
};

template <class T>
inline GroupRange<T> group_range(const float* values, int64_t count) {
  const auto first = T::load(values);
  GroupRange<T> r = {first, T::abs(first), first, first};
  for (int64_t k = 1; k < count; ++k) {
    const auto w = T::load(values + k * kPanel);
    const auto larger = T::lt(r.amax, T::abs(w));
    r.extreme = T::select(larger, w, r.extreme);
    r.amax = T::select(larger, T::abs(w), r.amax);
    r.low = T::select(T::lt(w, r.low), w, r.low);
    r.high = T::select(T::lt(r.high, w), w, r.high);
  }
  return r;
}

// The squared error of a candidate; infinite where its scale is 0 or infinite. A coder has a scale,
// and residual(w): what is left of w.
template <class T, class Coder>
inline typename T::F32 squared_error(Coder coder, const float* values, int64_t count) {
  const auto zero = is_zero<T>(coder.scale);
  coder.scale = usable<T>(coder.scale);
  auto e = T::zero_f32();
  for (int64_t k = 0; k < count; ++k) {
    const auto r = coder.residual(T::load(values + k * kPanel));
    e = T::fma(r, r, e);
  }
  const auto finite = is_finite<T>(coder.scale);
  return T::select(zero, infinity<T>(), T::select(finite, e, infinity<T>()));
}

// Codes of one group as words of four, from code(w); `valid` has all bits set in lanes that are
// outputs.
template <class T, class Code>
inline void encode_words(const float* values, int64_t count, typename T::I32 valid,
                         uint8_t* words, const Code& code) {
  for (int64_t k = 0; k < count; k += 4) {
    auto word = T::zero_i32();
    unroll<4>([&](auto i) NIBBLAS_INLINE_LAMBDA {
      if (k + i.value >= count) return;
      const auto c = code(T::load(values + (k + i.value) * kPanel));
      word = T::or_i32(word, T::template shl<8 * i.value>(c));
    });
    T::store_i32(words + k / 4 * kRowBytes, T::and_i32(word, valid));
  }
}

// Up to 16 weights of output n, zeros after `count`.
template <class T>
inline typename T::F32 load_weights(const QuantizeJob& job, int64_t n, int64_t k, int64_t count) {
  const int64_t bytes = float_bytes(job.type);
  const char* row = matrix_row(job.weight, n) + k * job.weight.col_stride;
  if (count == kPanel && job.weight.col_stride == bytes) return load_floats<T>(row, job.type);
  char lanes[kPanel * 4] = {};
  copy_strided(lanes, bytes, row, job.weight.col_stride, count, bytes);
  return load_floats<T>(lanes, job.type);
}

// Weights of a panel as floats [depth_padded][16]. Returns false if one is not finite.
template <class T>
inline bool transpose_panel(const QuantizeJob& job, int64_t n0, float* values) {
  const int64_t outputs = smaller(kPanel, job.cols - n0);
  auto most = T::zero_i32();
  for (int64_t k = 0; k < job.depth; k += kPanel) {
    const int64_t count = smaller(kPanel, job.depth - k);
    typename T::I32 rows[kPanel];
    for (int n = 0; n < kPanel; ++n) {
      const auto w = n < outputs ? load_weights<T>(job, n0 + n, k, count) : T::zero_f32();
      most = T::max_i32(most, T::bits(T::abs(w)));
      rows[n] = T::bits(w);
    }
    T::transpose16(rows);
    for (int i = 0; i < kPanel; ++i) T::store_i32(values + (k + i) * kPanel, rows[i]);
  }
  return T::reduce_max_i32(most) < 0x7f800000;
}

}  // namespace
}  // namespace nibblas
