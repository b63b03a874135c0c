// SPDX-License-Identifier: Apache-2.0
// Weights to integer codes, scales and zero points or mins. numerics/weights.py states the rule,
// nibblas/_candidates.py the candidates of the least-squares search.
#pragma once

#include "kernels/quantize_group.h"

namespace nibblas {
namespace {

// How the values of one group become codes: by a scale, and a zero point or a min.
template <class T, Offset kOffset>
struct IntegerCoder {
  using F32 = typename T::F32;
  F32 scale;
  F32 offset;     // zero point or min
  F32 low, high;  // of the codes, before the scheme's own zero is added

  F32 code(F32 w) const {
    if constexpr (kOffset == Offset::symmetric) {
      return clamp<T>(T::rint(T::div(w, scale)), low, high);
    } else if constexpr (kOffset == Offset::zero_point) {
      return clamp<T>(T::add(T::rint(T::div(w, scale)), offset), low, high);
    } else {
      return clamp<T>(T::rint(T::div(T::sub(w, offset), scale)), low, high);
    }
  }
  F32 residual(F32 w) const {
    const F32 q = code(w);
    if constexpr (kOffset == Offset::symmetric) return T::fma(T::neg(q), scale, w);
    if constexpr (kOffset == Offset::zero_point) {
      return T::fma(T::neg(T::sub(q, offset)), scale, w);
    }
    return T::fma(T::neg(q), scale, T::sub(w, offset));
  }
};

template <class T, Offset kOffset>
struct IntegerQuantizer {
  using F32 = typename T::F32;
  using Coder = IntegerCoder<T, kOffset>;
  const QuantizeJob& job;
  int zero;       // added to symmetric codes
  F32 low, high;  // of the codes

  explicit IntegerQuantizer(const QuantizeJob& j) : job(j) {
    zero = kOffset == Offset::symmetric ? (job.top_code + 1) / 2 : 0;
    low = T::set1(static_cast<float>(-zero));
    high = T::set1(static_cast<float>(job.top_code - zero));
  }

  Coder with_scale(F32 scale, F32 low_value) const {
    const F32 stored = round_to_stored<T>(scale, job.scale_type);
    F32 offset = T::zero_f32();
    if constexpr (kOffset == Offset::zero_point) {
      offset = clamp<T>(T::rint(T::div(T::neg(low_value), usable<T>(stored))), low, high);
    }
    if constexpr (kOffset == Offset::min) offset = round_to_stored<T>(low_value, job.min_type);
    return {stored, offset, low, high};
  }

  // The plain rule: the range of the group.
  Coder plain(const GroupRange<T>& range) const {
    if constexpr (kOffset == Offset::symmetric) {
      return with_scale(T::div(range.amax, high), range.low);
    } else {
      return with_scale(T::div(T::sub(range.high, range.low), high), range.low);
    }
  }

  // Candidate i of the least-squares rule.
  Coder candidate(const GroupRange<T>& range, int i) const {
    if constexpr (kOffset == Offset::symmetric) {
      const bool is_ternary = job.top_code == 2;
      const F32 extreme = is_ternary ? range.amax : range.extreme;
      return with_scale(T::div(extreme, T::set1(job.candidates[i])), range.low);
    } else if constexpr (kOffset == Offset::zero_point) {
      const F32 c = T::set1(job.candidates[i]);
      const F32 lo = T::mul(range.low, c);
      return with_scale(T::div(T::sub(T::mul(range.high, c), lo), high), lo);
    } else {
      const F32 start = T::set1(job.candidates[2 * i]);
      const F32 width = T::set1(job.candidates[2 * i + 1]);
      const F32 r = T::sub(range.high, range.low);
      return with_scale(T::div(T::mul(r, width), high), T::add(range.low, T::mul(r, start)));
    }
  }

  Coder choose(const float* values, int64_t count) const {
    GroupRange<T> range = group_range<T>(values, count);
    if constexpr (kOffset == Offset::zero_point) {  // zero has a code of its own
      const F32 zero_value = T::zero_f32();
      range.low = T::select(T::lt(range.low, zero_value), range.low, zero_value);
      range.high = T::select(T::lt(zero_value, range.high), range.high, zero_value);
    }
    const Coder first = plain(range);
    if (job.candidate_count == 0) return first;
    Coder best = first;
    F32 least = squared_error<T>(first, values, count);
    for (int i = 0; i < job.candidate_count; ++i) {
      const Coder other = candidate(range, i);
      const F32 e = squared_error<T>(other, values, count);
      const auto better = T::lt(e, least);
      best.scale = T::select(better, other.scale, best.scale);
      best.offset = T::select(better, other.offset, best.offset);
      least = T::select(better, e, least);
    }
    // Where the plain scale or min overflows its type, clipping to a smaller one is no remedy.
    best.scale = T::select(is_finite<T>(first.scale), best.scale, first.scale);
    best.offset = T::select(is_finite<T>(first.offset), best.offset, first.offset);
    return best;
  }

  int32_t overflows(const Coder& coder) const {
    return any_infinite<T>(coder.scale) | any_infinite<T>(coder.offset);
  }

  void encode(Coder coder, const float* values, int64_t count, typename T::I32 valid,
              uint8_t* words) const {
    const auto no_scale = is_zero<T>(coder.scale);
    coder.scale = usable<T>(coder.scale);
    const auto center = T::set1_i32(zero);
    encode_words<T>(values, count, valid, words, [&](F32 w) NIBBLAS_INLINE_LAMBDA {
      const F32 q = T::select(no_scale, T::zero_f32(), coder.code(w));
      return T::add_i32(T::to_i32(q), center);
    });
  }

  void store(const Coder& coder, int64_t at) const {
    store_scales<T>(job.scales, job.scale_type, at, coder.scale);
    if (job.mins) store_scales<T>(job.mins, job.min_type, at, coder.offset);
    if (job.zero_points) store_bytes<T>(job.zero_points, at, T::to_i32(coder.offset));
  }
};

}  // namespace
}  // namespace nibblas
