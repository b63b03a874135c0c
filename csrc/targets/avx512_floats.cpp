// SPDX-License-Identifier: Apache-2.0
#include "simd/avx512.h"

#include "targets/make_floats.h"

namespace nibblas {

extern constexpr FloatTable kAvx512Floats = make_floats<Avx512>();

}  // namespace nibblas
