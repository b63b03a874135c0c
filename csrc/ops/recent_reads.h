// SPDX-License-Identifier: Apache-2.0
// A guess at where a weight is read from: kernels take memory and caches in different ways. Results
// do not depend on it.
#pragma once

#include "kernels/kernel_types.h"

namespace nibblas {

// Notes that a product reads the weight, and returns the cache that may still hold it, by how much
// products have read since they last read this one. Any thread.
CodesIn note_read(const Weight& w);

}  // namespace nibblas
