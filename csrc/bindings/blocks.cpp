// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>

#include "bindings/bindings.h"

namespace nibblas {
namespace {

BlockType parse_block_type(const std::string& name) {
  for (int i = 0; i < kBlockTypes; ++i) {
    if (name == kBlockShapes[i].name) return static_cast<BlockType>(i);
  }
  throw std::invalid_argument("unknown block type \"" + name + "\"");
}

// Blocks in a dense array whose last dimension is whole blocks of `size` items.
int64_t count_blocks(const py::array& array, const char* name, DType dtype, int64_t size) {
  const Array view = view_array(array);
  if (view.dtype != dtype) {
    throw TypeError(std::string(name) + " has elements of the wrong type");
  }
  const bool fits =
      view.ndim >= 1 && view.last() % size == 0 && (array.flags() & py::array::c_style) != 0;
  if (!fits) {
    throw std::invalid_argument(std::string(name) + " must be in C order, rows a multiple of " +
                                std::to_string(size) + ", got shape " + shape_text(view));
  }
  return array.size() / size;
}

// The shape of `array` with the last dimension turned from blocks of `from` into blocks of `to`.
std::vector<int64_t> converted_shape(const py::array& array, int64_t from, int64_t to) {
  std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
  shape.back() = shape.back() / from * to;
  return shape;
}

py::dict bound_block_shapes() {
  py::dict shapes;
  for (const BlockShape& shape : kBlockShapes) {
    shapes[shape.name] = py::make_tuple(shape.elements, shape.bytes, shape.groups);
  }
  return shapes;
}

// A dense float32 array of this shape: `given`, or a new one.
py::array float_output(const std::optional<py::array>& given, const py::array& raw,
                       const std::vector<int64_t>& shape) {
  if (!given) return new_array(py::dtype("float32"), shape);
  const Array view = view_array(*given);
  check_output(*given, view, "float32", view.dtype == DType::float32);
  check_apart(*given, view, raw);
  bool fits = view.ndim == static_cast<int>(shape.size()) &&
              (given->flags() & py::array::c_style) != 0;
  for (int i = 0; fits && i < view.ndim; ++i) fits = view.shape[i] == shape[static_cast<size_t>(i)];
  if (!fits) {
    Array expected = {};
    expected.ndim = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), expected.shape);
    throw std::invalid_argument("out must have shape " + shape_text(expected) +
                                " in C order, got " + shape_text(view));
  }
  return *given;
}

py::array bound_dequantize_blocks(const py::array& raw, const std::string& name,
                                  const std::optional<py::array>& given, int num_threads) {
  const BlockType type = parse_block_type(name);
  const BlockShape& shape = block_shape(type);
  const int64_t blocks = count_blocks(raw, "raw", DType::uint8, shape.bytes);
  py::array out = float_output(given, raw, converted_shape(raw, shape.bytes, shape.elements));
  const auto* from = static_cast<const uint8_t*>(raw.data());
  auto* to = static_cast<float*>(out.mutable_data());
  without_gil([&] { dequantize_blocks(type, from, blocks, to, num_threads); });
  return out;
}

py::dict bound_unpack_blocks(const py::array& raw, const std::string& name, int num_threads) {
  const BlockType type = parse_block_type(name);
  const BlockShape& shape = block_shape(type);
  const int64_t blocks = count_blocks(raw, "raw", DType::uint8, shape.bytes);
  py::dict result;
  BlockParts parts = {};
  const auto add = [&](const char* part, const char* dtype, int64_t per_block) {
    py::array array = new_array(py::dtype(dtype), converted_shape(raw, shape.bytes, per_block));
    result[part] = array;
    return array.mutable_data();
  };
  parts.codes = static_cast<uint8_t*>(add("codes", "uint8", shape.elements));
  if (shape.has_scales) parts.scales = static_cast<uint8_t*>(add("scales", "uint8", shape.groups));
  if (shape.has_mins) parts.mins = static_cast<uint8_t*>(add("mins", "uint8", shape.groups));
  if (shape.has_block_scales) {
    parts.block_scales = static_cast<uint16_t*>(add("block_scales", "float16", 1));
  }
  if (shape.has_block_mins) {
    parts.block_mins = static_cast<uint16_t*>(add("block_mins", "float16", 1));
  }
  const auto* from = static_cast<const uint8_t*>(raw.data());
  without_gil([&] { unpack_blocks(type, from, blocks, parts, num_threads); });
  return result;
}

py::array bound_quantize_blocks(const py::array& x, const std::string& name, int num_threads) {
  const BlockType type = parse_block_type(name);
  const BlockShape& shape = block_shape(type);
  const int64_t blocks = count_blocks(x, "x", DType::float32, shape.elements);
  py::array raw = new_array(py::dtype("uint8"), converted_shape(x, shape.elements, shape.bytes));
  const auto* from = static_cast<const float*>(x.data());
  auto* to = static_cast<uint8_t*>(raw.mutable_data());
  without_gil([&] { quantize_blocks(type, from, blocks, to, num_threads); });
  return raw;
}

}  // namespace

void register_blocks(py::module_& m) {
  m.def("block_shapes", &bound_block_shapes);
  m.def("dequantize_blocks", &bound_dequantize_blocks, py::arg("raw"), py::arg("type"),
        py::arg("out") = py::none(), py::arg("num_threads") = 0);
  m.def("unpack_blocks", &bound_unpack_blocks, py::arg("raw"), py::arg("type"),
        py::arg("num_threads") = 0);
  m.def("quantize_blocks", &bound_quantize_blocks, py::arg("x"), py::arg("type"),
        py::arg("num_threads") = 0);
}

}  // namespace nibblas
