// SPDX-License-Identifier: Apache-2.0
// bfloat16 tensors through DLPack, which NumPy cannot take itself.
#include "bindings/bindings.h"

namespace nibblas {
namespace {

// The structures of DLPack's stable ABI (unversioned capsules, "dltensor").
struct DlTensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null is C order
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kBfloat = 4;

py::array from_dlpack_bf16(const py::object& obj) {
  const py::object capsule = obj.attr("__dlpack__")();
  auto* managed =
      static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  const DlTensor& t = managed->tensor;
  if (t.device_type != kCpu) throw std::invalid_argument("the tensor is not on the CPU");
  if (t.code != kBfloat || t.bits != 16 || t.lanes != 1) {
    throw std::invalid_argument("the tensor is not bfloat16");
  }
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim);
  std::vector<py::ssize_t> strides(shape.size());
  py::ssize_t step = 2;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = t.strides ? 2 * t.strides[i] : step;
    step *= shape[i];
  }
  // From here on the array owns the tensor; a used capsule no longer frees it.
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  const py::capsule owner(managed, [](void* p) {
    auto* tensor = static_cast<DlManagedTensor*>(p);
    if (tensor->deleter) tensor->deleter(tensor);
  });
  return py::array(py::dtype("uint16"), shape, strides,
                   static_cast<char*>(t.data) + t.byte_offset, owner);
}

}  // namespace

void register_dlpack(py::module_& m) {
  m.def("from_dlpack_bf16", &from_dlpack_bf16, py::arg("obj"));
}

}  // namespace nibblas
