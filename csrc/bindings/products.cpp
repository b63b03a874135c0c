// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace nibblas {
namespace {

std::vector<int64_t> output_shape(const Array& x, int64_t cols) {
  if (x.ndim < 1) throw std::invalid_argument("x must have at least one dimension, got a scalar");
  std::vector<int64_t> shape(x.shape, x.shape + x.ndim);
  shape.back() = cols;
  return shape;
}

py::array bound_linear(const py::array& x, const BoundWeight& w,
                       const std::optional<py::array>& bias, const std::string& compute,
                       const py::object& activation, const std::optional<py::array>& out,
                       const std::optional<std::string>& dtype, int num_threads) {
  const Array x_view = view_floats(x, "x");
  const Compute mode = parse_compute(compute);
  const Activation function = parse_activation(activation);
  Array bias_view;
  if (bias) bias_view = view_floats(*bias, "bias");
  // Before there is an output, so that a wrong x is told as such.
  if (x_view.ndim >= 1 && x_view.last() != w.view.depth) {
    throw std::invalid_argument("weight has " + std::to_string(w.view.depth) +
                                " input features, x has " + std::to_string(x_view.last()));
  }
  // (An array that is first empty and then assigned would cost a tenth of a small call.)
  const py::array y = out ? *out
                          : new_array(dtype ? float_dtype(*dtype) : x.dtype(),
                                      output_shape(x_view, w.view.cols));
  const Array y_view = view_array(y);
  if (out) {
    check_output(y, y_view, "float32, float16 or bfloat16", is_float(y_view.dtype));
    check_apart(y, y_view, x);
    check_apart(y, y_view, w);
    if (bias) check_apart(y, y_view, *bias);
    if (dtype && py::dtype(float_dtype(*dtype)).num() != y.dtype().num()) {
      throw TypeError("dtype is " + *dtype + ", but out is " +
                      py::str(y.dtype()).cast<std::string>());
    }
  }
  without_gil([&] {
    linear(x_view, w.view, bias ? &bias_view : nullptr, mode, function, y_view, num_threads);
  });
  return y;
}

// Zero points of a: a Python integer or an array of integers, in the range of `operand`.
ZeroPoints zero_points(const py::object& given, DType operand, const char* name) {
  ZeroPoints zero;
  if (given.is_none()) return zero;
  const py::array array = py::array::ensure(given);
  if (!array || array.ndim() > 1) {
    throw std::invalid_argument(std::string(name) + " must be a scalar or have one dimension");
  }
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') {
    throw TypeError(std::string(name) + " must be an integer of the type of its operand, got " +
                    py::str(array.dtype()).cast<std::string>());
  }
  const int low = operand == DType::uint8 ? 0 : -128;
  const auto wide = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const int64_t value = wide.data()[i];
    const bool wrapped = kind == 'u' && value < 0;  // a uint64 above int64
    if (value < low || value > low + 255 || wrapped) {
      throw std::invalid_argument(std::string(name) + " must be from " + std::to_string(low) +
                                  " to " + std::to_string(low + 255) + ", got " +
                                  std::to_string(value));
    }
    zero.values.push_back(static_cast<int32_t>(value));
  }
  if (array.ndim() == 1 && zero.values.size() == 1) return zero;
  return zero;
}

Array view_integers(const py::array& array, const char* name) {
  const Array view = view_array(array);
  if (view.dtype != DType::int8 && view.dtype != DType::uint8) {
    throw TypeError(std::string(name) + " must be int8 or uint8, got " +
                    py::str(array.dtype()).cast<std::string>());
  }
  return view;
}

py::array bound_matmul_integer(const py::array& a, const py::object& b,
                               const py::object& a_zero_point, const py::object& b_zero_point,
                               const std::optional<py::array>& out, int num_threads) {
  const Array a_view = view_integers(a, "a");
  if (a_view.ndim < 1) {
    throw std::invalid_argument("a must have at least one dimension, got a scalar");
  }
  const ZeroPoints a_zero = zero_points(a_zero_point, a_view.dtype, "a_zero_point");
  const BoundWeight* packed = nullptr;
  std::optional<py::array> matrix;
  Array b_view = {};
  ZeroPoints b_zero;
  int64_t depth = 0;
  int64_t cols = 0;
  if (py::isinstance<BoundWeight>(b)) {
    packed = b.cast<const BoundWeight*>();
    if (packed->view.codebook_type != CodebookType::none) {
      throw std::invalid_argument("b has a codebook, which matmul_integer does not take");
    }
    if (packed->view.input_order) {
      throw std::invalid_argument("b has an input_order, which matmul_integer does not take");
    }
    b_zero = zero_points(b_zero_point, packed->center ? DType::int8 : DType::uint8,
                         "b_zero_point");
    const int top = (1 << packed->view.bits) - 1 - packed->center;
    for (const int32_t value : b_zero.values) {
      if (value > top || value < -packed->center) {
        throw std::invalid_argument("b_zero_point must be from " +
                                    std::to_string(-packed->center) + " to " +
                                    std::to_string(top) + ", got " + std::to_string(value));
      }
    }
    depth = packed->view.depth;
    cols = packed->view.cols;
  } else {
    matrix = b.cast<py::array>();
    b_view = view_integers(*matrix, "b");
    if (b_view.ndim != 2) {
      throw std::invalid_argument("b must have two dimensions (K, N), got shape " +
                                  shape_text(b_view));
    }
    b_zero = zero_points(b_zero_point, b_view.dtype, "b_zero_point");
    depth = b_view.shape[0];
    cols = b_view.shape[1];
  }
  if (a_view.last() != depth) {
    throw std::invalid_argument("b has " + std::to_string(depth) + " rows, a has " +
                                std::to_string(a_view.last()) + " columns");
  }
  const py::array c = out ? *out : new_array(py::dtype("int32"), output_shape(a_view, cols));
  const Array c_view = view_array(c);
  if (out) {
    check_output(c, c_view, "int32", c_view.dtype == DType::int32);
    check_apart(c, c_view, a);
    if (packed) {
      check_apart(c, c_view, *packed);
    } else {
      check_apart(c, c_view, *matrix);
    }
  }
  without_gil([&] {
    if (packed) {
      matmul_integer(a_view, packed->view, packed->center, a_zero, b_zero, c_view, num_threads);
    } else {
      matmul_integer(a_view, b_view, a_zero, b_zero, c_view, num_threads);
    }
  });
  return c;
}

py::tuple bound_quantize_activations(const py::array& x, int64_t group_size, int num_threads) {
  const Array view = view_floats(x, "x");
  if (view.ndim < 1) throw std::invalid_argument("x must have at least one dimension");
  const bool fits = group_size == 0 || (group_size >= 16 && group_size <= 4096 &&
                                        (group_size & (group_size - 1)) == 0);
  if (!fits) {
    throw std::invalid_argument("group_size must be None or a power of two from 16 to 4096, got " +
                                std::to_string(group_size));
  }
  const int64_t groups = group_size ? (view.last() + group_size - 1) / group_size : 1;
  const py::array codes = new_array(py::dtype("int8"), output_shape(view, view.last()));
  const py::array scales = new_array(py::dtype("float32"), output_shape(view, groups));
  const Array codes_view = view_array(codes);
  const Array scales_view = view_array(scales);
  without_gil(
      [&] { quantize_activations(view, group_size, codes_view, scales_view, num_threads); });
  return py::make_tuple(codes, scales);
}

}  // namespace

void register_products(py::module_& m) {
  m.def("linear", &bound_linear, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(),
        py::arg("compute") = "int8", py::arg("activation") = py::none(),
        py::arg("out") = py::none(), py::arg("dtype") = py::none(), py::arg("num_threads") = 0);
  m.def("matmul_integer", &bound_matmul_integer, py::arg("a"), py::arg("b"),
        py::arg("a_zero_point") = py::none(), py::arg("b_zero_point") = py::none(),
        py::arg("out") = py::none(), py::arg("num_threads") = 0);
  m.def("quantize_activations", &bound_quantize_activations, py::arg("x"),
        py::arg("group_size") = 0, py::arg("num_threads") = 0);
}

}  // namespace nibblas
