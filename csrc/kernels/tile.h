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

// acc += the products of `rows` plane rows (or expanded rows), at least one, with the words of x.
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

// c = initial(m, n) plus those products. Where the target's accumulators hold only so many steps,
// they are widened in between; then the initial sums come last, to leave them the registers.
template <class T, int MR, class Source, class Initial>
NIBBLAS_INLINE void sum_rows(Source& w, const int32_t*& x, int64_t rows, const Initial& initial,
                             typename Source::Ops::Sum (&c)[MR][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  if constexpr (Ops::kMaxSteps == kUnlimited) {
    unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA { c[m.value][n.value] = initial(m, n); });
    });
    step_rows<T, MR>(w, x, rows, c);
  } else {
    constexpr int64_t chunk = Ops::kMaxSteps / Source::kParts;
    const auto sum_chunk = [&](int64_t count, bool first) NIBBLAS_INLINE_LAMBDA {
      typename Ops::Acc acc[MR][NV];
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA { acc[m.value][n.value] = Ops::empty(); });
      });
      step_rows<T, MR>(w, x, count, acc);
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          const auto wide = Ops::widen(acc[m.value][n.value]);
          c[m.value][n.value] = first ? wide : T::add_i32(c[m.value][n.value], wide);
        });
      });
    };
    sum_chunk(smaller(chunk, rows), true);
    for (int64_t done = chunk; done < rows; done += chunk) {
      sum_chunk(smaller(chunk, rows - done), false);
    }
    unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        c[m.value][n.value] = T::add_i32(c[m.value][n.value], initial(m, n));
      });
    });
  }
}

// The sum that a segment starts from, for row m of the tile and panel n.
template <class Source>
NIBBLAS_INLINE typename Source::Ops::Sum first_sum(const Source& w, const int32_t* starts, int m,
                                                   int n) {
  using Ops = typename Source::Ops;
  const int32_t start = Ops::kFloat ? 0 : starts[m];
  if constexpr (Source::kKind == OffsetKind::zero_points) {
    return Ops::first(start, w.zeros[n]);
  } else {
    return Ops::first(start);
  }
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
    const int32_t* starts = x.starts + s * MR;
    const auto initial = [&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
      return first_sum(w, starts, m.value, n.value);
    };
    sum_rows<T, MR>(w, x.words, s + 1 < segments ? rows : last_rows, initial, c);
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
  const auto initial = [&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
    return Ops::load_sum(sums + (m.value * NV + n.value) * kPanel);
  };
  sum_rows<T, MR>(w, x, rows, initial, c);
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
