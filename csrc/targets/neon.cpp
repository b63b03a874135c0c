// SPDX-License-Identifier: Apache-2.0
#include "simd/neon.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kNeonKernels = make_table<Neon>();

}  // namespace nibblas
