// SPDX-License-Identifier: Apache-2.0
// The facts behind nibblas.cpu_info(), read afresh at each call.
#pragma once

#include <vector>

#include "runtime/cpu.h"
#include "runtime/cpu_limits.h"

namespace nibblas {

struct CpuInfo {
  Cpu cpu;
  CpuLimits limits;
  std::vector<const char*> features;
};

inline CpuInfo cpu_info() { return {cpu(), cpu_limits(), feature_names(cpu().features.bits)}; }

}  // namespace nibblas
