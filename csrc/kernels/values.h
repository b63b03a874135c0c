// SPDX-License-Identifier: Apache-2.0
// 16 values between memory and lanes: scales of every stored type, inputs and outputs.
#pragma once

#include <cstring>

#include "kernels/kernel_types.h"
#include "simd/unroll.h"

namespace nibblas {
namespace {

constexpr int32_t kCanonicalNan = 0x7fc00000;

template <class T>
inline typename T::F32 canonical_nan(typename T::F32 a) {
  return T::select(T::is_nan(a), T::from_bits(T::set1_i32(kCanonicalNan)), a);
}

constexpr int64_t float_bytes(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

template <class T>
inline typename T::F32 load_floats(const void* p, FloatType type) {
  switch (type) {
    case FloatType::float16: return T::load_f16(p);
    case FloatType::bfloat16: return T::from_bits(T::template shl<16>(T::load_u16(p)));
    default: return T::from_bits(T::load_i32(p));
  }
}

// Rounds to nearest even; NaN must already be canonical.
template <class T>
inline typename T::I32 to_bfloat16(typename T::F32 a) {
  const auto bits = T::bits(a);
  const auto odd = T::and_i32(T::template shr<16>(bits), T::set1_i32(1));
  return T::template shr<16>(T::add_i32(bits, T::add_i32(odd, T::set1_i32(0x7fff))));
}

template <class T>
inline void store_floats(void* p, FloatType type, typename T::F32 a) {
  switch (type) {
    case FloatType::float16: return T::store_f16(p, a);
    case FloatType::bfloat16: return T::store_u16(p, to_bfloat16<T>(a));
    default: return T::store_i32(p, T::bits(a));
  }
}

// Copies `count` elements of `bytes` bytes between a strided and a dense run.
inline void copy_strided(char* to, int64_t to_stride, const char* from, int64_t from_stride,
                         int64_t count, int64_t bytes) {
  switch (bytes) {
    case 1:
      for (int64_t i = 0; i < count; ++i) to[i * to_stride] = from[i * from_stride];
      return;
    case 2:
      for (int64_t i = 0; i < count; ++i) memcpy(to + i * to_stride, from + i * from_stride, 2);
      return;
    default:
      for (int64_t i = 0; i < count; ++i) memcpy(to + i * to_stride, from + i * from_stride, 4);
  }
}

// The first `count` lanes to elements `stride` bytes apart.
template <class T>
inline void store_lanes(char* p, int64_t stride, int64_t count, FloatType type,
                        typename T::F32 a) {
  if (count == kPanel && stride == float_bytes(type)) return store_floats<T>(p, type, a);
  char lanes[kPanel * 4];
  store_floats<T>(lanes, type, a);
  copy_strided(p, stride, lanes, float_bytes(type), count, float_bytes(type));
}

inline const char* matrix_row(const Matrix& m, int64_t row) {
  return m.data + (m.row_offsets ? m.row_offsets[row] : row * m.row_stride);
}
inline char* mutable_row(const Matrix& m, int64_t row) {
  return m.data + (m.row_offsets ? m.row_offsets[row] : row * m.row_stride);
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A row of x as `padded` floats, zeros after `depth`; x in place where it already is that.
template <class T>
inline const float* row_as_floats(const Matrix& x, FloatType type, int64_t row, int64_t depth,
                                  int64_t padded, const int32_t* order, float* buffer) {
  const char* from = matrix_row(x, row);
  const int64_t bytes = float_bytes(type);
  const bool dense = x.col_stride == bytes;
  if (dense && !order && type == FloatType::float32 && depth == padded &&
      reinterpret_cast<uintptr_t>(from) % alignof(float) == 0) {
    return reinterpret_cast<const float*>(from);
  }
  int64_t k = 0;
  if (dense && !order) {
    const auto convert = [&](auto fixed) {
      for (; k + kPanel <= depth; k += kPanel) {
        T::prefetch_l2(from + x.row_stride + k * bytes);
        T::store(buffer + k, load_floats<T>(from + k * bytes, static_cast<FloatType>(fixed.value)));
      }
    };
    switch (type) {  // outside the loop
      case FloatType::float16: convert(Index<static_cast<int>(FloatType::float16)>{}); break;
      case FloatType::bfloat16: convert(Index<static_cast<int>(FloatType::bfloat16)>{}); break;
      default: convert(Index<static_cast<int>(FloatType::float32)>{});
    }
  }
  for (; k < padded; k += kPanel) {
    const int64_t count = smaller(kPanel, depth - k);
    char lanes[kPanel * 4] = {};
    if (order) {
      for (int64_t i = 0; i < count; ++i) {
        memcpy(lanes + i * bytes, from + order[k + i] * x.col_stride, static_cast<size_t>(bytes));
      }
    } else if (count > 0) {
      copy_strided(lanes, bytes, from + k * x.col_stride, x.col_stride, count, bytes);
    }
    T::store(buffer + k, load_floats<T>(lanes, type));
  }
  return buffer;
}

}  // namespace
}  // namespace nibblas
