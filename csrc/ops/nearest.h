// SPDX-License-Identifier: Apache-2.0
// What the quantization of weights computes once for a whole matrix. Both run in a job, and so in
// its floating-point environment.
#pragma once

#include "kernels/kernel_types.h"

namespace nibblas {

// The entries of a codebook as the nearest one is found. On the mean of two neighbours x goes to
// the one with an even code, or to the lower one.
Nearest nearest_entries(const float* codebook);

// The tensor scale of e4m3 scales, from the bits of the greatest magnitude in the matrix.
float e4m3_tensor_scale(int32_t greatest_bits);

}  // namespace nibblas
