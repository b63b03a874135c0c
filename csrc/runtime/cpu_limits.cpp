// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu_limits.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <sstream>
#include <thread>
#include <vector>

#include "runtime/os.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace nibblas {
namespace {

int count_logical() {
#if defined(_WIN32)
  const long count = static_cast<long>(std::thread::hardware_concurrency());
#else
  const long count = ::sysconf(_SC_NPROCESSORS_ONLN);
#endif
  return static_cast<int>(std::max(count, 1L));
}

int count_affinity(int logical) {
#if defined(__linux__)
  // The kernel refuses a mask shorter than its own. A cpu_set_t holds 1,024 CPUs; distributions
  // build kernels for up to 8,192 today.
  for (std::size_t sets = 1; sets <= 64; sets *= 2) {
    std::vector<cpu_set_t> mask(sets);
    if (::sched_getaffinity(0, sets * sizeof(cpu_set_t), mask.data()) == 0) {
      return std::max(CPU_COUNT_S(sets * sizeof(cpu_set_t), mask.data()), 1);
    }
  }
#endif
  return logical;
}

// "quota period" in microseconds to CPUs; none for "max", -1 or a missing file.
std::optional<double> parse_quota(const std::string& text) {
  long long quota = 0;
  long long period = 0;
  std::istringstream(text) >> quota >> period;
  if (quota <= 0 || period <= 0) return std::nullopt;
  return static_cast<double>(quota) / static_cast<double>(period);
}

std::optional<double> read_quota(const std::string& folder, bool version2) {
  if (version2) return parse_quota(read_text(folder + "/cpu.max"));
  return parse_quota(read_text(folder + "/cpu.cfs_quota_us") + ' ' +
                     read_text(folder + "/cpu.cfs_period_us"));
}

bool lists(const std::string& commas, const std::string& word) {
  return (',' + commas + ',').find(',' + word + ',') != std::string::npos;
}

// The process's cgroup in the hierarchy that has the CPU controller, from lines
// "id:controllers:path" (version 2: "0::path"). "" if there is none; the top is "/".
std::string own_cgroup(const std::string& cgroups, bool version2) {
  std::istringstream lines(cgroups);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (version2 ? controllers.empty() : lists(controllers, "cpu")) return line.substr(second + 1);
  }
  return "";
}

}  // namespace

std::optional<double> cgroup_quota(const std::string& root) {
  std::optional<double> tightest;  // other systems have none of these files, and so no quota
  const std::string cgroups = read_text(root + "/proc/self/cgroup");
  std::istringstream mounts(read_text(root + "/proc/self/mountinfo"));
  for (std::string line; std::getline(mounts, line);) {
    // id parent device top mount-point options [optional ...] - type source super-options
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string skip, top, mount, type, options;
    before >> skip >> skip >> skip >> top >> mount;
    after >> type >> skip >> options;
    const bool version2 = type == "cgroup2";
    if (!version2 && !(type == "cgroup" && lists(options, "cpu"))) continue;

    // `top` is the cgroup that the mount point shows; a container may see its own there, while the
    // path still counts from the host's. Elsewhere, the mount point itself is all that is visible.
    std::string path = own_cgroup(cgroups, version2);
    if (path.empty()) continue;
    if (top == "/") top.clear();
    const bool below = path.compare(0, top.size(), top) == 0 &&
                       (path.size() == top.size() || path[top.size()] == '/') &&
                       path.find("/..") == std::string::npos;
    path = below ? path.substr(top.size()) : "";
    if (path == "/") path.clear();
    for (;;) {
      const std::optional<double> quota = read_quota(root + mount + path, version2);
      if (quota && (!tightest || *quota < *tightest)) tightest = quota;
      if (path.empty()) break;
      path.resize(path.rfind('/'));
    }
  }
  return tightest;
}

CpuLimits cpu_limits() {
  CpuLimits limits;
  limits.logical = count_logical();
  limits.affinity = count_affinity(limits.logical);
  limits.quota = cgroup_quota();
  return limits;
}

int CpuLimits::threads() const {
  if (!quota || *quota >= affinity) return affinity;
  return std::max(static_cast<int>(std::ceil(*quota)), 1);
}

int CpuLimits::whole() const {
  if (!quota || *quota >= affinity) return affinity;
  return static_cast<int>(*quota);
}

}  // namespace nibblas
