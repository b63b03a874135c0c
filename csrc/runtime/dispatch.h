// SPDX-License-Identifier: Apache-2.0
// The targets as data, and which of them is in use. Process-wide and atomic: an operation reads the
// active target once, at its start, so a change never splits one call over two targets.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cpu.h"
#include "targets/kernel_table.h"

namespace nibblas {

struct TargetInfo {
  const char* name;
  const char* description;
  uint64_t required;  // mask of nibblas::feature bits
  const KernelTable* kernels;
  const FloatTable* floats;
  const ConversionTable* conversions;

  const ProductTable& products(Compute compute) const {
    return compute == Compute::int8 ? kernels->products : floats->products;
  }
};

// The target in use. The first call picks NIBBLAS_TARGET, or else the best available. Throws
// std::invalid_argument, at every call until it is put right, if that variable names a target that
// is unknown or that this CPU cannot run: a forced target never falls back silently.
const TargetInfo& active_target();

inline const KernelTable& active_kernels() { return *active_target().kernels; }
inline const FloatTable& active_floats() { return *active_target().floats; }
inline const ConversionTable& active_conversions() { return *active_target().conversions; }

// Uses another target from now on, also in place of a faulty NIBBLAS_TARGET. Throws
// std::invalid_argument, and changes nothing, if the target is unknown or cannot run here.
void set_target(std::string_view name);

// Those that this CPU can run, best first. "scalar" is always the last.
std::vector<const TargetInfo*> available_targets();

struct TargetStatus {
  const TargetInfo* target;
  std::string unavailable;  // why it cannot run here, such as "needs avx512_vnni"; "" if it can
};

// Every target compiled in, best first.
std::vector<TargetStatus> all_targets();

// The same on a CPU with these features, where `no_tiles` stands for the operating system: see
// why_no_tiles. For tests of what other CPUs would run.
std::vector<TargetStatus> targets_on(const CpuFeatures& features,
                                     const std::function<std::string()>& no_tiles);

}  // namespace nibblas
