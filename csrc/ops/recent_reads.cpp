// SPDX-License-Identifier: Apache-2.0
#include "ops/recent_reads.h"

#include <atomic>

#include "runtime/cpu.h"

namespace nibblas {
namespace {

struct Read {
  std::atomic<const void*> codes{nullptr};
  std::atomic<int64_t> at{0};
};

// A weight has a place by its address; one that takes another's place makes that one's next read
// seem its first. The two fields may be of two weights for a moment: it is a guess.
constexpr uint64_t kPlaces = 1024;
Read reads[kPlaces];
std::atomic<int64_t> bytes_read{0};

uint64_t place(const void* codes) {  // Fibonacci hashing: the product's high bits
  return (reinterpret_cast<uintptr_t>(codes) * uint64_t{0x9e3779b97f4a7c15} >> 32) % kPlaces;
}

// What a cache may hold beside all else: of L3, which others use too, half. (In an L3 of 32 MB one
// row of 16 MB of int8 took 0.63 of the time so, one of 22 MB of q4_k 1.3.) Where sizes are not
// known, what most have.
int64_t bytes_of_l2() {
  const size_t l2 = cpu().caches.l2;
  return l2 ? static_cast<int64_t>(l2) : int64_t{1} << 20;
}
int64_t bytes_of_l3() {
  const size_t l3 = cpu().caches.l3;
  return l3 ? static_cast<int64_t>(l3 / 2) : int64_t{8} << 20;
}

}  // namespace

CodesIn note_read(const Weight& w) {
  int64_t bytes = 0;
  for (int s = 0; s < w.slices; ++s) {
    bytes += w.panels * plane_rows(w.depth_padded, w.slice[s].bits) * kRowBytes;
  }
  const int64_t now = bytes_read.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  const void* codes = w.slice[0].data;
  Read& read = reads[place(codes)];
  const int64_t before = read.at.exchange(now, std::memory_order_relaxed);
  if (read.codes.exchange(codes, std::memory_order_relaxed) != codes) return CodesIn::memory;
  if (now - before <= bytes_of_l2()) return CodesIn::l2;
  return now - before <= bytes_of_l3() ? CodesIn::l3 : CodesIn::memory;
}

}  // namespace nibblas
