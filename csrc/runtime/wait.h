// SPDX-License-Identifier: Apache-2.0
// Waiting: a pause for spin loops, and sleep on a 32-bit word. Linux's futex, or mutexes and
// condition variables elsewhere.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace nibblas {

// Tells the core that this is a spin loop: it leaves resources to the other hyperthread.
inline void spin_pause() {
#if defined(_MSC_VER) && defined(_M_X64)
  _mm_pause();
#elif defined(_MSC_VER) && defined(_M_ARM64)
  __isb(_ARM64_BARRIER_SY);
#elif defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // most cores run `yield` as a nop; a pipeline flush does pause them
#endif
}

// Sleeps until woken, unless the word differs from `expected`. May return for no reason.
void wait_on(std::atomic<uint32_t>& word, uint32_t expected);

// Wakes the thread that sleeps on this word, if one does. Uses the address alone: the word may be
// gone by then, and at worst a later owner of the address wakes for no reason.
void wake(const std::atomic<uint32_t>* word);

// In a fork's child, before any other use: forgets what the threads of the parent held.
void forget_waiters();

}  // namespace nibblas
