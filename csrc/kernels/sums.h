// SPDX-License-Identifier: Apache-2.0
// The innermost loop: sums of products along the depth, for MR rows of x and NV panels of weights.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// f(m, n) for each of MR rows and NV panels.
template <int MR, int NV, class F>
NIBBLAS_INLINE void for_tile(const F& f) {
  unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA { f(m, n); });
  });
}

// Rows of sums: where pairs of rows share them, an odd row has those of two.
template <class Ops>
constexpr int sum_rows(int rows) {
  return Ops::kPairsRows ? (rows + 1) / 2 * 2 : rows;
}

// A small tile has too few sums to hide a dot product's latency, so every second quad goes to sums
// of its own, where both take half of the registers at most. If those are high halves of bytes,
// they need no shift: see kHighInPlace.
template <class T, int MR, class Source>
constexpr bool splits() {
  constexpr int sums = MR * Source::kPanels;
  return Source::Ops::kSplits && Source::kParts > 1 && 4 * sums <= T::kRegisters &&
         sums < (Source::kHighInPlace ? 5 : 4);
}

// acc += the products of operand `part` of a step, with the step's words of x.
template <class T, int MR, int part, class Source, int R>
NIBBLAS_INLINE void multiply_part_of_step(const Source& w,
                                          const typename Source::Raw (&raw)[Source::kPanels],
                                          const int32_t* x,
                                          typename Source::Ops::Acc (&acc)[R][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  const auto column = Ops::template load_column<MR>(x + part * MR * Ops::kQuads);
  if constexpr (Ops::kPairsRows) {
    // One half after the other: beside the sums there are no registers for both.
    for_tile<2, NV>([&](auto half, auto n) NIBBLAS_INLINE_LAMBDA {
      const auto operand = Ops::load_w(raw[n.value] + half.value * kRowBytes);
      unroll<R / 2>([&](auto i) NIBBLAS_INLINE_LAMBDA {
        auto& sum = acc[2 * i.value + half.value][n.value];
        sum = Ops::step(sum, operand, Ops::template row<2 * i.value, MR>(column));
      });
    });
  } else {
    typename Ops::W operand[NV];
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      constexpr bool in_place = splits<T, MR, Source>() && Source::kHighInPlace && part % 2;
      operand[n.value] = w.template operand<part, MR, in_place>(n.value, raw[n.value]);
    });
    unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
      const auto xm = Ops::template row<m.value, MR>(column);
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        acc[m.value][n.value] =
            Ops::template step_part<part>(acc[m.value][n.value], operand[n.value], xm);
      });
    });
  }
  // Where registers are few, GCC would add up products of several parts first and spill sums.
  if constexpr (T::kPinsSums && !Ops::kFloat && !Ops::kHalvesX) {
    for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA { T::hide(acc[m.value][n.value]); });
    NIBBLAS_MEMORY_BARRIER();  // or it would load all of x first
  }
}

// f(raw, x) for each of `steps` steps of the source, at least one.
template <class T, int MR, class Source, class F>
NIBBLAS_INLINE void for_steps(Source& w, const int32_t*& x, int64_t steps, const F& f) {
  constexpr int words = Source::kParts * MR * Source::Ops::kQuads;
  do {
    if constexpr (Source::kFetchesRows) {
      constexpr int line = kRowBytes / 4;
      unroll<(words + line - 1) / line>(
          [&](auto i) NIBBLAS_INLINE_LAMBDA { T::prefetch_l2(x + w.rows_ahead + i.value * line); });
    }
    typename Source::Raw raw[Source::kPanels];
    unroll<Source::kPanels>(
        [&](auto n) NIBBLAS_INLINE_LAMBDA { raw[n.value] = w.template load<MR>(n.value); });
    f(raw, x);
    x += words;
    w.template next<MR>();
  } while (--steps > 0);
}

// acc += the products of `steps` steps of the source, with the words of x.
template <class T, int MR, class Source, int R>
NIBBLAS_INLINE void multiply_steps(Source& w, const int32_t*& x, int64_t steps,
                                   typename Source::Ops::Acc (&acc)[R][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  constexpr bool split = splits<T, MR, Source>();
  typename Ops::Acc odd[split ? MR : 1][split ? NV : 1];
  if constexpr (split) {
    for_tile<MR, NV>([&](auto m, auto n)
                         NIBBLAS_INLINE_LAMBDA { odd[m.value][n.value] = T::zero_i32(); });
  }
  for_steps<T, MR>(w, x, steps, [&](const auto& raw, const int32_t* words) NIBBLAS_INLINE_LAMBDA {
    unroll<Source::kParts>([&](auto part) NIBBLAS_INLINE_LAMBDA {
      if constexpr (split && part.value % 2) {
        multiply_part_of_step<T, MR, part.value>(w, raw, words, odd);
      } else {
        multiply_part_of_step<T, MR, part.value>(w, raw, words, acc);
      }
    });
  });
  if constexpr (split) {
    for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
      auto sum = odd[m.value][n.value];
      if constexpr (Source::kHighInPlace) sum = T::template sar<4>(sum);
      acc[m.value][n.value] = T::add_i32(acc[m.value][n.value], sum);
    });
  }
}

// The same from zero on, to each row its own sums.
template <class T, int MR, class Source, int R>
NIBBLAS_INLINE void sum_from_zero(Source& w, const int32_t*& x, int64_t steps,
                                  typename Source::Ops::Acc (&acc)[R][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  for_tile<R, NV>([&](auto m, auto n)
                      NIBBLAS_INLINE_LAMBDA { acc[m.value][n.value] = Ops::empty(); });
  multiply_steps<T, MR>(w, x, steps, acc);
  if constexpr (Ops::kPairsRows) {
    for_tile<R / 2, NV>([&](auto i, auto n) NIBBLAS_INLINE_LAMBDA {
      Ops::part_rows(acc[2 * i.value][n.value], acc[2 * i.value + 1][n.value]);
    });
  }
}

// add(acc, first) for sums of at most as many steps, or parts of one, as narrow accumulators hold,
// in order.
template <class T, int MR, class Source, class Add>
NIBBLAS_INLINE void sum_narrow(Source& w, const int32_t*& x, int64_t steps, const Add& add) {
  using Acc = typename Source::Ops::Acc;
  constexpr int NV = Source::kPanels;
  const auto empty = [](Acc(&acc)[MR][NV]) NIBBLAS_INLINE_LAMBDA {
    for_tile<MR, NV>([&](auto m, auto n)
                         NIBBLAS_INLINE_LAMBDA { acc[m.value][n.value] = Source::Ops::empty(); });
  };
  constexpr int run = Source::kRun;
  if constexpr (run < Source::kParts) {
    bool first = true;
    for_steps<T, MR>(w, x, steps, [&](const auto& raw, const int32_t* words) NIBBLAS_INLINE_LAMBDA {
      unroll<Source::kParts / run>([&](auto r) NIBBLAS_INLINE_LAMBDA {
        Acc acc[MR][NV];
        empty(acc);
        unroll<run>([&](auto i) NIBBLAS_INLINE_LAMBDA {
          multiply_part_of_step<T, MR, r.value * run + i.value>(w, raw, words, acc);
        });
        add(acc, first);
        first = false;
      });
    });
    return;
  }
  const int64_t limit = w.most_steps();
  const auto chunk = [&](int64_t count, bool first) NIBBLAS_INLINE_LAMBDA {
    Acc acc[MR][NV];
    empty(acc);
    multiply_steps<T, MR>(w, x, count, acc);
    add(acc, first);
  };
  chunk(smaller(limit, steps), true);
  for (int64_t done = limit; done < steps; done += limit) {
    chunk(smaller(limit, steps - done), false);
  }
}

// c = initial(m, n) plus those products. With narrow accumulators the initial sums come last, to
// leave them the registers.
template <class T, int MR, class Source, class Initial>
NIBBLAS_INLINE void sum_steps(Source& w, const int32_t*& x, int64_t steps, const Initial& initial,
                              typename Source::Ops::Sum (&c)[MR][Source::kPanels]) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  if constexpr (Ops::kNarrow) {
    sum_narrow<T, MR>(w, x, steps, [&](auto& acc, bool first) NIBBLAS_INLINE_LAMBDA {
      for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
        const auto wide = Ops::widen(acc[m.value][n.value]);
        c[m.value][n.value] = first ? wide : T::add_i32(c[m.value][n.value], wide);
      });
    });
    for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
      c[m.value][n.value] = T::add_i32(c[m.value][n.value], initial(m, n));
    });
  } else if constexpr (Ops::kPairsRows) {
    typename Ops::Acc acc[sum_rows<Ops>(MR)][NV];
    sum_from_zero<T, MR>(w, x, steps, acc);
    for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
      c[m.value][n.value] = T::add_i32(acc[m.value][n.value], initial(m, n));
    });
  } else {
    for_tile<MR, NV>([&](auto m, auto n)
                         NIBBLAS_INLINE_LAMBDA { c[m.value][n.value] = initial(m, n); });
    multiply_steps<T, MR>(w, x, steps, c);
  }
}

// The sum that a segment starts from, for row m of the tile and panel n.
template <class Source>
NIBBLAS_INLINE typename Source::Ops::Sum first_sum(const Source& w, const int32_t* starts, int m,
                                                   int n) {
  using Ops = typename Source::Ops;
  const int32_t start = Ops::kFloat ? 0 : starts[m];
  if constexpr (Source::kKind == GroupKind::zero_points) {
    return Ops::first(start, w.zeros[n]);
  } else {
    return Ops::first(start);
  }
}

}  // namespace
}  // namespace nibblas
