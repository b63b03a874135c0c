// SPDX-License-Identifier: Apache-2.0
#include "ops/array.h"

#include <algorithm>
#include <cstdlib>

namespace nibblas {

int64_t item_bytes(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32: return 4;
    case DType::float16:
    case DType::bfloat16: return 2;
    default: return 1;
  }
}

std::string shape_text(const Array& a) {
  std::string text = "(";
  for (int i = 0; i < a.ndim; ++i) {
    text += (i ? ", " : "") + std::to_string(a.shape[i]);
  }
  return text + (a.ndim == 1 ? ",)" : ")");
}

int64_t row_count(const Array& a) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < a.ndim; ++i) rows *= a.shape[i];
  return rows;
}

Matrix as_matrix(const Array& a, std::vector<int64_t>& offsets) {
  Matrix m = {a.data, 0, a.ndim ? a.last_stride() : 0, nullptr};
  int inner = a.ndim - 2;  // the innermost row dimension that is more than one row
  while (inner >= 0 && a.shape[inner] == 1) --inner;
  if (inner < 0) return m;
  m.row_stride = a.strides[inner];
  int64_t span = a.strides[inner] * a.shape[inner];
  bool even = true;
  for (int i = inner - 1; i >= 0; --i) {
    if (a.shape[i] == 1) continue;
    even = even && a.strides[i] == span;
    span = a.strides[i] * a.shape[i];
  }
  if (even) return m;

  const int64_t rows = row_count(a);
  offsets.resize(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row;
    int64_t offset = 0;
    for (int i = a.ndim - 2; i >= 0; --i) {
      offset += rest % a.shape[i] * a.strides[i];
      rest /= a.shape[i];
    }
    offsets[static_cast<size_t>(row)] = offset;
  }
  m.row_offsets = offsets.data();
  return m;
}

namespace {

struct Extent {
  const char* begin;
  const char* end;
};

Extent extent(const Array& a) {
  Extent e = {a.data, a.data + item_bytes(a.dtype)};
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] == 0) return {a.data, a.data};
    const int64_t reach = (a.shape[i] - 1) * a.strides[i];
    (reach < 0 ? e.begin : e.end) += reach;
  }
  return e;
}

}  // namespace

bool extents_overlap(const Array& a, const Array& b) {
  const Extent x = extent(a);
  const Extent y = extent(b);
  return x.begin < x.end && y.begin < y.end && x.begin < y.end && y.begin < x.end;
}

bool may_overlap_itself(const Array& a) {
  std::vector<std::pair<int64_t, int64_t>> steps;  // stride, size
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] == 0) return false;
    if (a.shape[i] > 1) steps.emplace_back(std::abs(a.strides[i]), a.shape[i]);
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = item_bytes(a.dtype);
  for (const auto& [stride, size] : steps) {
    if (stride < reach) return true;
    reach = stride * (size - 1) + reach;
  }
  return false;
}

bool is_float(DType dtype) {
  return dtype == DType::float32 || dtype == DType::float16 || dtype == DType::bfloat16;
}

FloatType float_type(DType dtype) {
  switch (dtype) {
    case DType::float16: return FloatType::float16;
    case DType::bfloat16: return FloatType::bfloat16;
    default: return FloatType::float32;
  }
}

}  // namespace nibblas
