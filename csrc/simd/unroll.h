// SPDX-License-Identifier: Apache-2.0
// Loops over registers: unrolled by the language, so that no compiler's heuristics can leave an
// array of accumulators in memory.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define NIBBLAS_INLINE __forceinline
#define NIBBLAS_INLINE_LAMBDA
#define NIBBLAS_NOINLINE __declspec(noinline)
#define NIBBLAS_MEMORY_BARRIER() static_cast<void>(0)
#else
#define NIBBLAS_INLINE inline __attribute__((always_inline))
#define NIBBLAS_INLINE_LAMBDA __attribute__((always_inline))
#define NIBBLAS_NOINLINE __attribute__((noinline))
// For the compiler alone: what lies in memory may have changed.
#define NIBBLAS_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")
#endif

namespace nibblas {
namespace {

template <int N>
struct Index {
  static constexpr int value = N;
};

template <bool condition, class Yes, class No>
struct Choose {
  using type = Yes;
};
template <class Yes, class No>
struct Choose<false, Yes, No> {
  using type = No;
};

// f(Index<0>), f(Index<1>), ... f(Index<N - 1>)
template <int N, class F>
NIBBLAS_INLINE void unroll(const F& f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(Index<N - 1>{});
  }
}

// f(Index<m>) for a row count known at run time, 1 .. MaxRows.
template <int MaxRows, class F>
NIBBLAS_INLINE void with_rows(int m, const F& f) {
  if constexpr (MaxRows > 1) {
    if (m < MaxRows) return with_rows<MaxRows - 1>(m, f);
  }
  f(Index<MaxRows>{});
}

}  // namespace
}  // namespace nibblas
