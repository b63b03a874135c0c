// SPDX-License-Identifier: Apache-2.0
// Threads that are never joined, and the moment after a fork.
#pragma once

namespace nibblas {

// Starts a detached thread with every signal blocked; false if the system has none to give.
bool start_thread(void (*run)(void*), void* argument);

// Calls `handler` in the child of every fork from now on; false if it cannot be arranged.
bool at_fork_in_child(void (*handler)());

// Stops the calling thread until the process ends.
[[noreturn]] void sleep_forever();

}  // namespace nibblas
