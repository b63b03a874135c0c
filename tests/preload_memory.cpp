// SPDX-License-Identifier: Apache-2.0
// Preloaded by tests/test_memory.py, with glibc: takes over the memory that the native module asks
// for: arrays, scratch, and what operator new gives.
//
// NIBBLAS_TEST_FENCE=start or end: what posix_memalign gives starts at a page that nobody may
// touch, or ends there (up to the alignment; those bytes are watched), and is never used again once
// freed.
//
// nibblas_test_fail(n): counted from now, the n-th allocation of the module's own code fails.
#include <errno.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <new>

extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_memalign(size_t, size_t);
extern "C" void __libc_free(void*);

namespace {

// --- fences

constexpr size_t kPage = 4096;
constexpr size_t kRegion = size_t{1} << 38;
constexpr char kWatched = '\xA5';

struct Block {
  char *first, *last;  // the pages that may be touched
  size_t size;
};

char *region, *free_from;
Block* blocks;  // by the page that the data starts in
bool at_end;

char* reserve(size_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, protection, flags, -1, 0);
  if (memory == MAP_FAILED) abort();
  return static_cast<char*>(memory);
}

__attribute__((constructor)) void start() {
  const char* where = getenv("NIBBLAS_TEST_FENCE");
  if (where == nullptr || *where == 0) return;
  at_end = strcmp(where, "end") == 0;
  char* table = reserve(kRegion / kPage * sizeof *blocks, PROT_READ | PROT_WRITE);
  blocks = reinterpret_cast<Block*>(table);
  region = free_from = reserve(kRegion, PROT_NONE);
}

Block& block_of(const char* data) { return blocks[(data - region) / kPage]; }

bool is_fenced(const char* data) {
  return region != nullptr && data >= region && data < region + kRegion;
}

void* fenced(size_t alignment, size_t size) {
  const size_t unit = alignment > kPage ? alignment : kPage;
  const size_t bytes = (size + kPage - 1) / kPage * kPage;
  char* memory = __atomic_fetch_add(&free_from, unit + bytes + kPage, __ATOMIC_RELAXED);
  if (memory + unit + bytes + kPage > region + kRegion) return nullptr;
  // At least a page of nobody before, and one behind.
  char* first = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + unit) / unit * unit);
  if (mprotect(first, bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  const bool is_large = alignment >= kPage;  // such arrays start at a page in any case
  char* data = first;
  if (at_end && !is_large) data = first + (bytes - size) / alignment * alignment;
  memset(first, kWatched, bytes);
  block_of(data) = Block{first, first + bytes, size};
  return data;
}

void unfence(char* data) {
  const Block block = block_of(data);
  for (char* p = block.first; p < block.last; ++p) {
    if (p == data) p += block.size;
    if (p < block.last && *p != kWatched) {
      fprintf(stderr, "written %+ld bytes from an array of %zu\n", long(p - data), block.size);
      abort();
    }
  }
  madvise(block.first, size_t(block.last - block.first), MADV_DONTNEED);
  mprotect(block.first, size_t(block.last - block.first), PROT_NONE);
}

// --- failures

// Where the code of a library is.
struct Code {
  uintptr_t first, last;

  bool has(const void* p) const {
    const auto address = reinterpret_cast<uintptr_t>(p);
    return address >= first && address < last;
  }
};

Code module, cxx_library;
long failing, seen;

int find_code(dl_phdr_info* info, size_t, void*) {
  const bool is_module = strstr(info->dlpi_name, "/_nibblas.") != nullptr;
  if (!is_module && strstr(info->dlpi_name, "/libstdc++.so") == nullptr) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    const uintptr_t first = info->dlpi_addr + part.p_vaddr;
    (is_module ? module : cxx_library) = Code{first, first + part.p_memsz};
  }
  return 0;
}

bool is_to_fail() {
  return __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED) ==
         __atomic_load_n(&failing, __ATOMIC_RELAXED);
}

// Strings and streams grow inside the C++ library.
void* new_for(const void* caller, size_t alignment, size_t size) {
  if ((module.has(caller) || cxx_library.has(caller)) && is_to_fail()) return nullptr;
  return __libc_memalign(alignment, size);
}

}  // namespace

#define CALLER __builtin_return_address(0)

extern "C" {

// Returns how many the module has made since the last call; 0: none is to fail.
long nibblas_test_fail(long n) {
  if (module.last == 0) dl_iterate_phdr(find_code, nullptr);
  if (module.last == 0) abort();
  __atomic_store_n(&failing, n, __ATOMIC_RELAXED);
  return __atomic_exchange_n(&seen, 0, __ATOMIC_RELAXED);
}

// --- in place of the C library's

int posix_memalign(void** memory, size_t alignment, size_t size) noexcept {
  if (module.has(CALLER) && is_to_fail()) return ENOMEM;
  void* given = region != nullptr ? fenced(alignment, size) : __libc_memalign(alignment, size);
  if (given == nullptr) return ENOMEM;
  *memory = given;
  return 0;
}

void free(void* memory) noexcept {
  if (is_fenced(static_cast<char*>(memory))) {
    unfence(static_cast<char*>(memory));
  } else {
    __libc_free(memory);
  }
}

void* malloc(size_t size) noexcept {
  return module.has(CALLER) && is_to_fail() ? nullptr : __libc_malloc(size);
}

}  // extern "C"

// --- in place of the C++ library's; its operator delete frees

constexpr size_t kUnit = alignof(max_align_t);

void* operator new(size_t size) {
  void* memory = new_for(CALLER, kUnit, size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return new_for(CALLER, kUnit, size);
}

void* operator new(size_t size, std::align_val_t alignment) {
  void* memory = new_for(CALLER, size_t(alignment), size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return new_for(CALLER, size_t(alignment), size);
}
