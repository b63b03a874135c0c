// SPDX-License-Identifier: Apache-2.0
#include "simd/scalar.h"

#include "targets/make_floats.h"

namespace nibblas {

extern constexpr FloatTable kScalarFloats = make_floats<Scalar>();

}  // namespace nibblas
