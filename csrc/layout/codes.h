// SPDX-License-Identifier: Apache-2.0
// The scalar definition of the plane formula: where a code lies. Everything that packs or unpacks
// faster is tested against it.
#pragma once

#include "layout/weight.h"

namespace nibblas {
namespace {

struct CodePosition {
  int64_t byte;  // offset inside the plane
  int shift;     // lowest bit of the slice inside that byte
};

inline CodePosition code_position(int64_t depth_padded, int bits, int64_t n, int64_t k) {
  const int64_t per_byte = 8 / bits;
  const int64_t j = k / (4 * per_byte);
  const int64_t within = k % (4 * per_byte);
  const int64_t row = n / kPanel * plane_rows(depth_padded, bits) + j;
  return {row * kRowBytes + n % kPanel * 4 + within % 4, static_cast<int>(within / 4) * bits};
}

inline int read_code(const Weight& w, int64_t n, int64_t k) {
  int code = 0;
  int low = 0;
  for (int s = 0; s < w.slices; ++s) {
    const int bits = w.slice[s].bits;
    const CodePosition at = code_position(w.depth_padded, bits, n, k);
    code |= (w.slice[s].data[at.byte] >> at.shift & ((1 << bits) - 1)) << low;
    low += bits;
  }
  return code;
}

}  // namespace
}  // namespace nibblas
