// SPDX-License-Identifier: Apache-2.0
// From running sums to outputs: bias, activation, canonical NaN, cast and store.
#pragma once

#include "kernels/activation.h"
#include "kernels/values.h"

namespace nibblas {
namespace {

constexpr int kMostPanels = 4;  // of outputs that are stored at once

template <class T>
NIBBLAS_NOINLINE typename T::F32 apply_activation(Activation activation, typename T::F32 y) {
  switch (activation) {
    case Activation::relu: return relu<T>(y);
    case Activation::gelu: return gelu<T>(y);
    case Activation::gelu_tanh: return gelu_tanh<T>(y);
    case Activation::silu: return silu<T>(y);
    default: return y;
  }
}

// acc: [rows][panels][16], rows from row0 and panels from `panel` on. Row by row: the panels of a
// row lie side by side, rows often a page apart.
template <class T>
NIBBLAS_NOINLINE void store_outputs(const ProductJob& job, int64_t panel, int panels, int64_t row0,
                                    int64_t rows, const float* acc) {
  static_assert(T::kGemmPanels <= kMostPanels && T::gemv_panels(1) <= kMostPanels);
  const int64_t first = panel * kPanel;
  const int64_t cols = smaller(panels * kPanel, job.weight->cols - first);
  float bias[kMostPanels * kPanel] = {};
  if (job.bias) memcpy(bias, job.bias + first, static_cast<size_t>(cols) * sizeof(float));
  for (int64_t row = 0; row < rows; ++row, acc += panels * kPanel) {
    char* to = mutable_row(job.y, row0 + row) + first * job.y.col_stride;
    for (int64_t col = 0; col < cols; col += kPanel) {
      auto y = T::add(T::load(acc + col), T::zero_f32());
      if (job.bias) y = T::add(y, T::load(bias + col));
      if (job.activation != Activation::none) y = apply_activation<T>(job.activation, y);
      store_lanes<T>(to + col * job.y.col_stride, job.y.col_stride, smaller(kPanel, cols - col),
                     job.type, canonical_nan<T>(y));
    }
  }
}

template <class T>
void activate(const float* x, float* y, int64_t count, Activation activation) {
  for (int64_t i = 0; i < count; i += kPanel) {
    float lanes[kPanel] = {};
    const int64_t n = smaller(kPanel, count - i);
    memcpy(lanes, x + i, static_cast<size_t>(n) * sizeof(float));
    const auto v = canonical_nan<T>(apply_activation<T>(activation, T::load(lanes)));
    T::store(lanes, v);
    memcpy(y + i, lanes, static_cast<size_t>(n) * sizeof(float));
  }
}

}  // namespace
}  // namespace nibblas
