// SPDX-License-Identifier: Apache-2.0
// Preloaded by tests/test_memory.py, with glibc: takes over the memory that the native module asks
// for: arrays and scratch.
//
// NIBBLAS_TEST_FENCE=start or end: what posix_memalign gives starts at a page that nobody may touch,
// or ends there (up to the alignment; those bytes are watched), and is never used again once freed.
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define PAGE ((size_t)4096)
#define REGION ((size_t)1 << 38)
#define WATCHED ((char)0xA5)

struct Block {
  char *first, *last;  // the pages that may be touched
  size_t size;
};

static char *region, *free_from;
static struct Block *blocks;  // by the page that the data starts in
static int at_end;

static void *reserve(size_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *memory = mmap(NULL, bytes, protection, flags, -1, 0);
  if (memory == MAP_FAILED) abort();
  return memory;
}

__attribute__((constructor)) static void start(void) {
  const char *where = getenv("NIBBLAS_TEST_FENCE");
  if (where == NULL || *where == 0) return;
  at_end = strcmp(where, "end") == 0;
  blocks = reserve(REGION / PAGE * sizeof *blocks, PROT_READ | PROT_WRITE);
  region = free_from = reserve(REGION, PROT_NONE);
}

static struct Block *block_of(const char *data) { return &blocks[(data - region) / PAGE]; }

static int is_fenced(const char *data) {
  return region != NULL && data >= region && data < region + REGION;
}

static void *fenced(size_t alignment, size_t size) {
  const size_t unit = alignment > PAGE ? alignment : PAGE;
  const size_t bytes = (size + PAGE - 1) / PAGE * PAGE;
  char *memory = __atomic_fetch_add(&free_from, unit + bytes + PAGE, __ATOMIC_RELAXED);
  if (memory + unit + bytes + PAGE > region + REGION) return NULL;
  // At least a page of nobody before, and one behind.
  char *first = (char *)(((uintptr_t)memory + unit) / unit * unit);
  if (mprotect(first, bytes, PROT_READ | PROT_WRITE) != 0) return NULL;
  const int is_large = alignment >= PAGE;  // such arrays start at a page in any case
  char *data = first;
  if (at_end && !is_large) data = first + (bytes - size) / alignment * alignment;
  memset(first, WATCHED, bytes);
  *block_of(data) = (struct Block){first, first + bytes, size};
  return data;
}

static void unfence(char *data) {
  const struct Block block = *block_of(data);
  for (char *p = block.first; p < block.last; ++p) {
    if (p == data) p += block.size;
    if (p < block.last && *p != WATCHED) {
      fprintf(stderr, "written %+ld bytes from an array of %zu\n", (long)(p - data), block.size);
      abort();
    }
  }
  madvise(block.first, (size_t)(block.last - block.first), MADV_DONTNEED);
  mprotect(block.first, (size_t)(block.last - block.first), PROT_NONE);
}

// --- in place of the C library's

int posix_memalign(void **memory, size_t alignment, size_t size) {
  void *given = region != NULL ? fenced(alignment, size) : __libc_memalign(alignment, size);
  if (given == NULL) return ENOMEM;
  *memory = given;
  return 0;
}

void free(void *memory) {
  if (is_fenced(memory)) {
    unfence(memory);
  } else {
    __libc_free(memory);
  }
}
