// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bindings/bindings.h"
#include "runtime/fp_env.h"

namespace nibblas {
namespace {

// What kernels rely on without looking: sizes, types and contiguity of every plane.
const void* checked_plane(const py::array& plane, const char* name,
                          const std::vector<int64_t>& shape, py::ssize_t item_size) {
  bool fits = plane.ndim() == static_cast<py::ssize_t>(shape.size()) &&
              plane.itemsize() == item_size &&
              (plane.flags() & py::array::c_style) != 0;
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = plane.shape(static_cast<py::ssize_t>(i)) == shape[i];
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

// The table of 4-bit codes: as floats, and as the unsigned operands of integer products.
void set_codebook(Weight& w, const py::array& codebook) {
  if (w.bits != 4 || codebook.ndim() != 1 || codebook.shape(0) != 16) {
    throw std::invalid_argument("a codebook has 16 values, for codes of 4 bits");
  }
  if (w.zero != 0 || w.zero_points || w.mins || w.super_mins) {
    throw std::invalid_argument("codes of a codebook have no zero points and no mins");
  }
  int integers[16];
  const Array view = view_array(codebook);
  const FpEnvironment environment;  // rint is the contract's, whatever the caller rounds like
  for (int i = 0; i < 16; ++i) {
    const char* at = view.data + i * view.strides[0];
    if (view.dtype == DType::int8) {
      w.values[i] = static_cast<float>(*reinterpret_cast<const int8_t*>(at));
      integers[i] = static_cast<int>(w.values[i]);
    } else if (view.dtype == DType::float32) {
      std::memcpy(&w.values[i], at, sizeof(float));
      if (!(std::fabs(w.values[i]) <= 1)) {
        throw std::invalid_argument("a float codebook has values from -1 to 1");
      }
      integers[i] = static_cast<int>(std::nearbyint(127.0f * w.values[i]));
    } else {
      throw TypeError("codebook must be float32 or int8");
    }
  }
  w.codebook_type =
      view.dtype == DType::int8 ? CodebookType::int8 : CodebookType::float32;
  const auto [least, greatest] = std::minmax_element(integers, integers + 16);
  // As small as they can be where that lets narrow accumulators hold several steps of two operands,
  // else whole bytes, with the one zero that always fits.
  const bool small = *greatest - *least <= 31;
  w.zero = small ? -*least : 128;
  w.top_operand = small ? std::max(*greatest + w.zero, 1) : 255;
  for (int i = 0; i < 16; ++i) w.operands[i] = static_cast<uint8_t>(integers[i] + w.zero);
}

// Keeps the arrays that a weight points into, once each is what kernels take it for.
class PlaneKeeper {
 public:
  explicit PlaneKeeper(BoundWeight& bound) : bound_(bound) {}

  const void* keep(const py::array& plane, const char* name, const std::vector<int64_t>& shape,
                   py::ssize_t item_size) {
    const void* data = checked_plane(plane, name, shape, item_size);
    bound_.planes.push_back(plane);
    return data;
  }
  const void* keep(const std::optional<py::array>& plane, const char* name,
                   const std::vector<int64_t>& shape, py::ssize_t item_size) {
    return plane ? keep(*plane, name, shape, item_size) : nullptr;
  }

 private:
  BoundWeight& bound_;
};

struct OptionalPlanes {
  std::optional<py::array> zero_points, mins, super_scales, super_mins, codebook, input_order;
};

void check_sizes(const Weight& w, int64_t group_size, int bits, int zero, bool two_level) {
  const bool sizes_fit = w.cols >= 0 && w.depth >= 0 && w.cols <= INT32_MAX &&
                         w.depth <= INT32_MAX;
  if (!sizes_fit) throw std::invalid_argument("a weight has 0 to 2^31 - 1 rows and columns");
  const int64_t largest = two_level ? kSuperBlock : 4096;
  const bool group_fits = (group_size == 0 && !two_level) ||
                          (group_size >= 16 && group_size <= largest &&
                           (group_size & (group_size - 1)) == 0);
  if (!group_fits) {
    throw std::invalid_argument("group_size must be a power of two from 16 to " +
                                std::to_string(largest) + ", got " + std::to_string(group_size));
  }
  if (bits < 1 || bits > 8) {
    throw std::invalid_argument("codes must have 1 to 8 bits, got " + std::to_string(bits));
  }
  if (zero < 0 || zero > 255) throw std::invalid_argument("zero must be from 0 to 255");
}

BoundWeight make_weight(std::pair<int64_t, int64_t> shape, int64_t group_size, int bits,
                        const std::vector<py::array>& codes, const py::array& scales,
                        const std::string& scale_type, int zero, bool is_signed, bool nibble_mins,
                        std::optional<float> tensor_scale, std::optional<float> tensor_divisor,
                        const OptionalPlanes& optional) {
  BoundWeight bound = {};
  PlaneKeeper keeper(bound);
  Weight& w = bound.view;
  std::tie(w.cols, w.depth) = shape;
  w.two_level = optional.super_scales.has_value();
  check_sizes(w, group_size, bits, zero, w.two_level);
  w.per_channel = group_size == 0;
  w.depth_padded = padded_depth(w.depth, group_size, w.two_level);
  w.panels = (w.cols + kPanel - 1) / kPanel;
  w.group = w.per_channel ? w.depth_padded : group_size;
  w.groups = w.per_channel ? 1 : w.depth_padded / group_size;
  w.supers = w.two_level ? w.depth_padded / kSuperBlock : 0;
  const bool float_zeros =
      optional.zero_points && view_array(*optional.zero_points).dtype != DType::uint8;
  set_integer_codes(w, bits, optional.zero_points ? 0 : zero);
  bound.center = is_signed ? zero : 0;

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
  const std::vector<int64_t> per_super = {w.panels, w.supers, kPanel};
  w.scale_type = parse_scale_type(scale_type);
  const bool sub_scales = w.scale_type == ScaleType::uint8 || w.scale_type == ScaleType::int8;
  if (w.two_level != sub_scales) {
    throw std::invalid_argument("scales are uint8 or int8 with super_scales, and only then");
  }
  w.scales = keeper.keep(scales, "scales", per_group, scale_bytes(w.scale_type));
  if (tensor_scale || tensor_divisor) {
    w.tensor_factor = tensor_scale ? TensorFactor::multiplies : TensorFactor::divides;
    w.tensor_scale = tensor_scale ? *tensor_scale : *tensor_divisor;
  }

  if (optional.zero_points && (optional.mins || w.two_level)) {
    throw std::invalid_argument("a weight has zero_points or mins, not both");
  }
  w.nibble_mins = nibble_mins;
  if (float_zeros) {
    w.float_zeros = true;
    w.min_type = scale_type_of(*optional.zero_points, "zero_points");
    w.mins = keeper.keep(optional.zero_points, "zero_points", per_group,
                         scale_bytes(w.min_type));
  } else {
    w.nibble_zeros = bits <= kNibbleZeroBits;
    w.zero_points = static_cast<const uint8_t*>(keeper.keep(
        optional.zero_points, "zero_points", {w.panels, zero_rows(w), kPanel}, 1));
  }
  if (optional.mins) {
    w.min_type = w.two_level ? ScaleType::uint8 : scale_type_of(*optional.mins, "mins");
    w.mins = keeper.keep(optional.mins, "mins", per_group, scale_bytes(w.min_type));
  }
  w.super_scales = keeper.keep(optional.super_scales, "super_scales", per_super, 2);
  w.super_mins = keeper.keep(optional.super_mins, "super_mins", per_super, 2);
  if ((w.two_level && (w.super_mins != nullptr) != has_mins(w)) ||
      (!w.two_level && (w.nibble_mins || w.super_mins))) {
    throw std::invalid_argument("mins of two-level schemes come with super_mins");
  }
  if (optional.codebook) set_codebook(w, *optional.codebook);
  if (optional.input_order) {
    if (view_array(*optional.input_order).dtype != DType::int32) {
      throw TypeError("plane input_order must be int32");
    }
    w.input_order = static_cast<const int32_t*>(
        keeper.keep(optional.input_order, "input_order", {w.depth}, sizeof(int32_t)));
    check_order(w.input_order, w.depth);
  }
  return bound;
}

}  // namespace

ScaleType parse_scale_type(const std::string& name) {
  constexpr std::pair<const char*, ScaleType> types[] = {
      {"float32", ScaleType::float32},   {"float16", ScaleType::float16},
      {"bfloat16", ScaleType::bfloat16}, {"e8m0", ScaleType::e8m0},
      {"e4m3", ScaleType::e4m3},         {"uint8", ScaleType::uint8},
      {"int8", ScaleType::int8}};
  for (const auto& [known, type] : types) {
    if (name == known) return type;
  }
  throw std::invalid_argument("unknown scale type " + name);
}

void register_weight(py::module_& m) {
  py::class_<BoundWeight>(m, "Weight", "A packed weight as kernels see it: planes, not copies.");
  // No constructor of the class: after one, pybind11 enters the object in a table outside of all
  // its try blocks, and without memory for that the process would end. Where a function's result
  // is made it may throw, though then it frees only the object's own bytes: so an empty one first.
  m.def(
      "make_weight",
      [](std::pair<int64_t, int64_t> shape, int64_t group_size, int bits,
         const std::vector<py::array>& codes, const py::array& scales,
         const std::string& scale_type, int zero, bool is_signed,
         std::optional<py::array> zero_points, std::optional<py::array> mins, bool nibble_mins,
         std::optional<py::array> super_scales, std::optional<py::array> super_mins,
         std::optional<py::array> codebook, std::optional<float> tensor_scale,
         std::optional<float> tensor_divisor, std::optional<py::array> input_order) {
        py::object weight = py::cast(BoundWeight{});
        weight.cast<BoundWeight&>() = make_weight(
            shape, group_size, bits, codes, scales, scale_type, zero, is_signed, nibble_mins,
            tensor_scale, tensor_divisor,
            {zero_points, mins, super_scales, super_mins, codebook, input_order});
        return weight;
      },
      py::arg("shape"), py::arg("group_size"), py::arg("bits"), py::arg("codes"),
      py::arg("scales"), py::kw_only(), py::arg("scale_type"), py::arg("zero") = 0,
      py::arg("is_signed") = false, py::arg("zero_points") = py::none(),
      py::arg("mins") = py::none(), py::arg("nibble_mins") = false,
      py::arg("super_scales") = py::none(), py::arg("super_mins") = py::none(),
      py::arg("codebook") = py::none(), py::arg("tensor_scale") = py::none(),
      py::arg("tensor_divisor") = py::none(), py::arg("input_order") = py::none());
}

}  // namespace nibblas
