// SPDX-License-Identifier: Apache-2.0
// Packed weights to dense rows: decoded with a lane per output, then transposed.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// Rows of 16 values from k on, one per output.
template <class T>
void store_dense(const DequantizeJob& job, int64_t panel, int64_t outputs, int64_t k,
                 const typename T::I32* rows) {
  const Weight& w = *job.weight;
  const int64_t bytes = float_bytes(job.type);
  const int64_t count = smaller(kPanel, w.depth - k);
  for (int n = 0; n < outputs; ++n) {
    char* to = mutable_row(job.out, panel * kPanel + n);
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

template <class T, class Operands>
void dequantize_panel(const DequantizeJob& job, int64_t panel) {
  using Reader = CodeReader<T, Operands::kBits>;
  constexpr int run = Reader::kStep > kPanel ? Reader::kStep : kPanel;  // codes decoded at once
  const Weight& w = *job.weight;
  const Operands operands(w);
  Reader reader(w, panel, 0);
  const int64_t outputs = smaller(kPanel, w.cols - panel * kPanel);
  auto zeros = T::zero_f32();
  auto scale = zeros;
  auto min = zeros;
  for (int64_t k = 0; k < w.depth; k += run) {
    typename T::I32 rows[run];
    for (int first = 0; first < run; first += Reader::kStep, reader.next()) {
      const auto codes = reader.load(0);
      unroll<Reader::kStep>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        const auto quad = Reader::template quad<i.value / 4>(codes);
        rows[first + i.value] = T::bits(operands.template operand<i.value % 4>(quad));
      });
    }
    for (int half = 0; half < run && k + half < w.depth; half += kPanel) {
      if ((k + half) % w.group == 0) {
        const int64_t g = (k + half) / w.group;
        scale = group_scale<T>(w, panel, g);
        if (w.zero_points) {
          zeros = T::to_f32(group_zeros<T>(w, panel, g));
        }
        if (has_mins(w)) min = group_min<T>(w, panel, g, scale);
      }
      for (int i = 0; i < kPanel; ++i) {
        auto value = T::from_bits(rows[half + i]);
        if (w.zero_points) value = T::sub(value, zeros);
        value = has_mins(w) ? T::fma(value, scale, min) : T::mul(value, scale);
        rows[half + i] = T::bits(canonical_nan<T>(value));
      }
      T::transpose16(rows + half);
      store_dense<T>(job, panel, outputs, k + half, rows + half);
    }
  }
}

template <class T>
void dequantize(const DequantizeJob& job, int64_t panel) {
  with_float_operands<T>(*job.weight, [&](auto use) {
    dequantize_panel<T, typename decltype(use)::Operands>(job, panel);
  });
}

}  // namespace
}  // namespace nibblas
