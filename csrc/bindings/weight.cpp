// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace nibblas {
namespace {

// What kernels rely on without looking: sizes, types and contiguity of every plane.
const void* checked_plane(const py::array& plane, const char* name,
                          const std::vector<int64_t>& shape, ssize_t item_size) {
  bool fits = plane.ndim() == static_cast<ssize_t>(shape.size()) &&
              plane.itemsize() == item_size &&
              (plane.flags() & py::array::c_style) != 0;
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = plane.shape(static_cast<ssize_t>(i)) == shape[i];
  }
  if (!fits) {
    std::string expected;
    for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") +
                                                 std::to_string(size);
    throw std::invalid_argument(std::string("plane ") + name + " must have shape (" + expected +
                                ") in C order and elements of " + std::to_string(item_size) +
                                " bytes");
  }
  return plane.data();
}

const uint8_t* checked_bytes(const py::array& plane, const char* name,
                             const std::vector<int64_t>& shape) {
  if (view_array(plane).dtype != DType::uint8) {
    throw TypeError(std::string("plane ") + name + " must be uint8");
  }
  return static_cast<const uint8_t*>(checked_plane(plane, name, shape, 1));
}

void check_order(const int32_t* order, int64_t depth) {
  std::vector<bool> seen(static_cast<size_t>(depth));
  for (int64_t k = 0; k < depth; ++k) {
    if (order[k] < 0 || order[k] >= depth || seen[static_cast<size_t>(order[k])]) {
      throw std::invalid_argument("input_order must have every input feature once");
    }
    seen[static_cast<size_t>(order[k])] = true;
  }
}

BoundWeight make_weight(std::pair<int64_t, int64_t> shape, int64_t group_size, int bits,
                        const std::vector<py::array>& codes, const py::array& scales, int zero,
                        bool is_signed, const std::optional<py::array>& zero_points,
                        const std::optional<py::array>& mins,
                        const std::optional<py::array>& input_order) {
  BoundWeight bound = {};
  Weight& w = bound.view;
  std::tie(w.cols, w.depth) = shape;
  const bool sizes_fit = w.cols >= 0 && w.depth >= 0 && w.cols <= INT32_MAX &&
                         w.depth <= INT32_MAX;
  if (!sizes_fit) throw std::invalid_argument("a weight has 0 to 2^31 - 1 rows and columns");
  const bool group_fits = group_size == 0 || (group_size >= 16 && group_size <= 4096 &&
                                              (group_size & (group_size - 1)) == 0);
  if (!group_fits) {
    throw std::invalid_argument("group_size must be a power of two from 16 to 4096, got " +
                                std::to_string(group_size));
  }
  if (bits != 4 && bits != 8) {
    throw std::invalid_argument("codes must have 4 or 8 bits, got " + std::to_string(bits));
  }
  if (zero < 0 || zero >= 1 << bits) {
    throw std::invalid_argument("zero must be a code of " + std::to_string(bits) + " bits");
  }
  w.per_channel = group_size == 0;
  w.depth_padded = padded_depth(w.depth, group_size);
  w.panels = (w.cols + kPanel - 1) / kPanel;
  w.group = w.per_channel ? w.depth_padded : group_size;
  w.groups = w.per_channel ? 1 : w.depth_padded / group_size;
  w.bits = bits;
  w.zero = zero_points ? 0 : zero;
  w.tensor_scale = 1;
  bound.center = is_signed ? 1 << (bits - 1) : 0;

  int widths[kMaxSlices];
  w.slices = slice_widths(bits, widths);
  if (codes.size() != static_cast<size_t>(w.slices)) {
    throw std::invalid_argument("expected " + std::to_string(w.slices) + " planes of codes");
  }
  for (int s = 0; s < w.slices; ++s) {
    const py::array& plane = codes[static_cast<size_t>(s)];
    const int64_t rows = plane_rows(w.depth_padded, widths[s]);
    w.slice[s] = {checked_bytes(plane, "codes", {w.panels, rows, kPanel, 4}), widths[s]};
    bound.planes.push_back(plane);
  }
  const std::vector<int64_t> per_group = {w.panels, w.groups, kPanel};
  w.scale_type = scale_type_of(scales, "scales");
  w.scales = checked_plane(scales, "scales", per_group, scales.itemsize());
  bound.planes.push_back(scales);
  if (zero_points) {
    w.zero_points = checked_bytes(*zero_points, "zero_points", per_group);
    bound.planes.push_back(*zero_points);
  }
  if (mins) {
    if (zero_points) throw std::invalid_argument("a weight has zero_points or mins, not both");
    w.min_type = scale_type_of(*mins, "mins");
    w.mins = checked_plane(*mins, "mins", per_group, mins->itemsize());
    bound.planes.push_back(*mins);
  }
  if (input_order) {
    if (view_array(*input_order).dtype != DType::int32) {
      throw TypeError("plane input_order must be int32");
    }
    w.input_order = static_cast<const int32_t*>(
        checked_plane(*input_order, "input_order", {w.depth}, sizeof(int32_t)));
    check_order(w.input_order, w.depth);
    bound.planes.push_back(*input_order);
  }
  return bound;
}

}  // namespace

void register_weight(py::module_& m) {
  py::class_<BoundWeight>(m, "Weight", "A packed weight as kernels see it: planes, not copies.")
      .def(py::init(&make_weight), py::arg("shape"), py::arg("group_size"), py::arg("bits"),
           py::arg("codes"), py::arg("scales"), py::kw_only(), py::arg("zero") = 0,
           py::arg("is_signed") = false, py::arg("zero_points") = py::none(),
           py::arg("mins") = py::none(), py::arg("input_order") = py::none());
}

}  // namespace nibblas
