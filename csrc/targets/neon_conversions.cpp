// SPDX-License-Identifier: Apache-2.0
// Conversions have no dot products: these serve every NEON target.
#include "simd/neon.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kNeonConversions = make_conversions<Neon>();

}  // namespace nibblas
