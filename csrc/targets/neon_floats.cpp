// SPDX-License-Identifier: Apache-2.0
#include "simd/neon_registers.h"

#include "targets/make_floats.h"

namespace nibblas {

extern constexpr FloatTable kNeonFloats = make_floats<NeonRegisters>();

}  // namespace nibblas
