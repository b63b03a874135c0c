// SPDX-License-Identifier: Apache-2.0
// A pool of workers that wait for offers.
//
// A job lives on its caller's stack. The caller offers it to idle workers, one letter box each,
// wakes those that sleep, and starts on the tasks itself. When none is left it withdraws the offers
// that nobody has taken up, so that a small job never waits for a worker to wake, and waits for the
// workers that did.
//
// Several application threads may call at once. They share the workers: each takes those that are
// idle, works in any case itself, and so never blocks on another's job. A caller that got fewer
// workers than it could use posts its job on a board, where workers look whenever they finish
// something: otherwise a long job that began a moment too late would run on one core to its end,
// beside idle ones. There are never more running threads than workers and callers.
//
// Nothing is ever joined or destroyed: workers are detached, and a forked child, which inherits
// none of them, forgets the pool and makes another when it needs one.
#include "runtime/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>

#include "runtime/cpu_limits.h"
#include "runtime/fp_env.h"
#include "runtime/interrupt.h"
#include "runtime/thread.h"
#include "runtime/wait.h"

namespace nibblas {
namespace {

using Clock = std::chrono::steady_clock;

// Two cache lines: Intel's spatial prefetcher fetches lines in pairs.
constexpr std::size_t kNoSharing = 128;

// The layers of a model call one after the other, a few us of Python apart: too short for sleep.
// Waking a thread takes up to about 50 us, and who waits that long before going to sleep never pays
// more than twice what the better of the two would have cost.
constexpr auto kSpinTime = std::chrono::microseconds(50);

// Spins until ready() or kSpinTime has passed; says whether it was ready.
template <class Ready>
bool spin_until(const Ready& ready) {
  const Clock::time_point start = Clock::now();
  do {
    for (int i = 0; i < 16; ++i) {  // a pause is 10..140 cycles: about 1 us between clock reads
      if (ready()) return true;
      spin_pause();
    }
  } while (Clock::now() - start < kSpinTime);
  return false;
}

// In `seats`: the caller sleeps there and wants to be woken by the last helper.
constexpr uint32_t kCallerSleeps = 1u << 31;

struct Job {
  TaskFn fn = nullptr;
  void* context = nullptr;
  int64_t tasks = 0;
  bool spin = false;   // whether the CPUs suffice for its threads to spin
  int offers_end = 0;  // no worker from this one on has had an offer

  // Guarded by Pool::board_mutex_.
  uint32_t openings = 0;  // seats that any worker may take from the board
  bool on_board = false;
  Job* next_on_board = nullptr;

  alignas(kNoSharing) std::atomic<int64_t> next_task{0};
  std::atomic<int> next_thread{1};  // 0 is the caller

  // One for each helper wanted. A seat ends when its helper leaves or the caller withdraws it; the
  // job may be touched until all have ended.
  alignas(kNoSharing) std::atomic<uint32_t> seats{0};

  bool exhausted() const { return next_task.load(std::memory_order_relaxed) >= tasks; }
};

// In a letter box: its worker is at work.
Job g_busy;

class Pool;

struct alignas(kNoSharing) Worker {
  std::atomic<Job*> offer{nullptr};  // nullptr: idle -> a job, by its caller -> &g_busy -> nullptr
  std::atomic<uint32_t> asleep{0};
  Pool* pool = nullptr;
};

// Set on workers, and on a caller while it works: an inner parallel_for stays on its thread.
thread_local bool t_inside NIBBLAS_THERE_AT_START = false;

// A worker's share.
void work(Job& job, int thread) noexcept {
  for (;;) {
    const int64_t task = job.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    job.fn(job.context, task, thread);
  }
}

// The caller's share, which it may give up, and with it the tasks that no worker has begun.
void work_as_caller(Job& job, TaskBreaks& breaks) noexcept {
  int64_t done = 0;
  for (;;) {
    const int64_t task = job.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    job.fn(job.context, task, 0);
    if (++done < breaks.tasks_per_look() || job.exhausted()) continue;
    if (breaks.look()) job.next_task.store(job.tasks, std::memory_order_relaxed);
    done = 0;
  }
}

void run_alone(int64_t tasks, TaskFn fn, void* context, TaskBreaks& breaks) noexcept {
  for (int64_t task = 0; task < tasks;) {
    const int64_t stop = task + std::min(breaks.tasks_per_look(), tasks - task);
    for (; task < stop; ++task) fn(context, task, 0);
    if (task < tasks && breaks.look()) return;
  }
}

class Pool {
 public:
  void run(Job& job, int helpers, TaskBreaks& breaks);

 private:
  // The caller's side.
  void grow(int helpers);
  uint32_t offer(Job& job, uint32_t wanted);
  void post(Job& job, uint32_t openings);
  uint32_t withdraw(Job& job);
  static void await_helpers(Job& job, uint32_t withdrawn);

  // The worker's side.
  Job* next_job(Worker& self);
  Job* join_from_board();
  void idle(Worker& self, bool spin);
  void serve(Worker& self);
  static void thread_main(void* worker);

  void take_off_board(Job& job);

  const int cpus_ = cpu_limits().whole();

  std::mutex grow_mutex_;
  Clock::time_point next_attempt_ = Clock::time_point::min();
  std::atomic<int> size_{0};
  Worker* workers_[kMaxThreads - 1] = {};  // the first size_ are valid and stay so

  std::mutex board_mutex_;
  Job* board_ = nullptr;
  // Jobs on the board. With `offer` it makes the handshake that loses no job: a worker first frees
  // its letter box and then looks here, a caller first counts here and then tries the letter boxes.
  // Both are sequentially consistent, so at least one of the two sees the other.
  alignas(kNoSharing) std::atomic<int> posted_{0};
};

// --- The caller ---

void Pool::run(Job& job, int helpers, TaskBreaks& breaks) {
  const auto wanted = static_cast<uint32_t>(helpers);
  if (size_.load(std::memory_order_relaxed) < helpers) grow(helpers);
  job.spin = helpers < cpus_;
  job.seats.store(wanted, std::memory_order_relaxed);

  const uint32_t offered = offer(job, wanted);
  if (offered < wanted) post(job, wanted - offered);
  t_inside = true;
  work_as_caller(job, breaks);
  t_inside = false;
  await_helpers(job, withdraw(job));
}

void Pool::grow(int helpers) {
  const std::lock_guard<std::mutex> lock(grow_mutex_);
  // After a failure (EAGAIN: a limit on processes or memory) the job makes do with what there is.
  // Limits pass, so try again, though not at every call of 10 us.
  if (Clock::now() < next_attempt_) return;
  for (int size = size_.load(std::memory_order_relaxed); size < helpers; ++size) {
    Worker* worker = new (std::nothrow) Worker;
    if (worker != nullptr) worker->pool = this;
    if (worker == nullptr || !start_thread(thread_main, worker)) {
      delete worker;
      next_attempt_ = Clock::now() + std::chrono::seconds(1);
      return;
    }
    workers_[size] = worker;
    size_.store(size + 1, std::memory_order_release);
  }
}

// Offers the job to as many idle workers as wanted; returns to how many. Always from the first, so
// that a caller meets the same workers, with their caches, and the others sleep.
uint32_t Pool::offer(Job& job, uint32_t wanted) {
  uint32_t offered = 0;
  const int size = size_.load(std::memory_order_acquire);
  for (int i = 0; i < size && offered < wanted; ++i) {
    Worker& worker = *workers_[i];
    Job* expected = nullptr;
    if (worker.offer.load(std::memory_order_seq_cst) != nullptr ||
        !worker.offer.compare_exchange_strong(expected, &job)) {
      continue;
    }
    ++offered;
    job.offers_end = std::max(job.offers_end, i + 1);
    if (worker.asleep.load() != 0 && worker.asleep.exchange(0) != 0) wake(&worker.asleep);
  }
  return offered;
}

void Pool::post(Job& job, uint32_t openings) {
  const std::lock_guard<std::mutex> lock(board_mutex_);
  posted_.fetch_add(1);
  job.openings = openings - offer(job, openings);  // to those that have become idle meanwhile
  Job** end = &board_;                             // helped in the order they came
  while (*end != nullptr) end = &(*end)->next_on_board;
  *end = &job;
  job.on_board = true;
  if (job.openings == 0) take_off_board(job);
}

// Ends the seats that nobody has taken; returns their number.
uint32_t Pool::withdraw(Job& job) {
  if (posted_.load() != 0) {  // includes this job, if it is on the board
    const std::lock_guard<std::mutex> lock(board_mutex_);
    if (job.on_board) take_off_board(job);
  }
  uint32_t withdrawn = job.openings;
  for (int i = 0; i < job.offers_end; ++i) {
    Job* expected = &job;
    if (workers_[i]->offer.load(std::memory_order_relaxed) == &job &&
        workers_[i]->offer.compare_exchange_strong(expected, nullptr)) {
      ++withdrawn;
    }
  }
  return withdrawn;
}

void Pool::await_helpers(Job& job, uint32_t withdrawn) {
  if (job.seats.fetch_sub(withdrawn, std::memory_order_acq_rel) == withdrawn) return;
  const auto done = [&job] { return job.seats.load(std::memory_order_acquire) == 0; };
  if (job.spin && spin_until(done)) return;
  uint32_t left = job.seats.fetch_or(kCallerSleeps, std::memory_order_acq_rel) | kCallerSleeps;
  while (left != kCallerSleeps) {
    wait_on(job.seats, left);
    left = job.seats.load(std::memory_order_acquire);
  }
}

// --- The worker ---

void Pool::serve(Worker& self) {
  const FpEnvironment environment;  // once: nothing else ever runs on this thread
  t_inside = true;
  bool spin = false;
  for (;;) {
    Job* job = next_job(self);
    if (job == nullptr) {
      idle(self, spin);
      continue;
    }
    work(*job, job->next_thread.fetch_add(1, std::memory_order_relaxed));
    spin = job->spin;
    // Idle first, so that the caller's next job, which may follow at once, finds this worker.
    self.offer.store(nullptr);
    // The last touch of the job.
    std::atomic<uint32_t>* seats = &job->seats;
    if (seats->fetch_sub(1, std::memory_order_acq_rel) == (kCallerSleeps | 1)) wake(seats);
  }
}

void Pool::thread_main(void* argument) {
  Worker& self = *static_cast<Worker*>(argument);
  self.pool->serve(self);
}

// A job with a seat taken in it, the letter box marked busy; or nullptr, the letter box as it was.
Job* Pool::next_job(Worker& self) {
  Job* offered = self.offer.load(std::memory_order_acquire);
  if (offered == nullptr && posted_.load() != 0 &&
      self.offer.compare_exchange_strong(offered, &g_busy)) {
    Job* job = join_from_board();
    if (job == nullptr) self.offer.store(nullptr);
    return job;
  }
  // The caller may withdraw the offer at any moment; whoever changes the letter box first has it.
  if (offered != nullptr && self.offer.compare_exchange_strong(offered, &g_busy)) return offered;
  return nullptr;
}

Job* Pool::join_from_board() {
  const std::lock_guard<std::mutex> lock(board_mutex_);
  while (board_ != nullptr && board_->exhausted()) take_off_board(*board_);
  Job* job = board_;
  if (job != nullptr && --job->openings == 0) take_off_board(*job);
  return job;
}

void Pool::take_off_board(Job& job) {
  Job** link = &board_;
  while (*link != &job) link = &(*link)->next_on_board;
  *link = job.next_on_board;
  job.on_board = false;
  posted_.fetch_sub(1);
}

void Pool::idle(Worker& self, bool spin) {
  const auto called = [&] { return self.offer.load() != nullptr || posted_.load() != 0; };
  if (spin && spin_until(called)) return;
  // A caller writes `offer` and then reads `asleep`; here it is the other way round, so one of the
  // two sees the other (all four sequentially consistent).
  self.asleep.store(1);
  if (!called()) wait_on(self.asleep, 1);
  self.asleep.store(0);
}

// --- The process's pool ---

std::atomic<Pool*> g_pool{nullptr};

// In the child of a fork: the workers exist no more, and locks may be held for ever.
void forget_pool() {
  forget_waiters();
  g_pool.store(nullptr, std::memory_order_relaxed);
}

// nullptr if there is no memory for it, or no way to be safe after a fork.
Pool* pool() noexcept {
  Pool* known = g_pool.load(std::memory_order_acquire);
  if (known != nullptr) return known;
  // Before the pool exists, and marked afterwards: a fork in between, or two threads here, register
  // twice, which does no harm.
  static std::atomic<bool> registered{false};
  if (!registered.load(std::memory_order_acquire)) {
    if (!at_fork_in_child(forget_pool)) return nullptr;
    registered.store(true, std::memory_order_release);
  }
  Pool* mine = nullptr;
  try {
    mine = new Pool;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  if (g_pool.compare_exchange_strong(known, mine, std::memory_order_acq_rel)) return mine;
  delete mine;
  return known;
}

}  // namespace

void parallel_for(int64_t tasks, int threads, TaskFn fn, void* context) noexcept {
  TaskBreaks breaks;
  if (breaks.interrupted()) return;
  const FpEnvironment environment;
  const int64_t useful = std::min<int64_t>({tasks, threads, kMaxThreads});
  Pool* workers = useful > 1 && !t_inside ? pool() : nullptr;
  if (workers == nullptr) {
    run_alone(tasks, fn, context, breaks);
    return;
  }
  Job job;
  job.fn = fn;
  job.context = context;
  job.tasks = tasks;
  workers->run(job, static_cast<int>(useful) - 1, breaks);
}

}  // namespace nibblas
