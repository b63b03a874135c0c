// SPDX-License-Identifier: Apache-2.0
#include "runtime/tile_permission.h"

#if defined(__linux__) && NIBBLAS_X86
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <system_error>
#endif

namespace nibblas {

#if defined(__linux__) && NIBBLAS_X86

namespace {

constexpr int kUnasked = -1;
std::atomic<int> g_answer{kUnasked};  // 0 if granted, else errno

// Two threads may both ask: the answer is the same.
int ask() {
  constexpr long kArchReqXcompPerm = 0x1023;  // asm/prctl.h of Linux 5.16
  constexpr long kTileData = 18;              // the number of that state in XCR0
  return ::syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0 ? 0 : errno;
}

}  // namespace

std::string why_no_tiles() {
  int answer = g_answer.load(std::memory_order_acquire);
  if (answer == kUnasked) {
    answer = ask();
    g_answer.store(answer, std::memory_order_release);
  }
  if (answer == 0) return "";
  if (answer == ENOSPC) return "Linux refused tiles: an alternate signal stack is too small";
  return "Linux refused tiles: " + std::generic_category().message(answer);
}

#else

std::string why_no_tiles() { return ""; }

#endif

}  // namespace nibblas
