// SPDX-License-Identifier: Apache-2.0
#include "simd/scalar.h"

#include "targets/make_table.h"

namespace nibblas {

extern constexpr KernelTable kScalarKernels = make_table<Scalar>();

}  // namespace nibblas
