// SPDX-License-Identifier: Apache-2.0
// A guess at where a weight is read from: kernels of few rows take memory and caches in different
// ways. Results do not depend on it.
#pragma once

#include "layout/weight.h"

namespace nibblas {

// Notes that a product reads the weight, and returns whether it was read so lately that the caches
// may still hold it: whether products have read at most kLikelyCached bytes since. Any thread.
bool note_read(const Weight& w);

constexpr int64_t kLikelyCached = int64_t{8} << 20;

}  // namespace nibblas
