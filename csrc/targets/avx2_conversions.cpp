// SPDX-License-Identifier: Apache-2.0
#include "simd/avx2.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kAvx2Conversions = make_conversions<Avx2>();

}  // namespace nibblas
