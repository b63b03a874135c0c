// SPDX-License-Identifier: Apache-2.0
// A panel of weights to codes and scales, group by group.
#pragma once

#include "kernels/quantize_codebook.h"
#include "kernels/quantize_integers.h"

namespace nibblas {
namespace {

inline size_t quantize_scratch_bytes(int64_t depth_padded) {
  return static_cast<size_t>(depth_padded) * (kPanel * sizeof(float) + kPanel);
}

// Scales, zero points and mins of 0, for a group of padding.
inline void clear_group(const QuantizeJob& job, int64_t at) {
  const auto clear = [at](void* plane, int64_t bytes) {
    if (plane) {
      memset(static_cast<char*>(plane) + at * kPanel * bytes, 0,
             static_cast<size_t>(kPanel * bytes));
    }
  };
  clear(job.scales, scale_bytes(job.scale_type));
  clear(job.mins, scale_bytes(job.min_type));
  clear(job.zero_points, 1);
}

template <class T, class Quantizer>
QuantizeResult quantize_panel(const QuantizeJob& job, int64_t panel, void* scratch) {
  float* values = static_cast<float*>(scratch);
  uint8_t* words = reinterpret_cast<uint8_t*>(values + job.depth_padded * kPanel);
  const int64_t n0 = panel * kPanel;
  if (!transpose_panel<T>(job, n0, values)) return QuantizeResult::not_finite;
  memset(words, 0, static_cast<size_t>(job.depth_padded) * kPanel);

  int32_t lanes[kPanel];
  for (int n = 0; n < kPanel; ++n) lanes[n] = n0 + n < job.cols ? -1 : 0;
  const auto valid = T::load_i32(lanes);
  const Quantizer quantizer(job);
  int32_t overflow = 0;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t k = g * job.group;
    const int64_t count = smaller(job.group, job.depth - k);
    const int64_t at = panel * job.groups + g;
    if (count <= 0) {
      clear_group(job, at);
      continue;
    }
    const auto coder = quantizer.choose(values + k * kPanel, count);
    overflow |= quantizer.overflows(coder);
    quantizer.encode(coder, values + k * kPanel, count, valid, words + k * kPanel);
    quantizer.store(coder, at);
  }
  for (int64_t chunk = 0; chunk < job.depth_padded / kChunk; ++chunk) {
    const uint8_t* rows = words + chunk * 16 * kRowBytes;
    store_chunk<T>(rows, job.bits, job.depth_padded, panel, chunk, false, job.planes);
  }
  return overflow ? QuantizeResult::overflow : QuantizeResult::done;
}

template <class T>
QuantizeResult quantize(const QuantizeJob& job, int64_t panel, void* scratch) {
  if (job.nearest) return quantize_panel<T, CodebookQuantizer<T>>(job, panel, scratch);
  switch (job.offset) {
    case Offset::zero_point:
      return quantize_panel<T, IntegerQuantizer<T, Offset::zero_point>>(job, panel, scratch);
    case Offset::min:
      return quantize_panel<T, IntegerQuantizer<T, Offset::min>>(job, panel, scratch);
    default:
      return quantize_panel<T, IntegerQuantizer<T, Offset::symmetric>>(job, panel, scratch);
  }
}

// The bits of the greatest magnitude in a panel; at least those of infinity if one is not finite.
template <class T>
int32_t greatest_bits(const QuantizeJob& job, int64_t panel) {
  const int64_t n0 = panel * kPanel;
  const int64_t outputs = smaller(kPanel, job.cols - n0);
  auto most = T::zero_i32();
  for (int64_t n = n0; n < n0 + outputs; ++n) {
    for (int64_t k = 0; k < job.depth; k += kPanel) {
      const int64_t count = smaller(kPanel, job.depth - k);
      most = T::max_i32(most, T::bits(T::abs(load_weights<T>(job, n, k, count))));
    }
  }
  return T::reduce_max_i32(most);
}

}  // namespace
}  // namespace nibblas
