// SPDX-License-Identifier: Apache-2.0
// The words of x that MR rows multiply a step with, in registers of four: multiplications take
// their lanes, since a broadcast costs many CPUs as much as a multiplication.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "simd/unroll.h"

namespace nibblas {
namespace {

template <int MR>
struct NeonColumn {
  int32x4_t words[(MR + 3) / 4];
};

template <int lane>
struct NeonLane {
  int32x4_t words;
};

template <int MR>
NIBBLAS_INLINE NeonColumn<MR> load_neon_column(const int32_t* p) {
  constexpr int whole = MR / 4;
  constexpr int rest = MR % 4;
  NeonColumn<MR> column;
  unroll<whole>([&](auto i) NIBBLAS_INLINE_LAMBDA {
    column.words[i.value] = vld1q_s32(p + 4 * i.value);
  });
  if constexpr (rest == 1) column.words[whole] = vld1q_dup_s32(p + 4 * whole);
  if constexpr (rest >= 2) {
    column.words[whole] = vcombine_s32(vld1_s32(p + 4 * whole), vdup_n_s32(0));
  }
  if constexpr (rest == 3) {
    column.words[whole] = vld1q_lane_s32(p + 4 * whole + 2, column.words[whole], 2);
  }
  return column;
}

}  // namespace
}  // namespace nibblas
