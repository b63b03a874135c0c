// SPDX-License-Identifier: Apache-2.0
// The thread pool. See pool.cpp for how it works and why.
#pragma once

#include <cstdint>

#include "runtime/num_threads.h"

namespace nibblas {

using TaskFn = void (*)(void* context, int64_t task, int thread);

// Runs fn(context, task, thread) once for each task in 0..tasks-1, on at most `threads` threads
// (the caller's is one, and kMaxThreads the most), and returns when all are done. Tasks are handed
// out one by one in ascending order, so let there be several per thread.
//
// `thread` is in 0..threads-1, and no two tasks that run at once share it: an index for scratch
// memory. Fewer threads than asked for may take part, so tasks must not wait for each other. All
// run in the floating-point environment of the contract (fp_env.h), also where there is but one
// thread or one task, which never leaves the caller.
//
// Inside an Interruptible (interrupt.h) that has been interrupted, tasks may be left out: let them
// be well below a tenth of a second each.
//
// Tasks must not throw (std::terminate) and must not touch Python. Any number of threads may call
// at once. A task may call parallel_for: the inner one runs on that task's thread alone.
void parallel_for(int64_t tasks, int threads, TaskFn fn, void* context) noexcept;

// The same for a callable body(task, thread).
template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) noexcept {
  const TaskFn call = [](void* context, int64_t task, int thread) {
    (*static_cast<const Body*>(context))(task, thread);
  };
  parallel_for(tasks, threads, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace nibblas
