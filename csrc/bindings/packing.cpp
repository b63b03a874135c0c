// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "bindings/bindings.h"

namespace nibblas {
namespace {

py::dtype stored_dtype(ScaleType type) {
  switch (type) {
    case ScaleType::float32: return py::dtype("float32");
    case ScaleType::float16: return py::dtype("float16");
    case ScaleType::bfloat16: return py::dtype("uint16");
    default: return py::dtype("uint8");
  }
}

Offset parse_offset(const std::string& name) {
  if (name == "symmetric") return Offset::symmetric;
  if (name == "zero_point") return Offset::zero_point;
  if (name == "min") return Offset::min;
  throw std::invalid_argument("offset must be symmetric, zero_point or min, got " + name);
}

void check_matrix(const Array& a, const char* name) {
  if (a.ndim != 2) {
    throw std::invalid_argument(std::string(name) + " must be a matrix (N, K), got shape " +
                                shape_text(a));
  }
}

// New planes for codes of `bits` bits; `planes` gets where they lie.
std::vector<py::array> new_code_planes(int64_t panels, int64_t depth_padded, int bits,
                                       uint8_t** planes) {
  if (bits < 1 || bits > 8) throw std::invalid_argument("codes have 1 to 8 bits");
  int widths[kMaxSlices];
  const int slices = slice_widths(bits, widths);
  std::vector<py::array> arrays;
  for (int s = 0; s < slices; ++s) {
    const int64_t rows = plane_rows(depth_padded, widths[s]);
    arrays.push_back(new_array(py::dtype("uint8"), {panels, rows, kPanel, 4}));
    planes[s] = static_cast<uint8_t*>(arrays.back().mutable_data());
  }
  return arrays;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// `candidates`: what numerics.candidates gives for the scheme and rule, flat.
py::dict bound_quantize(const py::array& weight, int bits, const std::string& offset,
                        int64_t group_size, const Floats& candidates,
                        const std::string& scale_type, bool is_ternary,
                        const std::optional<Floats>& codebook, int num_threads) {
  const Array view = view_floats(weight, "weight");
  check_matrix(view, "weight");
  if (bits < 1 || bits > 8) throw std::invalid_argument("codes have 1 to 8 bits");
  if (codebook && (codebook->size() != kCodebook || bits != 4 || candidates.size() == 0)) {
    throw std::invalid_argument("a codebook has 16 values, codes of 4 bits, and a candidate");
  }
  QuantizeJob job = {};
  job.cols = view.shape[0];
  job.depth = view.shape[1];
  job.depth_padded = padded_depth(job.depth, group_size);
  job.group = group_size ? group_size : job.depth_padded;
  job.groups = group_size ? job.depth_padded / group_size : 1;
  job.bits = bits;
  job.top_code = is_ternary ? 2 : (1 << bits) - 1;
  job.offset = parse_offset(offset);
  job.candidates = candidates.data();
  job.candidate_count =
      static_cast<int>(candidates.size() / (job.offset == Offset::min ? 2 : 1));
  job.scale_type = parse_scale_type(scale_type);
  const bool is_byte = job.scale_type == ScaleType::e8m0 || job.scale_type == ScaleType::e4m3;
  if (job.scale_type >= ScaleType::uint8 || (is_byte && !codebook)) {
    throw std::invalid_argument("such codes have no scales of type " + scale_type);
  }
  // Mins share the range of the weights, not of their steps: bfloat16 would be too coarse.
  job.min_type =
      job.scale_type == ScaleType::bfloat16 ? ScaleType::float32 : job.scale_type;
  const int64_t panels = (job.cols + kPanel - 1) / kPanel;
  const std::vector<int64_t> per_group = {panels, job.groups, kPanel};

  py::dict result;
  result["codes"] = new_code_planes(panels, job.depth_padded, bits, job.planes);
  py::array scales = new_array(stored_dtype(job.scale_type), per_group);
  job.scales = scales.mutable_data();
  result["scales"] = scales;
  result["zero_points"] = py::none();
  result["mins"] = py::none();
  if (job.offset == Offset::zero_point) {
    py::array zero_points = new_array(py::dtype("uint8"), per_group);
    job.zero_points = static_cast<uint8_t*>(zero_points.mutable_data());
    result["zero_points"] = zero_points;
  } else if (job.offset == Offset::min) {
    py::array mins = new_array(stored_dtype(job.min_type), per_group);
    job.mins = mins.mutable_data();
    result["mins"] = mins;
  }
  const float* book = codebook ? codebook->data() : nullptr;
  float tensor_scale = 1;
  without_gil([&] { tensor_scale = quantize_weight(view, job, book, num_threads); });
  result["tensor_scale"] = tensor_scale;
  return result;
}

// None if a code is out of range: `add` makes each the stored one, `top` is the greatest of these.
std::optional<std::vector<py::array>> bound_pack_codes(
    const py::array& codes, int bits, int64_t group_size, int num_threads, bool two_level, int add,
    int top, const std::optional<py::array_t<int32_t, py::array::c_style>>& input_order) {
  const Array view = view_array(codes);
  if (view.dtype != DType::uint8 && view.dtype != DType::int8) {
    throw TypeError("codes must be int8 or uint8, got " +
                    py::str(codes.dtype()).cast<std::string>());
  }
  check_matrix(view, "codes");
  PackJob job = {};
  job.cols = view.shape[0];
  job.depth = view.shape[1];
  job.depth_padded = padded_depth(job.depth, group_size, two_level);
  job.bits = bits;
  job.add = add;
  job.top = top;
  if (input_order) {
    const int32_t* order = input_order->data();
    const auto is_input = [&](int32_t k) { return k >= 0 && k < job.depth; };
    if (input_order->size() != job.depth || !std::all_of(order, order + job.depth, is_input)) {
      throw std::invalid_argument("input_order must have an input for each position");
    }
    job.input_order = order;
  }
  const auto planes =
      new_code_planes((job.cols + kPanel - 1) / kPanel, job.depth_padded, bits, job.planes);
  bool fits = false;
  without_gil([&] { fits = pack_codes(view, job, num_threads); });
  if (!fits) return std::nullopt;
  return planes;
}

py::array bound_unpack_codes(const BoundWeight& w, int num_threads, int add) {
  const py::array codes = new_array(py::dtype("uint8"), {w.view.cols, w.view.depth});
  const Array view = view_array(codes);
  without_gil([&] { unpack_codes(w.view, view, add, num_threads); });
  return codes;
}

void bound_dequantize(const BoundWeight& w, const py::array& out, int num_threads,
                      bool is_fresh) {
  const Array view = view_array(out);
  check_output(out, view, "float32, float16 or bfloat16", is_float(view.dtype));
  check_apart(out, view, w);
  if (view.ndim != 2 || view.shape[0] != w.view.cols || view.shape[1] != w.view.depth) {
    throw std::invalid_argument("out must have shape (" + std::to_string(w.view.cols) + ", " +
                                std::to_string(w.view.depth) + "), got " + shape_text(view));
  }
  without_gil([&] { dequantize(w.view, view, is_fresh, num_threads); });
}

void bound_take(const BoundWeight& w,
                const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& indices,
                const py::array& out, int num_threads) {
  const Array view = view_array(out);
  check_output(out, view, "float32, float16 or bfloat16", is_float(view.dtype));
  check_apart(out, view, indices);
  check_apart(out, view, w);
  const int64_t count = indices.size();
  if (indices.ndim() != 1 || view.ndim != 2 || view.shape[0] != count ||
      view.shape[1] != w.view.depth) {
    throw std::invalid_argument("out must have shape (" + std::to_string(count) + ", " +
                                std::to_string(w.view.depth) + "), got " + shape_text(view));
  }
  const int64_t* data = indices.data();
  without_gil([&] { take(w.view, data, count, view, num_threads); });
}

py::array bound_activate(const py::array_t<float, py::array::c_style>& x,
                         const std::string& name) {
  const Activation function = parse_activation(py::str(name));
  const int64_t count = x.size();
  py::array y = new_array(py::dtype("float32"), {count});
  const float* from = x.data();
  float* to = static_cast<float*>(y.mutable_data());
  without_gil([&] { activate(from, to, count, function); });
  return y;
}

}  // namespace

void register_packing(py::module_& m) {
  m.def("quantize", &bound_quantize, py::arg("weight"), py::arg("bits"), py::arg("offset"),
        py::arg("group_size"), py::arg("candidates"), py::arg("scale_type"), py::kw_only(),
        py::arg("is_ternary") = false, py::arg("codebook") = py::none(),
        py::arg("num_threads") = 0);
  m.def("empty", &new_array, py::arg("dtype"), py::arg("shape"));
  m.def("pack_codes", &bound_pack_codes, py::arg("codes"), py::arg("bits"), py::arg("group_size"),
        py::arg("num_threads") = 0, py::arg("two_level") = false, py::arg("add") = 0,
        py::arg("top") = 255, py::arg("input_order") = py::none());
  m.def("unpack_codes", &bound_unpack_codes, py::arg("weight"), py::arg("num_threads") = 0,
        py::arg("add") = 0);
  m.def("dequantize", &bound_dequantize, py::arg("weight"), py::arg("out"),
        py::arg("num_threads") = 0, py::arg("is_fresh") = false);
  m.def("take", &bound_take, py::arg("weight"), py::arg("indices"), py::arg("out"),
        py::arg("num_threads") = 0);
  m.def("activate", &bound_activate, py::arg("x"), py::arg("name"));
}

}  // namespace nibblas
