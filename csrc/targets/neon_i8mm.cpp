// SPDX-License-Identifier: Apache-2.0
#include "simd/neon_i8mm.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kNeonI8mmKernels = make_table<NeonI8mm>();

}  // namespace nibblas
