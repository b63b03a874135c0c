// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace nibblas {
namespace {

ScaleType parse_scale_type(const std::string& name) {
  if (name == "float16") return ScaleType::float16;
  if (name == "float32") return ScaleType::float32;
  if (name == "bfloat16") return ScaleType::bfloat16;
  throw std::invalid_argument("scale type must be float16, float32 or bfloat16, got " + name);
}

py::dtype stored_dtype(ScaleType type) {
  return py::dtype(type == ScaleType::float32   ? "float32"
                   : type == ScaleType::float16 ? "float16"
                                                : "uint16");
}

Offset parse_offset(const std::string& name) {
  if (name == "symmetric") return Offset::symmetric;
  if (name == "zero_point") return Offset::zero_point;
  if (name == "min") return Offset::min;
  throw std::invalid_argument("offset must be symmetric, zero_point or min, got " + name);
}

Rule parse_rule(const std::string& name) {
  if (name == "mse") return Rule::mse;
  if (name == "absmax") return Rule::absmax;
  throw std::invalid_argument("rule must be \"mse\" or \"absmax\", got \"" + name + "\"");
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

py::dict bound_quantize(const py::array& weight, int bits, const std::string& offset,
                        int64_t group_size, const std::string& rule,
                        const std::string& scale_type, int num_threads) {
  const Array view = view_floats(weight, "weight");
  check_matrix(view, "weight");
  if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8");
  QuantizeJob job = {};
  job.cols = view.shape[0];
  job.depth = view.shape[1];
  job.depth_padded = padded_depth(job.depth, group_size);
  job.group = group_size ? group_size : job.depth_padded;
  job.groups = group_size ? job.depth_padded / group_size : 1;
  job.bits = bits;
  job.offset = parse_offset(offset);
  job.rule = parse_rule(rule);
  job.scale_type = parse_scale_type(scale_type);
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
  without_gil([&] { quantize_weight(view, job, num_threads); });
  return result;
}

std::vector<py::array> bound_pack_codes(const py::array& codes, int bits, int64_t group_size,
                                        int num_threads, bool two_level) {
  const Array view = view_array(codes);
  if (view.dtype != DType::uint8) {
    throw TypeError("codes must be uint8, got " + py::str(codes.dtype()).cast<std::string>());
  }
  check_matrix(view, "codes");
  PackJob job = {};
  job.cols = view.shape[0];
  job.depth = view.shape[1];
  job.depth_padded = padded_depth(job.depth, group_size, two_level);
  job.bits = bits;
  const auto planes =
      new_code_planes((job.cols + kPanel - 1) / kPanel, job.depth_padded, bits, job.planes);
  without_gil([&] { pack_codes(view, job, num_threads); });
  return planes;
}

py::array bound_unpack_codes(const BoundWeight& w, int num_threads) {
  const py::array codes = new_array(py::dtype("uint8"), {w.view.cols, w.view.depth});
  const Array view = view_array(codes);
  without_gil([&] { unpack_codes(w.view, view, num_threads); });
  return codes;
}

void bound_dequantize(const BoundWeight& w, const py::array& out, int num_threads) {
  const Array view = view_array(out);
  check_output(out, view, "float32, float16 or bfloat16", is_float(view.dtype), w.planes);
  if (view.ndim != 2 || view.shape[0] != w.view.cols || view.shape[1] != w.view.depth) {
    throw std::invalid_argument("out must have shape (" + std::to_string(w.view.cols) + ", " +
                                std::to_string(w.view.depth) + "), got " + shape_text(view));
  }
  without_gil([&] { dequantize(w.view, view, num_threads); });
}

void bound_take(const BoundWeight& w,
                const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& indices,
                const py::array& out, int num_threads) {
  const Array view = view_array(out);
  std::vector<py::object> inputs = w.planes;
  inputs.push_back(indices);
  check_output(out, view, "float32, float16 or bfloat16", is_float(view.dtype), inputs);
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
        py::arg("group_size"), py::arg("rule"), py::arg("scale_type"), py::arg("num_threads") = 0);
  m.def("pack_codes", &bound_pack_codes, py::arg("codes"), py::arg("bits"), py::arg("group_size"),
        py::arg("num_threads") = 0, py::arg("two_level") = false);
  m.def("unpack_codes", &bound_unpack_codes, py::arg("weight"), py::arg("num_threads") = 0);
  m.def("dequantize", &bound_dequantize, py::arg("weight"), py::arg("out"),
        py::arg("num_threads") = 0);
  m.def("take", &bound_take, py::arg("weight"), py::arg("indices"), py::arg("out"),
        py::arg("num_threads") = 0);
  m.def("activate", &bound_activate, py::arg("x"), py::arg("name"));
}

}  // namespace nibblas
