// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu_info.h"

#include "bindings/bindings.h"
#include "runtime/dispatch.h"
#include "runtime/num_threads.h"
#include "runtime/tile_permission.h"

namespace nibblas {
namespace {

std::vector<std::string> target_names() {
  std::vector<std::string> names;
  for (const TargetInfo* target : available_targets()) names.emplace_back(target->name);
  return names;
}

py::dict bound_cpu_info() {
  const CpuInfo info = cpu_info();
  py::dict caches;
  caches["l1d"] = info.cpu.caches.l1d;
  caches["l2"] = info.cpu.caches.l2;
  caches["l3"] = info.cpu.caches.l3;
  py::list targets;
  for (const TargetStatus& status : all_targets()) {
    py::dict target;
    target["name"] = status.target->name;
    target["description"] = status.target->description;
    target["available"] = status.unavailable.empty();
    target["reason"] = status.unavailable;
    targets.append(target);
  }
  py::dict result;
  result["vendor"] = info.cpu.vendor;
  result["brand"] = info.cpu.brand;
  result["features"] = info.features;
  result["caches"] = caches;
  result["logical"] = info.limits.logical;
  result["affinity"] = info.limits.affinity;
  result["quota"] = info.limits.quota;
  result["targets"] = targets;
  return result;
}

py::dict bound_explain(int64_t rows, const BoundWeight& w, const std::string& compute,
                       int num_threads) {
  const Plan plan = plan_linear(w.view, parse_compute(compute), rows, num_threads);
  py::dict result;
  result["target"] = active_kernels().name;
  result["kernel"] = plan.tile.kernel;
  result["compute"] = compute;
  result["rows"] = rows;
  result["tile"] = py::make_tuple(plan.tile.rows, plan.tile.panels * kPanel);
  result["depth_block"] = plan.tile.depth;
  result["threads"] = plan.threads;
  result["tasks"] = plan.tasks;
  result["reason"] =
      std::string(plan.tile.depth == 0
                      ? "few rows: weights are read once, straight from the packed planes; "
                      : "many rows sweep the weights a block at a time, expanded if need be; ") +
      "threads: " + plan.reason;
  return result;
}

// For tests: why each target cannot run on such a CPU, or "". (name, reason), best first.
std::vector<std::pair<std::string, std::string>> bound_targets_on(
    const std::vector<std::string>& features, const std::string& why_no_tiles) {
  std::vector<std::pair<std::string, std::string>> result;
  const CpuFeatures cpu{feature_mask(features)};
  for (const TargetStatus& status : targets_on(cpu, [&] { return why_no_tiles; })) {
    result.emplace_back(status.target->name, status.unavailable);
  }
  return result;
}

py::dict build_info() {
  py::dict info;
  info["version"] = NIBBLAS_VERSION;
  info["compiler"] = NIBBLAS_COMPILER;
  info["build_type"] = NIBBLAS_BUILD_TYPE;
  info["sanitizers"] = NIBBLAS_SANITIZERS;
  return info;
}

}  // namespace

void register_runtime(py::module_& m) {
  m.def("target", [] { return std::string(active_target().name); });
  m.def("available_targets", &target_names);
  m.def("set_target", [](const std::string& name) { set_target(name); }, py::arg("name"));
  m.def("targets_on", &bound_targets_on, py::arg("features"), py::arg("why_no_tiles") = "");
  m.def("why_no_tiles", &why_no_tiles);
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("n"));
  m.def("cpu_info", &bound_cpu_info);
  m.def("explain", &bound_explain, py::arg("rows"), py::arg("weight"),
        py::arg("compute") = "int8", py::arg("num_threads") = 0);
  m.def("peak_dot", [](double seconds) {
    double rate = 0;
    without_gil([&] { rate = peak_dot(seconds); });
    return rate;
  }, py::arg("seconds"));
  m.def("read_bandwidth", [](int64_t nbytes) {
    if (nbytes < 4096) throw std::invalid_argument("nbytes must be at least 4096");
    double rate = 0;
    without_gil([&] { rate = read_bandwidth(nbytes); });
    return rate;
  }, py::arg("nbytes"));
  m.def("build_info", &build_info);
}

}  // namespace nibblas
