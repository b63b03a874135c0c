// SPDX-License-Identifier: Apache-2.0
// Threads that are never joined, and the moment after a fork.
#pragma once

#if defined(__linux__)
#include <features.h>
#endif

// Follows thread_local. glibc gives a thread the variables of a library that was loaded later when
// it first touches one, and ends the process if it has no memory then. In the model initial-exec
// they are there from the thread's start. (There is room for some hundred bytes in a process, and
// these are a few dozen. musl has no such room, nor the fault.)
#if defined(__GLIBC__)
#define NIBBLAS_THERE_AT_START __attribute__((tls_model("initial-exec")))
#else
#define NIBBLAS_THERE_AT_START
#endif

namespace nibblas {

// Starts a detached thread with every signal blocked; false if the system has none to give.
bool start_thread(void (*run)(void*), void* argument);

// Calls `handler` in the child of every fork from now on; false if it cannot be arranged.
bool at_fork_in_child(void (*handler)());

// Calls `handler` when the calling thread ends; false if it cannot be arranged. There is one
// handler in a process. (The destructor of a thread_local would do, but glibc ends the process
// where there is no memory for its registration.)
bool at_thread_end(void (*handler)());

// Stops the calling thread until the process ends.
[[noreturn]] void sleep_forever();

}  // namespace nibblas
