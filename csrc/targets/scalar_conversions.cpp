// SPDX-License-Identifier: Apache-2.0
#include "simd/scalar.h"

#include "targets/make_conversions.h"

namespace nibblas {

extern constexpr ConversionTable kScalarConversions = make_conversions<Scalar>();

}  // namespace nibblas
