// SPDX-License-Identifier: Apache-2.0
// How much of the machine this process may use.
#pragma once

#include <optional>
#include <string>

namespace nibblas {

struct CpuLimits {
  int logical = 1;              // online CPUs of the machine
  int affinity = 1;             // those that the calling thread may run on
  std::optional<double> quota;  // CPUs' worth of time that the cgroup grants; none if unlimited

  // Threads that can make progress at once: a started CPU of quota counts.
  int threads() const;
  // CPUs that the process has to itself: more threads than these must not spin, because a waiting
  // thread would burn the time that a working one needs.
  int whole() const;
};

CpuLimits cpu_limits();

// The tightest quota among the process's own cgroup and its parents, version 1 and 2. `root` is
// put before every path read, so that a test can bring its own /proc and /sys.
std::optional<double> cgroup_quota(const std::string& root = "");

}  // namespace nibblas
