// SPDX-License-Identifier: Apache-2.0
#include "simd/neon_registers.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kNeonConversions = make_conversions<NeonRegisters>();

}  // namespace nibblas
