// SPDX-License-Identifier: Apache-2.0
// The inner tile: MR rows of x times NV panels of weights. Every product runs through it.
#pragma once

#include "kernels/sums.h"

namespace nibblas {
namespace {

// The rows of one tile, from some segment on: see PackedRows.
struct TileRows {
  const int32_t* words;
  const float* scales;
  const int32_t* starts;
  const float* sums;
  int64_t ahead = 0;  // words from these rows to the next tile's
};

template <class Source>
NIBBLAS_INLINE void fetch_rows_ahead(Source& w, const TileRows& x) {
  if constexpr (Source::kFetchesRows) w.rows_ahead = x.ahead;
}

// Whole segments: acc [MR][NV][16] gets each segment's sums combined, in ascending order.
// `scale_step` is 0 where all segments share the scales of group 0, else 1.
template <class T, int MR, class Source>
NIBBLAS_NOINLINE void multiply_segments(const Source& weights, TileRows x, int64_t segments,
                                        int64_t steps, int64_t last_steps, int64_t scale_step,
                                        float* acc) {
  using Ops = typename Source::Ops;
  using F32 = typename T::F32;
  constexpr int NV = Source::kPanels;
  Source w = weights;
  fetch_rows_ahead(w, x);
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
    sum_steps<T, MR>(w, x.words, s + 1 < segments ? steps : last_steps, initial, c);
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      const F32 scale = w.scale(n.value, g);
      F32 min;
      if constexpr (Source::kKind == GroupKind::mins) min = w.min(n.value, g);
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
        if constexpr (Source::kKind == GroupKind::mins) {
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

// int32 sums of a tile that are needed now and then: in registers, or in memory where those are
// few.
template <class T, int MR, int NV, bool kInRegisters>
struct Sums {
  typename T::I32 values[MR][NV];
  void place(int32_t*) {}
  typename T::I32 get(int m, int n) const { return values[m][n]; }
  void set(int m, int n, typename T::I32 sum) { values[m][n] = sum; }
};
template <class T, int MR, int NV>
struct Sums<T, MR, NV, false> {
  int32_t* values;
  void place(int32_t* memory) { values = memory; }
  typename T::I32 get(int m, int n) const { return T::load_i32(values + (m * NV + n) * kPanel); }
  void set(int m, int n, typename T::I32 sum) { T::store_i32(values + (m * NV + n) * kPanel, sum); }
};

// What the sums of x add to a super-block: the sum of pair * start.
template <class T, int MR, class Source, class Sums>
NIBBLAS_INLINE void sum_offsets(const Source& w, const int32_t*& starts, int64_t first,
                                int64_t pairs, Sums& sums) {
  constexpr int NV = Source::kPanels;
  typename T::I32 offsets[MR][NV];
  for_tile<MR, NV>([&](auto m, auto n)
                       NIBBLAS_INLINE_LAMBDA { offsets[m.value][n.value] = T::zero_i32(); });
  for (int64_t p = first; p < first + pairs; ++p, starts += MR) {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      const auto pair = w.pair(n.value, p);
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        auto& offset = offsets[m.value][n.value];
        offset = T::dot_i16(offset, pair, T::set1_i32(starts[m.value]));
      });
    });
  }
  for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
    sums.set(m.value, n.value, offsets[m.value][n.value]);
  });
}

// Super-blocks of a two-level scheme: C = sum of factor * c over the groups stays an integer.
template <class T, int MR, class Source>
NIBBLAS_NOINLINE void multiply_super_blocks(const Source& weights, TileRows x, int64_t supers,
                                            float* acc) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  // Totals, offsets and a group's own sums, the NV operands and two more.
  constexpr bool in_registers = 3 * MR * NV + NV + 2 <= T::kRegisters;
  const int64_t groups = kSuperBlock / weights.weight.group;
  const int64_t pairs = pairs_per_super(weights.weight);
  const int64_t steps = Source::steps(weights.weight.group);
  const bool mins = weights.weight.super_mins != nullptr;
  Source w = weights;
  fetch_rows_ahead(w, x);
  int32_t memory[in_registers ? 1 : 2 * MR * NV * kPanel];
  for (int64_t s = 0; s < supers; ++s) {
    w.begin_super(s);
    // Zero points are a part of the totals; mins have a scale of their own.
    Sums<T, MR, NV, in_registers> totals, offsets;
    offsets.place(memory);
    totals.place(mins ? memory + MR * NV * kPanel : memory);
    sum_offsets<T, MR>(w, x.starts, s * pairs, pairs, offsets);
    if (mins || in_registers) {
      for_tile<MR, NV>([&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
        totals.set(m.value, n.value, mins ? T::zero_i32() : offsets.get(m.value, n.value));
      });
    }
    for (int64_t g = 0; g < groups; ++g) {
      // Factors that serve several runs are loaded once.
      constexpr bool runs = Source::kRun < Source::kParts;
      typename T::I32 factors[runs ? NV : 1];
      if constexpr (runs) {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          factors[n.value] = w.factor(n.value, s * groups + g);
        });
      }
      const auto add = [&](auto& c, bool) NIBBLAS_INLINE_LAMBDA {
        unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
          typename T::I32 factor;
          if constexpr (runs) {
            factor = factors[n.value];
          } else {
            factor = w.factor(n.value, s * groups + g);
          }
          unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
            const auto total = totals.get(m.value, n.value);
            totals.set(m.value, n.value, Ops::add_product(total, c[m.value][n.value], factor));
          });
        });
      };
      if constexpr (Ops::kNarrow) {
        sum_narrow<T, MR>(w, x.words, steps, add);
      } else {
        typename Ops::Sum c[sum_rows<Ops>(MR)][NV];
        sum_from_zero<T, MR>(w, x.words, steps, c);
        add(c, true);
      }
      if constexpr (!in_registers) NIBBLAS_MEMORY_BARRIER();  // as in multiply_segments
    }
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      const auto scale = w.scale(n.value, s);
      unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
        float* at = acc + (m.value * NV + n.value) * kPanel;
        const float a = x.scales[s * MR + m.value];
        auto sum = Ops::combine(totals.get(m.value, n.value), a, scale, T::load(at));
        if (mins) {
          const auto u = T::mul(T::set1(a), T::to_f32(offsets.get(m.value, n.value)));
          sum = T::fma(u, w.min(n.value, s), sum);
        }
        T::store(at, sum);
      });
    });
    NIBBLAS_MEMORY_BARRIER();
  }
}

// A part of one segment: sums [MR][NV][16] of int32 or float go on.
template <class T, int MR, class Source>
NIBBLAS_NOINLINE void multiply_part(const Source& weights, TileRows x, int64_t steps,
                                    int32_t* sums) {
  using Ops = typename Source::Ops;
  constexpr int NV = Source::kPanels;
  Source w = weights;
  fetch_rows_ahead(w, x);
  typename Ops::Sum c[MR][NV];
  const auto initial = [&](auto m, auto n) NIBBLAS_INLINE_LAMBDA {
    return Ops::load_sum(sums + (m.value * NV + n.value) * kPanel);
  };
  sum_steps<T, MR>(w, x.words, steps, initial, c);
  unroll<MR>([&](auto m) NIBBLAS_INLINE_LAMBDA {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      Ops::store_sum(sums + (m.value * NV + n.value) * kPanel, c[m.value][n.value]);
    });
  });
}

}  // namespace
}  // namespace nibblas
