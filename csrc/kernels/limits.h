// SPDX-License-Identifier: Apache-2.0
// The two limits that kernels are measured against: the dot-product rate of the registers and the
// read bandwidth of memory.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// The target's own dot product for 4-bit codes on registers alone. Returns multiply-adds done.
template <class T>
double peak(int64_t iterations) {
  using Dot = typename T::template DotFor<15>::ManyRows;
  // Half of the registers: enough in flight for any latency (16 of VNNI's, 4 x 2 ymm), with some
  // to spare.
  constexpr int sum_bytes = static_cast<int>(sizeof(typename Dot::Acc));
  constexpr int chains = T::kRegisters * kRowBytes / 2 / sum_bytes;
  uint8_t codes[kRowBytes * Dot::kQuads];
  for (int i = 0; i < kRowBytes * Dot::kQuads; ++i) codes[i] = static_cast<uint8_t>(i & 15);
  const int32_t words[] = {0x01010101, 0x01010101};
  auto w = Dot::load_w(codes);
  const auto x = Dot::template row<0, 1>(Dot::template load_column<1>(words));
  typename Dot::Acc acc[chains];
  unroll<chains>([&](auto i) NIBBLAS_INLINE_LAMBDA {
    acc[i.value] = Dot::empty();
  });
  for (int64_t i = 0; i < iterations; ++i) {
    unroll<chains>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      T::hide(w);  // or one product would serve all chains, or leave the loop
      acc[n.value] = Dot::step(acc[n.value], w, x);
    });
  }
  auto total = T::zero_i32();
  unroll<chains>([&](auto i) NIBBLAS_INLINE_LAMBDA {
    total = T::add_i32(total, Dot::widen(acc[i.value]));
  });
  volatile int32_t sink = T::reduce_add_i32(total);  // the loop must not be optimized away
  static_cast<void>(sink);
  return static_cast<double>(iterations) * chains * sizeof codes;
}

template <class T, int Streams>
inline typename T::I32 read_streams(const char* data, int64_t bytes) {
  constexpr int64_t ahead = 1024;  // as the kernels prefetch
  auto total = T::zero_i32();
  const int64_t length = bytes / Streams / kRowBytes * kRowBytes;
  for (int64_t i = 0; i < length; i += kRowBytes) {
    unroll<Streams>([&](auto s) NIBBLAS_INLINE_LAMBDA {
      const char* p = data + s.value * length + i;
      T::prefetch(p + ahead);
      total = T::xor_i32(total, T::load_i32(p));
    });
  }
  return total;
}

template <class T>
int64_t read(const void* memory, size_t size, int streams) {
  const char* data = static_cast<const char*>(memory);
  const int64_t bytes = static_cast<int64_t>(size);
  switch (streams) {
    case 1: return T::reduce_add_i32(read_streams<T, 1>(data, bytes));
    case 2: return T::reduce_add_i32(read_streams<T, 2>(data, bytes));
    case 4: return T::reduce_add_i32(read_streams<T, 4>(data, bytes));
    default: return T::reduce_add_i32(read_streams<T, 8>(data, bytes));
  }
}

}  // namespace
}  // namespace nibblas
