// SPDX-License-Identifier: Apache-2.0
#include "runtime/thread.h"

#include <chrono>
#include <thread>

#if defined(_WIN32)
#include <system_error>
#else
#include <pthread.h>
#include <signal.h>

#include <cstddef>
#include <memory>
#include <new>
#endif

namespace nibblas {

#if defined(_WIN32)

bool start_thread(void (*run)(void*), void* argument) {
  try {
    std::thread(run, argument).detach();
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

bool at_fork_in_child(void (*)()) { return true; }  // Windows does not fork

bool at_thread_end(void (*handler)()) {
  struct End {
    void (*handler)() = nullptr;
    ~End() {
      if (handler != nullptr) handler();
    }
  };
  thread_local End end;
  end.handler = handler;
  return true;
}

#else

namespace {

struct Start {
  void (*run)(void*);
  void* argument;
};

void* thread_main(void* start) {
#if defined(__linux__)
  ::pthread_setname_np(::pthread_self(), "nibblas");  // as top and debuggers show it
#endif
  const Start copy = *std::unique_ptr<Start>(static_cast<Start*>(start));
  copy.run(copy.argument);
  return nullptr;
}

}  // namespace

bool start_thread(void (*run)(void*), void* argument) {
  // The same on every system: glibc would take 8 MiB, which counts against limits on address space,
  // musl 128 KiB. Kernels keep some KiB on the stack.
  constexpr std::size_t kStack = std::size_t{1} << 20;
  std::unique_ptr<Start> start(new (std::nothrow) Start{run, argument});
  pthread_attr_t attributes;
  if (start == nullptr || ::pthread_attr_init(&attributes) != 0) return false;
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  ::pthread_attr_setstacksize(&attributes, kStack);
  // A thread inherits the mask. Signals belong to the application and go to its own threads.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const bool started = ::pthread_create(&thread, &attributes, thread_main, start.get()) == 0;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_attr_destroy(&attributes);
  if (started) static_cast<void>(start.release());  // the thread's now
  return started;
}

bool at_fork_in_child(void (*handler)()) {
  return ::pthread_atfork(nullptr, nullptr, handler) == 0;
}

bool at_thread_end(void (*handler)()) {
  struct Key {
    pthread_key_t key;
    bool is_valid;
    explicit Key(void (*destructor)(void*))
        : is_valid(::pthread_key_create(&key, destructor) == 0) {}
  };
  static void (*const call)() = handler;
  static const Key end([](void*) { call(); });
  // Any value but null has the handler called.
  return end.is_valid && ::pthread_setspecific(end.key, &end) == 0;
}

#endif

void sleep_forever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace nibblas
