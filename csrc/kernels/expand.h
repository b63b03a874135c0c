// SPDX-License-Identifier: Apache-2.0
// A depth block of packed weights to operands and float32 scales, for the sources.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// Codes [k0, k0 + depth) of `panels` panels to operands [depth / 4 * kQuadParts][panels][64], or
// [depth / 8][panels][128] where two quads make one.
using Expand = void (*)(const Weight& w, int64_t panel, int panels, int64_t k0, int64_t depth,
                        uint8_t* rows);

template <class T, class Operands, bool kZeros>
void expand_codes(const Weight& w, int64_t panel, int panels, int64_t k0, int64_t depth,
                  uint8_t* rows) {
  using Ops = typename Operands::Ops;
  using Reader = CodeReader<T, Operands::kBits, Ops::kQuads>;
  // Zero points of groups, which may be half a step long.
  constexpr int halves = kZeros && Reader::kStep == 32 ? 2 : 1;
  constexpr int parts = Reader::kQuads / Ops::kQuads * Ops::kQuadParts / halves;
  const Operands operands(w);
  const int64_t stride = panels * kOperandBytes<Ops>;
  for (int n = 0; n < panels; ++n) {
    Reader reader(w, panel + n, k0);
    uint8_t* to = rows + n * kOperandBytes<Ops>;
    auto zeros = T::zero_f32();
    const auto load_zeros = [&](int64_t g) { zeros = T::to_f32(group_zeros<T>(w, panel + n, g)); };
    if (kZeros) load_zeros(k0 / w.group);
    for (int64_t k = k0; k < k0 + depth; k += Reader::kStep, reader.next()) {
      const auto codes = reader.load(0);
      unroll<halves>([&](auto half) NIBBLAS_INLINE_LAMBDA {
        const int64_t at = k + half.value * (Reader::kStep / halves);
        if (kZeros && at % w.group == 0) load_zeros(at / w.group);
        unroll<parts>([&](auto i) NIBBLAS_INLINE_LAMBDA {
          constexpr int part = half.value * parts + i.value;
          auto operand = operand_of<part, Reader, 0>(operands, codes);
          if constexpr (kZeros) operand = T::sub(operand, zeros);
          Ops::store_w(to + part * stride, operand);
        });
      });
      to += halves * parts * stride;
    }
  }
}

// What of a run of groups can be read as it stands.
inline Direct direct_groups(const Weight& w, int64_t panel, int64_t g0) {
  const int64_t index = (panel * w.groups + g0) * kPanel;
  const bool is_plain = !w.two_level && w.tensor_factor == TensorFactor::none;
  Direct direct = {};
  direct.stride = w.groups * kPanel;
  if (is_plain && w.scale_type == ScaleType::float16) {
    direct.scales = static_cast<const uint16_t*>(w.scales) + index;
  }
  if (is_plain && w.mins && !w.float_zeros && w.min_type == ScaleType::float16) {
    direct.mins = static_cast<const uint16_t*>(w.mins) + index;
  }
  if (w.zero_points && !w.nibble_zeros) direct.zeros = w.zero_points + index;
  return direct;
}

// What is read directly of a run of groups of one panel, into L1 at once: these are short rows of
// other planes, and asking for each when it is needed broke the stream of the codes.
template <class T>
NIBBLAS_INLINE void prefetch_groups(const Direct& direct, int64_t groups) {
  for (int64_t at = 0; at < groups * kPanel; at += kRowBytes / 2) {
    if (direct.scales) T::prefetch(direct.scales + at);
    if (direct.mins) T::prefetch(direct.mins + at);
    if (direct.zeros) T::prefetch(direct.zeros + at);
  }
}

// What `groups` groups from g0 on are combined with, but for what is read directly.
template <class T, class Ops, GroupKind kGroups>
NIBBLAS_NOINLINE void expand_groups(const Weight& w, int64_t panel, int panels, int64_t g0,
                                    int64_t groups, const Block& out) {
  constexpr bool mins = kGroups == GroupKind::mins;
  constexpr bool zeros = kGroups == GroupKind::zero_points;
  const Direct& direct = out.direct;
  const bool floats = !direct.scales || (mins && !direct.mins);
  if (!floats && !(zeros && !direct.zeros)) return;
  for (int n = 0; n < panels; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = (g * panels + n) * kPanel;
      if (floats) {
        const auto scale = group_scale<T>(w, panel + n, g0 + g);
        T::store(out.scales + at, scale);
        if constexpr (mins) T::store(out.mins + at, group_min<T>(w, panel + n, g0 + g, scale));
      }
      if constexpr (zeros) {
        if (!direct.zeros) T::store_i32(out.zeros + at, group_zeros<T>(w, panel + n, g0 + g));
      }
    }
  }
}

// The same of super-blocks.
template <class T, class Ops>
NIBBLAS_NOINLINE void expand_super_blocks(const Weight& w, int64_t panel, int panels, int64_t s0,
                                          int64_t supers, const Block& out) {
  const int64_t groups = kSuperBlock / w.group;
  const int64_t per_pair = w.group == kSuperBlock ? 1 : 2;
  for (int n = 0; n < panels; ++n) {
    const int64_t index = (panel + n) * w.groups + s0 * groups;
    for (int64_t g = 0; g < supers * groups; ++g) {
      T::prefetch(static_cast<const char*>(w.scales) + (index + g + supers * groups) * kPanel);
      if (w.mins) {
        T::prefetch(static_cast<const char*>(w.mins) + (index + g + supers * groups) * kPanel);
      }
      T::store_i32(out.factors + (g * panels + n) * kPanel,
                   Ops::as_factor(sub_scale<T>(w, index + g)));
    }
    for (int64_t g = 0; g < supers * groups; g += per_pair) {
      T::store_i32(out.pairs + (g / per_pair * panels + n) * kPanel,
                   offset_pair<T, Ops>(w, panel + n, s0 * groups + g));
    }
    for (int64_t s = 0; s < supers; ++s) {
      const int64_t at = (s * panels + n) * kPanel;
      T::store(out.scales + at, super_scale<T>(w, panel + n, s0 + s));
      if (w.super_mins) T::store(out.mins + at, super_min<T>(w, panel + n, s0 + s));
    }
  }
}

}  // namespace
}  // namespace nibblas
