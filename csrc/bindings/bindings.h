// SPDX-License-Identifier: Apache-2.0
// Between Python objects and the operations. The only place that knows pybind11.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "ops/ops.h"
#include "runtime/interrupt.h"
#include "runtime/thread.h"

namespace nibblas {

namespace py = pybind11;

void register_weight(py::module_& m);
void register_products(py::module_& m);
void register_packing(py::module_& m);
void register_blocks(py::module_& m);
void register_runtime(py::module_& m);
void register_dlpack(py::module_& m);

// A packed weight and the arrays that it points into.
struct BoundWeight {
  Weight view;
  int center;  // the code that means 0: matmul_integer takes codes as integers from there
  std::vector<py::object> planes;
};

// The array that Python gave as `name`.
Array view_array(const py::array& array);
// The same, if its element type is one of the three floats; else a TypeError that helps.
Array view_floats(const py::array& array, const char* name);

// Complains unless `out` has the right type, is writable, and shares no element with itself; and
// none with an input, an array or the planes of a weight.
void check_output(const py::array& out, const Array& view, const char* type_text, bool type_fits);
void check_apart(const py::array& out, const Array& view, py::handle input);
void check_apart(const py::array& out, const Array& view, const BoundWeight& w);

// A new array in C order at a 64-byte boundary.
py::array new_array(const py::dtype& dtype, const std::vector<int64_t>& shape);

// The NumPy type that the package ml_dtypes provides.
py::dtype bfloat16_dtype();
py::dtype float_dtype(const std::string& name);

ScaleType scale_type_of(const py::array& plane, const char* name);
ScaleType parse_scale_type(const std::string& name);
Compute parse_compute(const std::string& name);
Activation parse_activation(const py::object& name);

// Takes the GIL back. Once the interpreter is gone this ends the thread instead, and glibc does so
// by unwinding its stack: through objects that hold references, in an interpreter that is no more.
// So such a thread stops here until the process ends.
inline void take_gil(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    sleep_forever();
  }
}

// For Interruptible: whether a signal's Python handler (Ctrl-C's is one) raised an exception, which
// is then the thread's current one. Handlers run on Python's main thread alone.
inline bool signal_raised(void* thread_state) {
  auto& state = *static_cast<PyThreadState**>(thread_state);
  take_gil(state);
  const bool raised = PyErr_CheckSignals() != 0;
  state = PyEval_SaveThread();
  return raised;
}

// Runs f without the GIL, and gives it up when a signal's handler raises: with that exception.
template <class F>
void without_gil(const F& f) {
  std::exception_ptr error;
  PyThreadState* state = PyEval_SaveThread();
  Interruptible call(signal_raised, &state);
  try {
    f();
  } catch (const std::exception&) {
    error = std::current_exception();
  }
  take_gil(state);
  if (call.interrupted()) throw py::error_already_set();
  if (error) std::rethrow_exception(error);
}

}  // namespace nibblas
