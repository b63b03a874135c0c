// SPDX-License-Identifier: Apache-2.0
#include "simd/avx2.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kAvx2Kernels = make_table<Avx2>();

}  // namespace nibblas
