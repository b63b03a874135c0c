// SPDX-License-Identifier: Apache-2.0
#include "runtime/interrupt.h"

#include "runtime/fp_env.h"
#include "runtime/thread.h"

namespace nibblas {
namespace {

// To ask takes the GIL, for which a thread that computes in Python keeps us waiting 5 ms. So of a
// long call's own thread a twentieth may be lost, and Ctrl-C is noticed after 50 ms on average.
constexpr auto kBetweenQuestions = std::chrono::milliseconds(100);

// Tasks that take less together are not timed one by one.
constexpr auto kShort = std::chrono::milliseconds(1);

thread_local Interruptible* t_current NIBBLAS_THERE_AT_START = nullptr;

}  // namespace

Interruptible::Interruptible(Ask ask, void* context) noexcept
    : ask_(ask), context_(context), outer_(t_current) {
  t_current = this;
}

Interruptible::~Interruptible() { t_current = outer_; }

Interruptible* Interruptible::current() noexcept { return t_current; }

bool Interruptible::ask_if_due(Clock::time_point now) {
  if (interrupted_) return true;
  if (asked_ == Clock::time_point{}) asked_ = now;  // a call has its first 100 ms in peace
  if (now - asked_ < kBetweenQuestions) return false;
  interrupted_ = ask_(context_);
  FpEnvironment::enter();  // what ran there may have left the thread with another
  asked_ = Clock::now();
  return interrupted_;
}

bool TaskBreaks::look() {
  const auto now = Interruptible::Clock::now();
  // From the second look on it is known how long tasks take.
  const bool are_short = looked_ != Interruptible::Clock::time_point{} && now - looked_ < kShort;
  tasks_per_look_ = are_short ? 2 * tasks_per_look_ : 1;
  looked_ = now;
  return call_->ask_if_due(now);
}

}  // namespace nibblas
