// SPDX-License-Identifier: Apache-2.0
// Arrays as operations see them, and the two kinds of complaint about them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernel_types.h"

namespace nibblas {

// A wrong type; a wrong shape, value or file is std::invalid_argument.
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class DType : uint8_t { float32, float16, bfloat16, int8, uint8, int32, other };

constexpr int kMaxDims = 64;  // NumPy's limit

struct Array {
  char* data;
  DType dtype;
  int ndim;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];  // bytes

  int64_t last() const { return shape[ndim - 1]; }
  int64_t last_stride() const { return strides[ndim - 1]; }
};

int64_t item_bytes(DType dtype);

// "(2, 3)"
std::string shape_text(const Array& a);

// The product of all dimensions but the last.
int64_t row_count(const Array& a);

// All dimensions but the last as the rows of a matrix. Where they are not evenly spaced, `offsets`
// gets their places and has to outlive the result.
Matrix as_matrix(const Array& a, std::vector<int64_t>& offsets);

// Whether the bytes from first to last of the two arrays meet; arrays that interleave do, too.
bool extents_overlap(const Array& a, const Array& b);

// Whether two elements of an array may be the same memory.
bool may_overlap_itself(const Array& a);

FloatType float_type(DType dtype);  // of one of the three floats
bool is_float(DType dtype);

}  // namespace nibblas
