// SPDX-License-Identifier: Apache-2.0
#include "simd/avx512.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kAvx512Kernels = make_table<Avx512>();

}  // namespace nibblas
