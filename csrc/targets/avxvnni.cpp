// SPDX-License-Identifier: Apache-2.0
#include "simd/avxvnni.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kAvxVnniKernels = make_table<AvxVnni>();

}  // namespace nibblas
