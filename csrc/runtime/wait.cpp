// SPDX-License-Identifier: Apache-2.0
#include "runtime/wait.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace nibblas {

#if defined(__linux__)

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t),
              "the kernel compares the word itself");

void wait_on(std::atomic<uint32_t>& word, uint32_t expected) {
  ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void wake(const std::atomic<uint32_t>* word) {
  ::syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

void forget_waiters() {}  // futexes have no state of their own

#else

namespace {

// Where the threads sleep whose words fall here: each wake stirs them all, and they look again.
struct Dormitory {
  std::mutex mutex;
  std::condition_variable stirred;
};

// Enough that the sleepers of a large machine seldom share one; a prime spreads regular addresses.
constexpr std::uintptr_t kDormitories = 61;

// Leaked: workers sleep here until the process has ended.
std::atomic<Dormitory*> g_dormitories{nullptr};

Dormitory& dormitory(const std::atomic<uint32_t>* word) {
  Dormitory* known = g_dormitories.load(std::memory_order_acquire);
  if (known == nullptr) {
    Dormitory* mine = new Dormitory[kDormitories];
    if (g_dormitories.compare_exchange_strong(known, mine)) {
      known = mine;
    } else {
      delete[] mine;
    }
  }
  return known[reinterpret_cast<std::uintptr_t>(word) / 64 % kDormitories];
}

}  // namespace

void wait_on(std::atomic<uint32_t>& word, uint32_t expected) {
  Dormitory& place = dormitory(&word);
  std::unique_lock<std::mutex> lock(place.mutex);
  if (word.load(std::memory_order_acquire) == expected) place.stirred.wait(lock);
}

void wake(const std::atomic<uint32_t>* word) {
  Dormitory& place = dormitory(word);
  // Whoever looked at its word before the change is asleep once the mutex is ours.
  place.mutex.lock();
  place.mutex.unlock();
  place.stirred.notify_all();
}

void forget_waiters() { g_dormitories.store(nullptr, std::memory_order_relaxed); }

#endif

}  // namespace nibblas
