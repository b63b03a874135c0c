// SPDX-License-Identifier: Apache-2.0
// A depth block of packed weights to operands and float32 scales, for BlockSource.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// Codes [k0, k0 + depth) of NV panels to rows [depth / 4 * kQuadParts][NV][64].
using Expand = void (*)(const Weight& w, int64_t panel, int64_t k0, int64_t depth, uint8_t* rows);

template <class T, class Operands, GroupKind kGroups, int NV>
void expand_codes(const Weight& w, int64_t panel, int64_t k0, int64_t depth, uint8_t* rows) {
  using Source = PlaneSource<T, Operands, kGroups, NV>;
  using Ops = typename Source::Ops;
  // Only float operands differ by a zero point of their group, which may be half a step long.
  constexpr bool zeros = Ops::kFloat && kGroups == GroupKind::zero_points;
  constexpr int halves = zeros && Source::kStep == 32 ? 2 : 1;
  constexpr int parts = Source::kParts / halves;
  Source from(w, panel, k0);
  if (zeros) from.begin_group(k0 / w.group);
  for (int64_t k = k0; k < k0 + depth; k += Source::kStep, from.next()) {
    unroll<halves>([&](auto half) NIBBLAS_INLINE_LAMBDA {
      const int64_t at = k + half.value * (Source::kStep / halves);
      if (zeros && at % w.group == 0) from.begin_group(at / w.group);
      unroll<parts>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        constexpr int part = half.value * parts + i.value;
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          Ops::store_w(rows + (part * NV + n.value) * kRowBytes,
                       from.template operand<part>(n.value));
        });
      });
    });
    rows += Source::kParts * NV * kRowBytes;
  }
}

// The parameters of those codes, which are whole groups.
template <class T, class Ops, GroupKind kGroups, int NV>
void expand_groups(const Weight& w, int64_t panel, int64_t k0, int64_t depth, const Block& out) {
  const int64_t first = k0 / w.group;
  const int64_t groups = depth / w.group;
  for (int n = 0; n < NV; ++n) {
    if constexpr (kGroups == GroupKind::two_level) {
      for (int64_t g = 0; g < groups; ++g) {
        const auto factor = sub_scale<T>(w, (panel + n) * w.groups + first + g);
        T::store_i32(out.factors + (g * NV + n) * kPanel, Ops::as_factor(factor));
      }
      const int64_t per_pair = w.group == kSuperBlock ? 1 : 2;
      for (int64_t g = 0; g < groups; g += per_pair) {
        T::store_i32(out.pairs + (g / per_pair * NV + n) * kPanel,
                     offset_pair<T>(w, panel + n, first + g));
      }
      for (int64_t s = 0; s < depth / kSuperBlock; ++s) {
        const int64_t super = k0 / kSuperBlock + s;
        T::store(out.scales + (s * NV + n) * kPanel, super_scale<T>(w, panel + n, super));
        if (!w.super_mins) continue;
        T::store(out.mins + (s * NV + n) * kPanel, super_min<T>(w, panel + n, super));
      }
    } else {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = (g * NV + n) * kPanel;
        const auto scale = group_scale<T>(w, panel + n, first + g);
        T::store(out.scales + at, scale);
        if constexpr (kGroups == GroupKind::mins) {
          T::store(out.mins + at, group_min<T>(w, panel + n, first + g, scale));
        }
        if constexpr (kGroups == GroupKind::zero_points) {
          const int64_t index = (panel + n) * w.groups + first + g;
          memcpy(out.zeros + at, w.zero_points + index * kPanel, kPanel);
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibblas
