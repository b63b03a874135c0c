// SPDX-License-Identifier: Apache-2.0
// The inner tile: MR rows of x times NV panels of weights. Every product runs through it.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// The rows of one tile, from some segment on: see PackedRows.
struct TileRows {
  const int32_t* words;
  const float* scales;
  const int32_t* starts;
  const float* sums;
};

// acc += the products of `rows` >= 1 plane rows (or expanded rows) with the words of x. (A loop that
// may run no times makes GCC keep two copies of every accumulator.)
template <class T, int MR, class Source>
NIBBLAS_INLINE void step_rows(Source& w, const int32_t*& x, int64_t rows,
                              typename Source::Ops::Acc (&acc)[MR][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  do {
    typename Source::Raw raw[NV];
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA { raw[n.value] = w.load(n.value); });
    unroll<Source::kParts>([&](auto part) NIBBLAS_INLINE_LAMBDA {
      typename Ops::W operand[NV];
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        operand[n.value] = w.template operand<part.value>(n.value, raw[n.value]);
      });
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        const auto xm = Ops::load_x(x + part.value * MR + m.value);
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          acc[m.value][n.value] = Ops::step(acc[m.value][n.value], operand[n.value], xm);
        });
      });
    });
    x += Source::kParts * MR;
    w.next_row();
  } while (--rows > 0);
}

// c += those products, widened where the target's accumulators hold only so many steps.
template <class T, int MR, class Source>
NIBBLAS_INLINE void dot_rows(Source& w, const int32_t*& x, int64_t rows,
                             typename Source::Ops::Sum (&c)[MR][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  if constexpr (Ops::kMaxSteps == kUnlimited) {
    return step_rows<T, MR>(w, x, rows, c);
  } else {
    constexpr int64_t chunk = Ops::kMaxSteps / Source::kParts;
    for (int64_t done = 0; done < rows; done += chunk) {
      typename Ops::Acc acc[MR][NV];
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA { acc[m.value][n.value] = Ops::empty(); });
      });
      step_rows<T, MR>(w, x, smaller(chunk, rows - done), acc);
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          c[m.value][n.value] = Ops::widen(c[m.value][n.value], acc[m.value][n.value]);
        });
      });
    }
  }
}

// The sums a segment starts from.
template <class T, int MR, class Source>
NIBBLAS_INLINE void first_sums(const Source& w, const int32_t* starts,
                               typename Source::Ops::Sum (&c)[MR][Source::kPanels]) {
  using Ops = typename Source::Ops;
  unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
    unroll<Source::kPanels>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      const int32_t start = Ops::kFloat ? 0 : starts[m.value];
      if constexpr (Source::kKind == OffsetKind::zero_points) {
        c[m.value][n.value] = Ops::first(start, w.zeros[n.value]);
      } else {
        c[m.value][n.value] = Ops::first(start);
      }
    });
  });
}

// Whole segments: acc [MR][NV][16] gets each segment's sums combined, in ascending order.
// `scale_step` is 0 where all segments share the scales of group 0, else 1.
template <class T, int MR, class Source>
NIBBLAS_NOINLINE void multiply_segments(Source w, TileRows x, int64_t segments, int64_t rows,
                                        int64_t last_rows, int64_t scale_step, float* acc) {
  using Ops = typename Source::Ops;
  using F32 = typename T::F32;
  constexpr int NV = Source::kPanels;
  // Running sums stay in registers beside the segment's own sums, the NV operands and two more
  // where that many are there, else they live in L1: one load and one store a segment.
  constexpr bool in_registers = 2 * MR * NV + NV + 2 <= T::kRegisters;
  F32 running[in_registers ? MR : 1][in_registers ? NV : 1];
  if constexpr (in_registers) {
    unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        running[m.value][n.value] = T::load(acc + (m.value * NV + n.value) * kPanel);
      });
    });
  }
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t g = s * scale_step;
    w.begin_group(g);
    typename Ops::Sum c[MR][NV];
    first_sums<T, MR>(w, x.starts + s * MR, c);
    dot_rows<T, MR>(w, x.words, s + 1 < segments ? rows : last_rows, c);
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      const F32 scale = w.scale(n.value, g);
      F32 min;
      if constexpr (Source::kKind == OffsetKind::mins) min = w.min(n.value, g);
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        float* at = acc + (m.value * NV + n.value) * kPanel;
        const float a = Ops::kFloat ? 0.0f : x.scales[s * MR + m.value];
        F32 sum;
        if constexpr (in_registers) {
          sum = running[m.value][n.value];
        } else {
          sum = T::load(at);
        }
        sum = Ops::combine(c[m.value][n.value], a, scale, sum);
        if constexpr (Source::kKind == OffsetKind::mins) {
          sum = T::fma(T::set1(x.sums[s * MR + m.value]), min, sum);
        }
        if constexpr (in_registers) {
          running[m.value][n.value] = sum;
        } else {
          T::store(at, sum);
        }
      });
    });
    // Or GCC keeps what it just stored for the next segment, on the stack, and stores it twice.
    if constexpr (!in_registers) NIBBLAS_MEMORY_BARRIER();
  }
  if constexpr (in_registers) {
    unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        T::store(acc + (m.value * NV + n.value) * kPanel, running[m.value][n.value]);
      });
    });
  }
}

// A part of one segment: sums [MR][NV][16] of int32 or float go on.
template <class T, int MR, class Source>
NIBBLAS_NOINLINE void multiply_part(Source w, const int32_t* x, int64_t rows, int32_t* sums) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  typename Ops::Sum c[MR][NV];
  unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      c[m.value][n.value] = Ops::load_sum(sums + (m.value * NV + n.value) * kPanel);
    });
  });
  dot_rows<T, MR>(w, x, rows, c);
  unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      Ops::store_sum(sums + (m.value * NV + n.value) * kPanel, c[m.value][n.value]);
    });
  });
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
