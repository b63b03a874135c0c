// SPDX-License-Identifier: Apache-2.0
#include "simd/avx512vnni.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kAvx512VnniConversions = make_conversions<Avx512Vnni>();

}  // namespace nibblas
