// SPDX-License-Identifier: Apache-2.0
// Weights to codes, scales and zero points or mins: a lane per output, so that every sum runs over
// k ascending. numerics/weights.py states the same rule.
#pragma once

#include "kernels/pack.h"

namespace nibblas {
namespace {

// Least squares for symmetric int4: besides amax / 7 these scales are tried, m / d with m the
// extreme value of the group. Negative d puts m on the ninth level, -8; larger ones clip it.
constexpr float kDivisors[] = {-8.0f,  -8.25f, -8.5f,  -8.75f, -9.0f,  -9.25f, -9.75f, -10.5f,
                               -11.5f, -13.5f, -17.0f, -25.0f, -7.75f, 7.25f,  6.25f};
// Least squares for uint4 with zero points: also both ends of the range times these.
constexpr float kShrink[] = {0.984375f, 0.96875f, 0.9375f, 0.90625f, 0.859375f, 0.6875f, 0.5f};

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

template <class T>
inline typename T::F32 clamp(typename T::F32 a, typename T::F32 low, typename T::F32 high) {
  const auto raised = T::select(T::lt(a, low), low, a);
  return T::select(T::lt(high, raised), high, raised);
}

// How the values of one group become codes: by a scale, and a zero point or a min.
template <class T, Offset kOffset>
struct Coder {
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

template <class T, Offset kOffset>
struct GroupQuantizer {
  using F32 = typename T::F32;
  const QuantizeJob& job;
  F32 low, high;  // of the codes

  explicit GroupQuantizer(const QuantizeJob& j) : job(j) {
    const int half = 1 << (j.bits - 1);
    const bool is_signed = kOffset == Offset::symmetric;
    low = T::set1(static_cast<float>(is_signed ? -half : 0));
    high = T::set1(static_cast<float>(is_signed ? half - 1 : 2 * half - 1));
  }

  Coder<T, kOffset> with_scale(F32 scale, F32 low_value) const {
    const F32 stored = round_to_stored<T>(scale, job.scale_type);
    F32 offset = T::zero_f32();
    if constexpr (kOffset == Offset::zero_point) {
      offset = clamp<T>(T::rint(T::div(T::neg(low_value), usable(stored))), low, high);
    }
    if constexpr (kOffset == Offset::min) offset = round_to_stored<T>(low_value, job.min_type);
    return {stored, offset, low, high};
  }
  // Lanes whose stored scale is 0 divide by 1 instead; their codes are set apart afterwards.
  static F32 usable(F32 scale) {
    return T::select(T::eq(scale, T::zero_f32()), T::set1(1.0f), scale);
  }
  static F32 error(Coder<T, kOffset> coder, const float* values, int64_t count) {
    const auto zero = T::eq(coder.scale, T::zero_f32());
    coder.scale = usable(coder.scale);
    F32 e = T::zero_f32();
    for (int64_t k = 0; k < count; ++k) {
      const F32 r = coder.residual(T::load(values + k * kPanel));
      e = T::fma(r, r, e);
    }
    const F32 infinity = T::from_bits(T::set1_i32(0x7f800000));
    const auto finite = T::lt(T::abs(coder.scale), infinity);
    return T::select(zero, infinity, T::select(finite, e, infinity));
  }
  static void keep_better(Coder<T, kOffset>& best, F32& best_error,
                          const Coder<T, kOffset>& other, const float* values, int64_t count) {
    const F32 e = error(other, values, count);
    const auto better = T::lt(e, best_error);
    best.scale = T::select(better, other.scale, best.scale);
    best.offset = T::select(better, other.offset, best.offset);
    best_error = T::select(better, e, best_error);
  }

  // The plain rule: the range of the group.
  Coder<T, kOffset> plain(const GroupRange<T>& range) const {
    if constexpr (kOffset == Offset::symmetric) {
      return with_scale(T::div(range.amax, high), range.low);
    } else {
      return with_scale(T::div(T::sub(range.high, range.low), high), range.low);
    }
  }

  // Every other candidate of the least-squares rule, in order, against `best`.
  void search(const GroupRange<T>& range, const float* values, int64_t count,
              Coder<T, kOffset>& best) const {
    F32 least = error(best, values, count);
    if constexpr (kOffset == Offset::symmetric) {
      for (const float d : kDivisors) {
        const auto other = with_scale(T::div(range.extreme, T::set1(d)), range.low);
        keep_better(best, least, other, values, count);
      }
    } else {
      for (const float c : kShrink) {
        const F32 lo = T::mul(range.low, T::set1(c));
        const F32 hi = T::mul(range.high, T::set1(c));
        keep_better(best, least, with_scale(T::div(T::sub(hi, lo), high), lo), values, count);
      }
    }
  }

  Coder<T, kOffset> choose(const float* values, int64_t count) const {
    GroupRange<T> range = group_range<T>(values, count);
    if constexpr (kOffset == Offset::zero_point) {  // zero has a code of its own
      const F32 zero = T::zero_f32();
      range.low = T::select(T::lt(range.low, zero), range.low, zero);
      range.high = T::select(T::lt(zero, range.high), range.high, zero);
    }
    const auto first = plain(range);
    auto best = first;
    if constexpr (kOffset != Offset::min) {
      if (job.rule == Rule::mse && job.bits == 4) search(range, values, count, best);
    }
    // Where the plain scale overflows its type, clipping to a smaller one is no remedy.
    const auto finite = T::lt(T::abs(first.scale), T::from_bits(T::set1_i32(0x7f800000)));
    best.scale = T::select(finite, best.scale, first.scale);
    return best;
  }

  // Codes of one group as words of four; `valid` has all bits set in lanes that are outputs.
  void encode(Coder<T, kOffset> coder, const float* values, int64_t count, typename T::I32 valid,
              uint8_t* words) const {
    const auto zero = T::eq(coder.scale, T::zero_f32());
    coder.scale = usable(coder.scale);
    const int center = kOffset == Offset::symmetric ? 1 << (job.bits - 1) : 0;
    for (int64_t k = 0; k < count; k += 4) {
      auto word = T::zero_i32();
      unroll<4>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        if (k + i.value >= count) return;
        const F32 q = coder.code(T::load(values + (k + i.value) * kPanel));
        const F32 kept = T::select(zero, T::zero_f32(), q);
        const auto code = T::add_i32(T::to_i32(kept), T::set1_i32(center));
        word = T::or_i32(word, T::template shl<8 * i.value>(code));
      });
      T::store_i32(words + k / 4 * kRowBytes, T::and_i32(word, valid));
    }
  }
};

// Weights of a panel as floats [depth_padded][16]. Returns false if one is not finite.
template <class T>
inline bool transpose_panel(const QuantizeJob& job, int64_t n0, float* values) {
  const int64_t outputs = smaller(kPanel, job.cols - n0);
  const int64_t bytes = float_bytes(job.type);
  auto most = T::zero_i32();
  for (int64_t k = 0; k < job.depth; k += kPanel) {
    const int64_t count = smaller(kPanel, job.depth - k);
    typename T::I32 rows[kPanel];
    for (int n = 0; n < kPanel; ++n) {
      char lanes[kPanel * 4] = {};
      const char* from = lanes;
      if (n < outputs) {
        const char* row = matrix_row(job.weight, n0 + n) + k * job.weight.col_stride;
        if (count == kPanel && job.weight.col_stride == bytes) {
          from = row;
        } else {
          copy_strided(lanes, bytes, row, job.weight.col_stride, count, bytes);
        }
      }
      const auto w = load_floats<T>(from, job.type);
      most = T::max_i32(most, T::bits(T::abs(w)));
      rows[n] = T::bits(w);
    }
    T::transpose16(rows);
    for (int i = 0; i < kPanel; ++i) T::store_i32(values + (k + i) * kPanel, rows[i]);
  }
  return T::reduce_max_i32(most) < 0x7f800000;
}

inline size_t quantize_scratch_bytes(int64_t depth_padded) {
  return static_cast<size_t>(depth_padded) * (kPanel * sizeof(float) + kPanel);
}

template <class T>
inline int32_t any_infinite(typename T::F32 a) {
  const auto finite = T::lt(T::abs(a), T::from_bits(T::set1_i32(0x7f800000)));
  return T::reduce_max_i32(T::select_i32(finite, T::zero_i32(), T::set1_i32(1)));
}

template <class T, Offset kOffset>
QuantizeResult quantize_panel(const QuantizeJob& job, int64_t panel, void* scratch) {
  float* values = static_cast<float*>(scratch);
  uint8_t* words = reinterpret_cast<uint8_t*>(values + job.depth_padded * kPanel);
  const int64_t n0 = panel * kPanel;
  if (!transpose_panel<T>(job, n0, values)) return QuantizeResult::not_finite;
  memset(words, 0, static_cast<size_t>(job.depth_padded) * kPanel);

  int32_t lanes[kPanel];
  for (int n = 0; n < kPanel; ++n) lanes[n] = n0 + n < job.cols ? -1 : 0;
  const auto valid = T::load_i32(lanes);
  const GroupQuantizer<T, kOffset> quantizer(job);
  int32_t overflow = 0;
  for (int64_t g = 0; g < job.groups; ++g) {
    const int64_t k = g * job.group;
    const int64_t count = smaller(job.group, job.depth - k);
    const int64_t at = panel * job.groups + g;
    if (count <= 0) {  // padding
      store_scales<T>(job.scales, job.scale_type, at, T::zero_f32());
      if (job.mins) store_scales<T>(job.mins, job.min_type, at, T::zero_f32());
      if (job.zero_points) memset(job.zero_points + at * kPanel, 0, kPanel);
      continue;
    }
    const auto coder = quantizer.choose(values + k * kPanel, count);
    overflow |= any_infinite<T>(coder.scale) | any_infinite<T>(coder.offset);
    quantizer.encode(coder, values + k * kPanel, count, valid, words + k * kPanel);
    store_scales<T>(job.scales, job.scale_type, at, coder.scale);
    if (job.mins) store_scales<T>(job.mins, job.min_type, at, coder.offset);
    if (job.zero_points) {  // 0 .. 255, stored through the signed byte of the same bits
      const auto high = T::template shl<24>(T::to_i32(coder.offset));
      T::store_i8(job.zero_points + at * kPanel, T::template sar<24>(high));
    }
  }
  for (int64_t chunk = 0; chunk < job.depth_padded / kChunk; ++chunk) {
    typename T::I32 rows[16];
    for (int i = 0; i < 16; ++i) {
      rows[i] = T::load_i32(words + (chunk * 16 + i) * kRowBytes);
    }
    store_chunk<T>(rows, job.bits, job.depth_padded, panel, chunk, job.planes);
  }
  return overflow ? QuantizeResult::overflow : QuantizeResult::done;
}

template <class T>
QuantizeResult quantize(const QuantizeJob& job, int64_t panel, void* scratch) {
  switch (job.offset) {
    case Offset::zero_point: return quantize_panel<T, Offset::zero_point>(job, panel, scratch);
    case Offset::min: return quantize_panel<T, Offset::min>(job, panel, scratch);
    default: return quantize_panel<T, Offset::symmetric>(job, panel, scratch);
  }
}

}  // namespace
}  // namespace nibblas
