// SPDX-License-Identifier: Apache-2.0
// Weights to codes of a codebook and scales of any type. numerics/codebooks.py states the rule.
#pragma once

#include "kernels/quantize_group.h"

namespace nibblas {
namespace {

// Rounds values from 0 up to e4m3: to nearest even, at most 448.
template <class T>
inline typename T::I32 to_e4m3(typename T::F32 a) {
  const auto top = T::set1(448.0f);
  const auto v = T::select(T::lt(a, top), a, top);
  const auto bits = T::bits(v);
  const auto odd = T::and_i32(T::template shr<20>(bits), T::set1_i32(1));
  const auto rounded = T::add_i32(bits, T::add_i32(odd, T::set1_i32(0x7ffff)));
  const auto normal = T::sub_i32(T::template shr<20>(rounded), T::set1_i32(120 << 3));
  // Below 2^-6 a multiple of 2^-9; eight of them are the least normal number, byte 8, too.
  const auto subnormal = T::to_i32(T::mul(v, T::set1(512.0f)));
  return T::select_i32(T::lt(v, T::set1(0.015625f)), subnormal, normal);
}

// Finds the entry nearest to x: the number of steps that x is above, by bisection.
template <class T>
struct NearestEntry {
  typename T::FloatTable above, values, codes;

  explicit NearestEntry(const Nearest& n)
      : above(T::float_table(n.above)),
        values(T::float_table(n.values)),
        codes(T::float_table(n.codes)) {}

  template <int step>
  typename T::I32 advance(typename T::I32 entry, typename T::F32 x) const {
    const auto probe = T::lookup_f32(above, T::add_i32(entry, T::set1_i32(step - 1)));
    return T::select_i32(T::lt(probe, x), T::add_i32(entry, T::set1_i32(step)), entry);
  }
  typename T::I32 entry(typename T::F32 x) const {
    const auto upper_half = advance<8>(T::zero_i32(), x);
    return advance<1>(advance<2>(advance<4>(upper_half, x), x), x);
  }
  typename T::F32 value(typename T::F32 x) const { return T::lookup_f32(values, entry(x)); }
  typename T::I32 code(typename T::F32 x) const {
    return T::to_i32(T::lookup_f32(codes, entry(x)));
  }
};

template <class T>
struct CodebookCoder {
  using F32 = typename T::F32;
  const NearestEntry<T>& nearest;
  F32 raw;    // the scale before it was rounded to its type
  F32 scale;  // as it multiplies the codebook

  F32 residual(F32 w) const {
    return T::fma(T::neg(nearest.value(T::div(w, scale))), scale, w);
  }
};

template <class T>
struct CodebookQuantizer {
  using F32 = typename T::F32;
  using I32 = typename T::I32;
  using Coder = CodebookCoder<T>;
  const QuantizeJob& job;
  NearestEntry<T> nearest;

  explicit CodebookQuantizer(const QuantizeJob& j) : job(j), nearest(*j.nearest) {}

  // The byte of a scale of one of the two byte types.
  I32 scale_byte(F32 raw) const {
    if (job.scale_type == ScaleType::e8m0) return T::template shr<23>(T::bits(raw));
    return to_e4m3<T>(T::div(raw, T::set1(job.tensor_scale)));
  }

  Coder candidate(const GroupRange<T>& range, int i) const {
    const F32 extreme = job.nearest->is_lopsided ? range.extreme : range.amax;
    const F32 raw = T::div(extreme, T::set1(job.candidates[i]));
    if (job.scale_type == ScaleType::e8m0) {
      return {nearest, raw, from_e8m0<T>(scale_byte(raw))};
    }
    if (job.scale_type == ScaleType::e4m3) {
      const F32 half = from_e4m3<T>(scale_byte(raw));
      return {nearest, raw, T::mul(half, T::set1(job.tensor_scale))};
    }
    return {nearest, raw, round_to_stored<T>(raw, job.scale_type)};
  }

  Coder choose(const float* values, int64_t count) const {
    const GroupRange<T> range = group_range<T>(values, count);
    const Coder first = candidate(range, 0);
    if (job.candidate_count == 1) return first;
    F32 raw = first.raw, scale = first.scale;
    F32 least = squared_error<T>(first, values, count);
    for (int i = 1; i < job.candidate_count; ++i) {
      const Coder other = candidate(range, i);
      const F32 e = squared_error<T>(other, values, count);
      const auto better = T::lt(e, least);
      raw = T::select(better, other.raw, raw);
      scale = T::select(better, other.scale, scale);
      least = T::select(better, e, least);
    }
    // Where the plain scale overflows its type, clipping to a smaller one is no remedy.
    scale = T::select(is_finite<T>(first.scale), scale, first.scale);
    return {nearest, raw, scale};
  }

  int32_t overflows(const Coder& coder) const { return any_infinite<T>(coder.scale); }

  void encode(const Coder& coder, const float* values, int64_t count, I32 valid,
              uint8_t* words) const {
    const auto no_scale = is_zero<T>(coder.scale);
    const F32 scale = usable<T>(coder.scale);
    encode_words<T>(values, count, valid, words, [&](F32 w) NIBBLAS_INLINE_LAMBDA {
      return nearest.code(T::select(no_scale, T::zero_f32(), T::div(w, scale)));
    });
  }

  void store(const Coder& coder, int64_t at) const {
    if (scale_bytes(job.scale_type) == 1) {
      return store_bytes<T>(job.scales, at, scale_byte(coder.raw));
    }
    store_scales<T>(job.scales, job.scale_type, at, T::add(coder.scale, T::zero_f32()));  // not -0
  }
};

}  // namespace
}  // namespace nibblas
