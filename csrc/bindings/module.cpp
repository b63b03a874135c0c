// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"

namespace nibblas {
namespace {

// Results of one contract version are the same bits for ever: see docs/numerics.md.
constexpr int kContractVersion = 1;

}  // namespace

// Without the GIL, too: what the module keeps is atomic (the target, the number of threads) or
// guarded (the pool), and a weight never changes.
PYBIND11_MODULE(main_interpreter, m, py::mod_gil_not_used()) {
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

// The module's entry. In a second interpreter pybind11 would wait for the first one's GIL for ever.
extern "C" PYBIND11_EXPORT PyObject* PyInit__nibblas() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
    return nibblas::PyInit_main_interpreter();
  }
  PyErr_SetString(PyExc_ImportError,
                  "nibblas can only be imported in the main interpreter of a process, "
                  "this is a subinterpreter");
  return nullptr;
}
