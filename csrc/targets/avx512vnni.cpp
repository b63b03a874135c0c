// SPDX-License-Identifier: Apache-2.0
#include "simd/avx512vnni.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kAvx512VnniKernels = make_table<Avx512Vnni>();

}  // namespace nibblas
