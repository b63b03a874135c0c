// SPDX-License-Identifier: Apache-2.0
#include "runtime/scratch.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "runtime/thread.h"

#if defined(_WIN32)
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace nibblas {

void* allocate_aligned(std::size_t bytes, std::size_t alignment) {
  bytes = std::max<std::size_t>(bytes, 1);
#if defined(_WIN32)
  void* memory = ::_aligned_malloc(bytes, alignment);
#else
  void* memory = nullptr;
  if (::posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) memory = nullptr;
#endif
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void free_aligned(void* memory) noexcept {
#if defined(_WIN32)
  ::_aligned_free(memory);
#else
  std::free(memory);
#endif
}

void advise_huge_pages(void* memory, std::size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::size_t kLeast = std::size_t{4} << 20;
  if (bytes < kLeast) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (start + page - 1) & ~(page - 1);  // whole pages only: the ends
  const std::uintptr_t last = (start + bytes) & ~(page - 1);      // belong to other objects too
  // A kernel built without huge pages answers EINVAL, which costs nothing but the pages.
  static_cast<void>(::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#else
  static_cast<void>(memory);
  static_cast<void>(bytes);
#endif
}

// The header of a block; its memory follows, aligned because the header fills a whole unit.
struct alignas(kAlignment) Scratch::Block {
  Block* older;
  std::size_t capacity;

  unsigned char* memory() { return reinterpret_cast<unsigned char*>(this + 1); }
};

namespace {

using Block = Scratch::Block;

// A block no larger than this stays with its thread: more than the activations of a prefill of
// 4,096 rows by 8,192 features in int8 (32 MiB) with room for accumulators, and little enough to
// hold for as long as the thread lives.
constexpr std::size_t kMostKept = std::size_t{64} << 20;

// The first block, so that the small buffers of a decode step never grow it.
constexpr std::size_t kLeastBlock = std::size_t{64} << 10;

void free_blocks(Block* block) noexcept {
  while (block != nullptr) free_aligned(std::exchange(block, block->older));
}

// The block at rest. A Scratch takes it out while it lives: an inner one finds nothing here.
thread_local Block* t_kept NIBBLAS_THERE_AT_START = nullptr;

// Whether somebody will free that block at the thread's end.
thread_local bool t_will_be_freed NIBBLAS_THERE_AT_START = false;

void free_kept() {
  t_will_be_freed = false;  // until other ends of the same thread compute something
  free_blocks(std::exchange(t_kept, nullptr));
}

bool may_keep() { return t_will_be_freed || (t_will_be_freed = at_thread_end(free_kept)); }

}  // namespace

Scratch::Scratch() noexcept : newest_(std::exchange(t_kept, nullptr)) {}

Scratch::~Scratch() {
  if (newest_ == nullptr) return;
  // The newest is also the largest: it was made to hold all that came before it.
  free_blocks(std::exchange(newest_->older, nullptr));
  const bool keep = newest_->capacity <= kMostKept &&
                    (t_kept == nullptr || t_kept->capacity < newest_->capacity) && may_keep();
  if (keep) std::swap(t_kept, newest_);
  free_blocks(newest_);
}

void* Scratch::get_bytes(std::size_t bytes) {
  // No object is larger than half the address space, which keeps the sums below from wrapping.
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
  bytes = (bytes + kAlignment - 1) & ~(kAlignment - 1);
  if (newest_ == nullptr || newest_->capacity - used_ < bytes) {
    // Large enough for everything so far, so that the next call needs this one block alone.
    const std::size_t capacity = std::max(total_ + bytes, kLeastBlock);
    void* memory = allocate_aligned(sizeof(Block) + capacity);
    advise_huge_pages(memory, sizeof(Block) + capacity);
    newest_ = new (memory) Block{newest_, capacity};
    used_ = 0;
  }
  void* buffer = newest_->memory() + used_;
  used_ += bytes;
  total_ += bytes;
  return buffer;
}

}  // namespace nibblas
