// SPDX-License-Identifier: Apache-2.0
// Aligned memory, and scratch buffers that a thread keeps from call to call.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>

namespace nibblas {

// A cache line, a zmm register and a row of packed codes are 64 bytes.
constexpr std::size_t kAlignment = 64;

// `alignment` is a power of two. Never null, also for 0 bytes; throws std::bad_alloc.
void* allocate_aligned(std::size_t bytes, std::size_t alignment = kAlignment);
void free_aligned(void* memory) noexcept;

// Asks for 2 MiB pages where the system has them; does nothing below 4 MiB, the size that holds a
// whole such page wherever it starts.
void advise_huge_pages(void* memory, std::size_t bytes) noexcept;

// Scratch memory for one call: make one on the stack, get() buffers, let it go. The memory comes
// from a block that the thread keeps, so that repeated calls do not allocate.
//
// Scratches nest: an inner one on the same thread has memory of its own. Buffers may be used by
// other threads while the Scratch lives, but get() belongs to the thread that made it.
class Scratch {
 public:
  Scratch() noexcept;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Uninitialized, 64-byte aligned, valid until the Scratch ends. Throws std::bad_alloc.
  template <class T>
  T* get(std::size_t count) {
    static_assert(std::is_trivial_v<T> && alignof(T) <= kAlignment);
    if (count > std::numeric_limits<std::size_t>::max() / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(get_bytes(count * sizeof(T)));
  }

  struct Block;

 private:
  void* get_bytes(std::size_t bytes);

  Block* newest_;          // where buffers come from; older, full blocks hang behind it
  std::size_t used_ = 0;   // bytes handed out of the newest block
  std::size_t total_ = 0;  // bytes handed out of all
};

}  // namespace nibblas
