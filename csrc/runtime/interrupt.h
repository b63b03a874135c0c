// SPDX-License-Identifier: Apache-2.0
// Long calls that may be given up. Who calls says how to find out that they shall be (bindings ask
// for signals), and the pool asks between tasks.
#pragma once

#include <chrono>
#include <cstdint>

namespace nibblas {

// While one lives, its thread's calls of parallel_for ask between tasks, at most ten times a
// second. Once the answer is yes, no further task begins: parallel_for returns as soon as those
// under way are done, and any later one at once. Results are then worthless. Scopes nest.
class Interruptible {
 public:
  using Ask = bool (*)(void* context);

  Interruptible(Ask ask, void* context) noexcept;
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  // The innermost one of this thread, or nullptr.
  static Interruptible* current() noexcept;

  bool interrupted() const { return interrupted_; }

 private:
  friend class TaskBreaks;
  using Clock = std::chrono::steady_clock;
  bool ask_if_due(Clock::time_point now);

  Ask ask_;
  void* context_;
  Interruptible* outer_;
  Clock::time_point asked_{};  // the epoch: not yet
  bool interrupted_ = false;
};

// The breaks between the tasks of one job on the thread that called, tasks of about equal length:
// so that the clock is read only where tasks are long enough for that to cost nothing.
class TaskBreaks {
 public:
  TaskBreaks() noexcept : call_(Interruptible::current()) {
    if (call_ == nullptr) tasks_per_look_ = INT64_MAX;
  }

  // Whether no task may begin any more.
  bool interrupted() const { return call_ != nullptr && call_->interrupted(); }

  // After so many tasks comes a look at the clock, if there are more; then as interrupted().
  int64_t tasks_per_look() const { return tasks_per_look_; }
  bool look();

 private:
  Interruptible* call_;
  Interruptible::Clock::time_point looked_{};
  int64_t tasks_per_look_ = 1;
};

}  // namespace nibblas
