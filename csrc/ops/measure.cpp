// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstring>

#include "ops/ops.h"
#include "runtime/dispatch.h"
#include "runtime/fp_env.h"
#include "runtime/scratch.h"

namespace nibblas {
namespace {

double now() {
  const auto t = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(t).count();
}

}  // namespace

double peak_dot(double seconds) {
  const KernelTable& kernels = active_kernels();
  constexpr int64_t iterations = 20000;  // well below a millisecond: interruptions show
  const FpEnvironment environment;
  double best = 0;
  const double end = now() + seconds;
  do {
    const double start = now();
    const double multiply_adds = kernels.peak(iterations);
    best = std::max(best, 2 * multiply_adds / (now() - start));
  } while (now() < end);
  return best / 1e9;
}

double read_bandwidth(int64_t bytes) {
  const FloatTable& floats = active_floats();
  const size_t size = static_cast<size_t>(bytes);
  // Beyond the end there is what the streams prefetch, which need not exist.
  char* data = static_cast<char*>(allocate_aligned(size));
  advise_huge_pages(data, size);
  std::memset(data, 1, size);  // pages that were never written are all one page of zeros
  double best = 0;
  volatile int64_t sink = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int streams : {1, 2, 4, 8}) {
      const double start = now();
      sink = floats.read(data, size, streams);
      best = std::max(best, static_cast<double>(bytes) / (now() - start));
    }
  }
  static_cast<void>(sink);
  free_aligned(data);
  return best / 1e9;
}

}  // namespace nibblas
