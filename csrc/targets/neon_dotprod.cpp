// SPDX-License-Identifier: Apache-2.0
#include "simd/neon_dotprod.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kNeonDotprodKernels = make_table<NeonDotprod>();

}  // namespace nibblas
