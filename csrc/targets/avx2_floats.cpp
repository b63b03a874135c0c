// SPDX-License-Identifier: Apache-2.0
#include "simd/avx2.h"

#include "targets/make_floats.h"

namespace nibblas {

extern constexpr FloatTable kAvx2Floats = make_floats<Avx2>();

}  // namespace nibblas
