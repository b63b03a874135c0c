// SPDX-License-Identifier: Apache-2.0
#include "simd/avx512.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kAvx512Conversions = make_conversions<Avx512>();

}  // namespace nibblas
