// SPDX-License-Identifier: Apache-2.0
#include "ops/nearest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace nibblas {

Nearest nearest_entries(const float* codebook) {
  std::pair<float, int> entries[kCodebook];
  for (int code = 0; code < kCodebook; ++code) {
    entries[code] = {codebook[code] + 0.0f, code};  // -0 is 0, and the first one of equals stays
  }
  std::sort(entries, entries + kCodebook);
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  const auto* end = std::unique(entries, entries + kCodebook, same);
  const int count = static_cast<int>(end - entries);

  constexpr float infinity = std::numeric_limits<float>::infinity();
  Nearest nearest;
  for (int i = 0; i < kCodebook; ++i) {
    const auto& [value, code] = entries[std::min(i, count - 1)];
    nearest.values[i] = value;
    nearest.codes[i] = static_cast<float>(code);
    if (i == 0) continue;
    const float mean = (nearest.values[i - 1] + value) * 0.5f;
    // Greater than the float below the mean: the mean itself included.
    const float above = code % 2 == 0 ? std::nextafter(mean, -infinity) : mean;
    nearest.above[i - 1] = i < count ? above : infinity;
  }
  nearest.above[kCodebook - 1] = infinity;
  nearest.is_lopsided = nearest.values[0] != -nearest.values[kCodebook - 1];
  return nearest;
}

float e4m3_tensor_scale(int32_t greatest_bits) {
  float greatest;
  std::memcpy(&greatest, &greatest_bits, sizeof greatest);
  const float scale = greatest / 2688.0f;  // 448 * 6: the largest scale times the largest element
  return scale > 0 && std::isfinite(scale) ? scale : 1.0f;
}

}  // namespace nibblas
