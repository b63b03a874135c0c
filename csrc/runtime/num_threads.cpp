// SPDX-License-Identifier: Apache-2.0
#include "runtime/num_threads.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <optional>
#include <stdexcept>
#include <string>

#include "runtime/cpu_limits.h"
#include "runtime/os.h"

namespace nibblas {
namespace {

std::atomic<int> g_chosen{0};   // by set_num_threads; 0 for the default
std::atomic<int> g_default{0};  // 0 before it is known

}  // namespace

int machine_cpus() {
  static std::atomic<int> known{0};
  int cpus = known.load(std::memory_order_relaxed);
  if (cpus == 0) {
    CpuLimits limits = cpu_limits();
    limits.affinity = limits.logical;
    cpus = limits.threads();
    known.store(cpus, std::memory_order_relaxed);
  }
  return cpus;
}

int default_num_threads() {
  int threads = g_default.load(std::memory_order_relaxed);
  if (threads != 0) return threads;
  if (const std::optional<std::string> text = environment_variable("NIBBLAS_NUM_THREADS")) {
    const char* end = text->data() + text->size();
    const auto [parsed, error] = std::from_chars(text->data(), end, threads);
    if (error != std::errc() || parsed != end || threads < 1 || threads > kMaxThreads) {
      throw std::invalid_argument("NIBBLAS_NUM_THREADS must be an integer from 1 to " +
                                  std::to_string(kMaxThreads) + ", got \"" + *text + '"');
    }
  } else {
    threads = std::min(cpu_limits().threads(), kMaxThreads);
  }
  g_default.store(threads, std::memory_order_relaxed);
  return threads;
}

int get_num_threads() {
  const int chosen = g_chosen.load(std::memory_order_relaxed);
  return chosen != 0 ? chosen : default_num_threads();
}

void set_num_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("the number of threads must be from 1 to " +
                                std::to_string(kMaxThreads) + ", got " + std::to_string(threads));
  }
  g_chosen.store(threads, std::memory_order_relaxed);
}

}  // namespace nibblas
