// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>

#include "bindings/bindings.h"
#include "runtime/scratch.h"

namespace nibblas {
namespace {

// NumPy's type numbers, which are part of its ABI.
enum NumpyType { kInt8 = 1, kUint8 = 2, kInt = 5, kLong = 7, kFloat32 = 11, kFloat16 = 23 };
constexpr int kFirstUserType = 256;

DType dtype_of(const py::array& array) {
  const py::dtype dtype = array.dtype();
  const int number = dtype.num();
  if (dtype.byteorder() == '>') return DType::other;
  switch (number) {
    case kFloat32: return DType::float32;
    case kFloat16: return DType::float16;
    case kInt8: return DType::int8;
    case kUint8: return DType::uint8;
    case kInt:
    case kLong: return dtype.itemsize() == 4 ? DType::int32 : DType::other;
    default: break;
  }
  if (number < kFirstUserType) return DType::other;
  // The number of a type from another package is known only at run time.
  static std::atomic<int> known{-1};
  int bfloat16 = known.load(std::memory_order_relaxed);
  if (number != bfloat16 && dtype.attr("name").cast<std::string>() == "bfloat16") {
    bfloat16 = number;
    known.store(number, std::memory_order_relaxed);
  }
  return number == bfloat16 ? DType::bfloat16 : DType::other;
}

std::string type_name(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>();
}

}  // namespace

Array view_array(const py::array& array) {
  Array view;
  view.data = static_cast<char*>(const_cast<void*>(array.data()));
  view.dtype = dtype_of(array);
  view.ndim = static_cast<int>(array.ndim());
  if (view.ndim > kMaxDims) throw std::invalid_argument("an array has too many dimensions");
  for (int i = 0; i < view.ndim; ++i) {
    view.shape[i] = array.shape(i);
    view.strides[i] = array.strides(i);
  }
  return view;
}

Array view_floats(const py::array& array, const char* name) {
  const Array view = view_array(array);
  if (!is_float(view.dtype)) {
    throw TypeError(std::string(name) + " must be float32, float16 or bfloat16, got " +
                    type_name(array) + ": convert it with " + name + ".astype(np.float32)");
  }
  return view;
}

void check_output(const py::array& out, const Array& view, const char* type_text, bool type_fits) {
  if (!type_fits) {
    throw TypeError(std::string("out must be ") + type_text + ", got " + type_name(out));
  }
  if (!out.writeable()) throw std::invalid_argument("out is read-only");
  if (may_overlap_itself(view)) {
    throw std::invalid_argument("out has elements that share memory with each other");
  }
}

void check_apart(const py::array& out, const Array& view, py::handle input) {
  if (!extents_overlap(view, view_array(py::reinterpret_borrow<py::array>(input)))) return;
  // The extents meet; whether elements do is a question of number theory, which NumPy answers.
  if (py::module_::import("numpy").attr("shares_memory")(out, input).cast<bool>()) {
    throw std::invalid_argument("out shares memory with an input");
  }
}

void check_apart(const py::array& out, const Array& view, const BoundWeight& w) {
  for (const py::object& plane : w.planes) check_apart(out, view, plane);
}

py::array new_array(const py::dtype& dtype, const std::vector<int64_t>& shape) {
  size_t bytes = static_cast<size_t>(dtype.itemsize());
  for (const int64_t size : shape) {
    if (size != 0 && bytes > static_cast<size_t>(INT64_MAX / size)) throw std::bad_alloc();
    bytes *= static_cast<size_t>(size);
  }
  // Large planes get 2 MB pages where the system has them: a product from cold memory is then not
  // held up by address translation.
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = bytes >= 2 * kHugePage;
  void* memory = allocate_aligned(bytes, large ? kHugePage : kAlignment);
  if (large) advise_huge_pages(memory, bytes);
  const py::capsule owner(memory, [](void* p) { free_aligned(p); });
  return py::array(dtype, shape, memory, owner);
}

py::dtype bfloat16_dtype() {
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
}

py::dtype float_dtype(const std::string& name) {
  if (name == "bfloat16") return bfloat16_dtype();
  if (name == "float32" || name == "float16") return py::dtype(name);
  throw TypeError("dtype must be float32, float16 or bfloat16, got " + name);
}

ScaleType scale_type_of(const py::array& plane, const char* name) {
  switch (plane.dtype().num()) {
    case kFloat32: return ScaleType::float32;
    case kFloat16: return ScaleType::float16;
    case 4: return ScaleType::bfloat16;  // uint16 holds its bits
    default:
      throw TypeError(std::string(name) + " must be float32, float16 or bfloat16 bits as uint16, "
                      "got " + type_name(plane));
  }
}

Compute parse_compute(const std::string& name) {
  if (name == "int8") return Compute::int8;
  if (name == "float32") return Compute::float32;
  throw std::invalid_argument("compute must be \"int8\" or \"float32\", got \"" + name + "\"");
}

Activation parse_activation(const py::object& name) {
  if (name.is_none()) return Activation::none;
  if (!py::isinstance<py::str>(name)) {
    throw TypeError("activation must be a string or None, got " +
                    py::str(py::type::of(name).attr("__name__")).cast<std::string>());
  }
  const std::string text = name.cast<std::string>();
  if (text == "relu") return Activation::relu;
  if (text == "gelu") return Activation::gelu;
  if (text == "gelu_tanh") return Activation::gelu_tanh;
  if (text == "silu") return Activation::silu;
  throw std::invalid_argument(
      "activation must be \"relu\", \"gelu\", \"gelu_tanh\", \"silu\" or None, got \"" + text +
      "\"");
}

}  // namespace nibblas
