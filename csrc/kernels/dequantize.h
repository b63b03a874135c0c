// SPDX-License-Identifier: Apache-2.0
// Packed weights to dense rows: a run of codes of 16 outputs as bytes, then row by row with a lane
// per input. (Transposing floats instead would shuffle four times as much.)
#pragma once

#include "kernels/scales.h"
#include "kernels/unpack.h"

namespace nibblas {
namespace {

// With a code in its low bits this is the float 2^23 + code. Subtracting 2^23 + zero gives
// code - zero exactly: a conversion less.
constexpr int32_t kFloatBits = 0x4b000000;
constexpr float kFloatBase = 8388608.0f;

// What the values of a run are made with, [group][16]; zeros are 2^23 + zero, or 0 of a codebook.
struct RunFactors {
  float zeros[kRun], scales[kRun], mins[kRun];
  bool finite;  // scales and mins: else there may be NaN
  int shift;    // of k within the run, to its group
};

// Those that are the same everywhere.
template <class T>
inline void fill_factors(const Weight& w, RunFactors& f) {
  const bool lookup = w.codebook_type != CodebookType::none;
  const auto zero = T::set1(lookup ? 0.0f : kFloatBase + static_cast<float>(w.zero));
  const auto min = T::set1(-0.0f);  // adding it changes nothing, not even the sign of a zero
  for (int at = 0; at < kRun; at += kPanel) {
    T::store(f.zeros + at, zero);
    T::store(f.mins + at, min);
  }
  // Groups are powers of two, or all of a row.
  for (f.shift = 4; (int64_t{1} << f.shift) < smaller(w.group, kRun);) ++f.shift;
}

template <class T>
inline void load_factors(const Weight& w, int64_t panel, int64_t k, int64_t count, RunFactors& f) {
  auto most = T::zero_i32();
  const auto keep = [&](float* to, typename T::F32 factor) NIBBLAS_INLINE_LAMBDA {
    T::store(to, factor);
    most = T::max_i32(most, T::bits(T::abs(factor)));
  };
  const int64_t first = k / w.group;
  const int64_t groups = (k + count - 1) / w.group + 1 - first;
  const bool plain = !w.two_level && w.tensor_factor == TensorFactor::none;
  if (plain && w.scale_type == ScaleType::float16) {  // most weights: nothing to choose in the loop
    const uint16_t* scales =
        static_cast<const uint16_t*>(w.scales) + (panel * w.groups + first) * kPanel;
    for (int64_t i = 0; i < groups * kPanel; i += kPanel) {
      keep(f.scales + i, T::load_f16(scales + i));
    }
  } else {
    for (int64_t g = 0; g < groups; ++g) {
      keep(f.scales + g * kPanel, group_scale<T>(w, panel, first + g));
    }
  }
  if (has_mins(w)) {
    for (int64_t g = 0; g < groups; ++g) {
      const auto scale = T::load(f.scales + g * kPanel);
      keep(f.mins + g * kPanel, group_min<T>(w, panel, first + g, scale));
    }
  }
  f.finite = T::reduce_max_i32(most) < 0x7f800000;
  if (!w.zero_points) return;
  const bool lookup = w.codebook_type != CodebookType::none;
  const auto base = T::set1(lookup ? 0.0f : kFloatBase);
  for (int64_t g = 0; g < groups; ++g) {
    const auto zeros = T::to_f32(group_zeros<T>(w, panel, first + g));
    T::store(f.zeros + g * kPanel, T::add(base, zeros));
  }
}

// `count` codes of output n to floats, a few more up to whole vectors. `kVectors` of them are of
// one group.
template <class T, FloatType kType, bool kLookup, int kVectors>
void dequantize_run(const Weight& w, const RunFactors& f, const uint8_t* codes, int n,
                    int64_t count, char* to) {
  struct Factors {
    typename T::F32 zero, scale, min;
  };
  const auto table = T::float_table(w.values);
  const bool finite = f.finite;
  const int shift = f.shift;
  const auto factors_at = [=, &f](int64_t k) NIBBLAS_INLINE_LAMBDA {
    const int64_t at = (k >> shift) * kPanel + n;
    return Factors{T::set1(f.zeros[at]), T::set1(f.scales[at]), T::set1(f.mins[at])};
  };
  const auto value_at = [=](int64_t k, const Factors& g) NIBBLAS_INLINE_LAMBDA {
    const auto code = T::load_u8(codes + k);
    auto value = T::zero_f32();
    if constexpr (kLookup) {
      value = T::lookup_f32(table, code);
    } else {
      value = T::from_bits(T::or_i32(code, T::set1_i32(kFloatBits)));
    }
    value = T::fma(T::sub(value, g.zero), g.scale, g.min);
    return finite ? value : canonical_nan<T>(value);
  };
  constexpr bool pairs = kType == FloatType::bfloat16 && T::kPairsBfloat16;
  for (int64_t k = 0; k < count; k += (pairs ? 2 : kVectors) * kPanel) {
    const Factors first = factors_at(k);
    if constexpr (pairs) {
      const bool same = kVectors == 2 || k + kPanel >= count;
      const Factors second = same ? first : factors_at(k + kPanel);
      T::store_bfloat16(to + k * 2, value_at(k, first), value_at(k + kPanel, second));
    } else {
      unroll<kVectors>([&](auto v) NIBBLAS_INLINE_LAMBDA {
        const int64_t i = k + v.value * kPanel;
        store_floats<T>(to + i * float_bytes(kType), kType, value_at(i, first));
      });
    }
  }
}

// The same of codes of up to 4 bits in groups of 32 and more, for values of 16 bits: all that a
// group may have are made once and looked up (float16 0.85, bfloat16 0.73 of the time; with groups
// of 128 0.75 and 0.62).
template <class T, FloatType kType>
void look_up_run(const Weight& w, const RunFactors& f, const uint8_t* codes, int n, int64_t count,
                 char* to) {
  float entries[kPanel];
  for (int i = 0; i < kPanel; ++i) {
    const bool lookup = w.codebook_type != CodebookType::none;
    entries[i] = lookup ? w.values[i] : kFloatBase + static_cast<float>(i);
  }
  const int64_t group = int64_t{1} << f.shift;
  for (int64_t k = 0, at = n; k < count; k += group, at += kPanel) {
    const auto code = T::sub(T::load(entries), T::set1(f.zeros[at]));
    auto value = T::fma(code, T::set1(f.scales[at]), T::set1(f.mins[at]));
    if (!f.finite) value = canonical_nan<T>(value);
    uint16_t halves[kPanel];
    store_floats<T>(halves, kType, value);
    const auto table = T::half_table(halves);
    const int64_t stop = smaller(k + group, count);
    for (int64_t i = k; i < stop; i += 2 * kPanel) T::store_lookup(to + 2 * i, table, codes + i);
  }
}

template <class T, FloatType kType>
void dequantize_panel(const DequantizeJob& job, int64_t panel) {
  constexpr int64_t bytes = float_bytes(kType);
  const Weight& w = *job.weight;
  const int64_t outputs = smaller(kPanel, w.cols - panel * kPanel);
  const bool lookup = w.codebook_type != CodebookType::none;
  auto run = lookup ? dequantize_run<T, kType, true, 1> : dequantize_run<T, kType, false, 1>;
  if (w.group >= 2 * kPanel) {
    if constexpr (kType == FloatType::float32) {
      run = lookup ? dequantize_run<T, kType, true, 2> : dequantize_run<T, kType, false, 2>;
    } else {
      run = w.bits <= 4 ? look_up_run<T, kType> : dequantize_run<T, kType, false, 2>;
    }
  }
  RunFactors factors;
  fill_factors<T>(w, factors);
  alignas(kRowBytes) uint8_t codes[kPanel * kRunStride];
  // A row of the run, behind its last 64 bytes of the run before.
  alignas(kRowBytes) char values[kRowBytes + kRun * bytes];
  alignas(kRowBytes) char ends[kPanel][kRowBytes] = {};
  for (int64_t k = 0; k < w.depth; k += kRun) {
    const int64_t count = smaller(kRun, w.depth - k);
    unpack_run<T>(w, panel, k, count, codes);
    load_factors<T>(w, panel, k, count, factors);
    for (int n = 0; n < outputs; ++n) {
      memcpy(values, ends[n], kRowBytes);
      run(w, factors, codes + n * kRunStride, n, count, values + kRowBytes);
      memcpy(ends[n], values + kRun * bytes, kRowBytes);
      store_run<T>(job.out, panel * kPanel + n, k, count, bytes, w, job.past_caches,
                   values + kRowBytes);
    }
  }
  if (job.past_caches) T::drain();
}

template <class T>
void dequantize(const DequantizeJob& job, int64_t panel) {
  switch (job.type) {
    case FloatType::float32: return dequantize_panel<T, FloatType::float32>(job, panel);
    case FloatType::float16: return dequantize_panel<T, FloatType::float16>(job, panel);
    case FloatType::bfloat16: return dequantize_panel<T, FloatType::bfloat16>(job, panel);
  }
}

}  // namespace
}  // namespace nibblas
