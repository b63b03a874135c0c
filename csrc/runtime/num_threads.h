// SPDX-License-Identifier: Apache-2.0
// How many threads an operation uses unless it is told.
#pragma once

namespace nibblas {

// More than the largest machines have cores that are worth one job.
constexpr int kMaxThreads = 1024;

// The machine's CPUs, or fewer under a cgroup quota, rounded up; whatever the thread's affinity.
// Read once.
int machine_cpus();

// NIBBLAS_NUM_THREADS, or else the CPUs this process may use: its affinity within its cgroup quota,
// rounded up. Read once. Throws std::invalid_argument, at every call until it is put right, if the
// variable is not an integer from 1 to kMaxThreads.
int default_num_threads();

// What set_num_threads() chose, or else the default (and its exception).
int get_num_threads();

// Throws std::invalid_argument outside 1..kMaxThreads.
void set_num_threads(int threads);

}  // namespace nibblas
