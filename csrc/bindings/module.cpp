// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace nibblas {
namespace {

// Results of one contract version are the same bits for ever: see docs/numerics.md.
constexpr int kContractVersion = 1;

}  // namespace

PYBIND11_MODULE(_nibblas, m, py::mod_gil_not_used()) {
  m.doc() = "The native part of nibblas. Its interface is private.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
    }
  });
  m.attr("LAYOUT_VERSION") = kLayoutVersion;
  m.attr("CONTRACT_VERSION") = kContractVersion;
  register_weight(m);
  register_products(m);
  register_packing(m);
  register_blocks(m);
  register_runtime(m);
  register_dlpack(m);
}

}  // namespace nibblas
