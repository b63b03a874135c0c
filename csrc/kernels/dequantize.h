// SPDX-License-Identifier: Apache-2.0
// Packed weights to dense rows: decoded with a lane per output, then transposed.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

template <class T, int Bits>
void dequantize_panel(const DequantizeJob& job, int64_t panel) {
  constexpr int parts = 32 / Bits;  // codes along K in a plane row
  const Weight& w = *job.weight;
  const FloatSplit<T, Bits> split(w);
  const uint8_t* plane =
      w.slice[0].data + panel * plane_rows(w.depth_padded, Bits) * kRowBytes;
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, w.cols - n0);
  const int64_t bytes = float_bytes(job.type);
  auto zeros = T::zero_f32();
  auto scale = zeros;
  auto min = zeros;
  for (int64_t k = 0; k < w.depth; k += kPanel) {
    if (k % w.group == 0) {
      const int64_t at = panel * w.groups + k / w.group;
      scale = load_scales<T>(w.scales, w.scale_type, at);
      if (w.zero_points) zeros = T::to_f32(T::load_u8(w.zero_points + at * kPanel));
      if (w.mins) min = load_scales<T>(w.mins, w.min_type, at);
    }
    typename T::I32 rows[kPanel];
    for (int first = 0; first < kPanel; first += parts, plane += kRowBytes) {
      const auto raw = T::load_i32(plane);
      unroll<parts>([&](auto part) NIBBLAS_INLINE_LAMBDA {
        auto value = split.template split<part.value>(raw);
        if (w.zero_points) value = T::sub(value, zeros);
        value = w.mins ? T::fma(value, scale, min) : T::mul(value, scale);
        rows[first + part.value] = T::bits(canonical_nan<T>(value));
      });
    }
    T::transpose16(rows);
    const int64_t count = smaller(kPanel, w.depth - k);
    for (int n = 0; n < outputs; ++n) {
      char* to = mutable_row(job.out, n0 + n);
      const auto values = T::from_bits(rows[n]);
      if (!w.input_order) {
        store_lanes<T>(to + k * job.out.col_stride, job.out.col_stride, count, job.type, values);
        continue;
      }
      char lanes[kPanel * 4];
      store_floats<T>(lanes, job.type, values);
      for (int64_t i = 0; i < count; ++i) {
        memcpy(to + w.input_order[k + i] * job.out.col_stride, lanes + i * bytes,
               static_cast<size_t>(bytes));
      }
    }
  }
}

template <class T>
void dequantize(const DequantizeJob& job, int64_t panel) {
  if (job.weight->bits == 8) {
    dequantize_panel<T, 8>(job, panel);
  } else {
    dequantize_panel<T, 4>(job, panel);
  }
}

}  // namespace
}  // namespace nibblas
