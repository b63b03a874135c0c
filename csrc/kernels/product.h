// SPDX-License-Identifier: Apache-2.0
// Which kernel a product takes: by codes, kind of group and number of rows.
#pragma once

#include "kernels/gemm.h"
#include "kernels/gemv.h"

namespace nibblas {
namespace {

// What few rows may multiply straight from the planes. Other widths are expanded first, to keep the
// code small. (A step must end with a group: q3_k has groups of 16 and 1-bit planes 32 deep.)
constexpr bool straight(int bits, GroupKind kind) {
  return bits == 4 || bits == 8 || (kind == GroupKind::two_level && bits != 3);
}

// What a single row may, too: of the fewest bits, and of all with floats, it takes 0.4 to 0.6 of
// the time so. (Integers of 5 to 7 bits 0.75, which is not worth as much code again.)
template <class T, class Ops>
constexpr bool single_row_straight(int bits, GroupKind kind) {
  return (bits <= 3 || Ops::kFloat) && kind != GroupKind::two_level && T::kSingleRowStraight;
}

// Whether few rows do so here: operands of a codebook may be too large for narrow sums.
template <class T, class Operands>
bool takes_planes(const Weight& w, int64_t rows) {
  using Ops = typename Operands::Ops;
  const GroupKind kind = group_kind<Ops>(w);
  if (!straight(w.bits, kind)) {
    constexpr int step = CodeReader<T, Operands::kBits, Ops::kQuads>::kStep;
    return single_row_straight<T, Ops>(w.bits, kind) && rows == 1 &&
           (w.per_channel || w.group >= step);
  }
  if (rows > straight_rows<T, Ops>(w)) return false;
  if constexpr (Ops::kNarrow) {
    return w.codebook_type == CodebookType::none ||
           Ops::most_steps(w.top_operand) * Ops::kQuads >= whole_quads(w.bits);
  } else {
    return true;
  }
}

template <class T, class Operands>
Tile choose_tile(const Weight& w, int64_t rows) {
  using Ops = typename Operands::ManyRows::Ops;
  bool rests = false;
  if constexpr (Operands::Swept::Ops::kRestsX) rests = takes_rests<T>(w, rows);
  const bool few = !rests && takes_planes<T, Operands>(w, rows);
  Tile tile;
  const bool two_level = w.two_level && !Ops::kFloat;
  // (Even tiles of many rows are no better: 8 rows of int8 from memory took 1.26 of the time of 6
  // and 2 as 4 and 4 on avx512vnni, where the first ones' arithmetic goes on while codes arrive.)
  tile.rows = few     ? gemv_tile_rows<T>(rows)
              : rests ? tile_rows<T, typename Operands::Swept::Ops>(false)
                      : tile_rows<T, Ops>(two_level);
  tile.panels = few ? T::gemv_panels(tile.rows) : gemm_panels_of<T>(two_level);
  tile.depth = few     ? 0
               : rests ? depth_block<typename Operands::Swept::Ops>(w, rows)
                       : depth_block<Ops>(w, rows);
  tile.rests = rests;
  tile.x_row_words = Ops::kQuadParts;
  tile.kernel = few ? "gemv" : "gemm";
  return tile;
}

template <class T>
Tile int8_tile(const Weight& w, int64_t rows) {
  Tile tile;
  with_int_operands<T>(w, [&](auto use) {
    tile = choose_tile<T, typename decltype(use)::Operands>(w, rows);
  });
  return tile;
}

template <class T>
Tile float_tile(const Weight& w, int64_t rows) {
  Tile tile;
  with_float_operands<T>(w, [&](auto use) {
    tile = choose_tile<T, typename decltype(use)::Operands>(w, rows);
  });
  return tile;
}

template <class T, class Operands, GroupKind kGroups>
void product_of(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0, int64_t row1,
                void* scratch) {
  bool few = takes_planes<T, Operands>(*job.weight, job.x.rows);
  if constexpr (Operands::Swept::Ops::kRestsX && kGroups != GroupKind::two_level) {
    if (job.x.rests) {
      using Ops = typename Operands::Swept::Ops;
      if (sweeps_planes(job.x, row0, row1)) {
        return gemm<T, Ops, kGroups>(job, nullptr, panel0, panel1, row0, row1, scratch);
      }
      few = false;
    }
  }
  if (few) {
    if constexpr (Operands::OneRow::Ops::kHalvesX && kGroups != GroupKind::two_level) {
      if (takes_halves<T>(*job.weight, job.x.rows)) {
        return gemv_of_one_row<T, typename Operands::OneRow, kGroups>(job, panel0, panel1, scratch);
      }
    }
    if constexpr (straight(Operands::kBits, kGroups)) {
      return gemv<T, Operands, kGroups>(job, panel0, panel1, scratch);
    } else if constexpr (single_row_straight<T, typename Operands::Ops>(Operands::kBits, kGroups)) {
      return gemv_of_one_row<T, Operands, kGroups>(job, panel0, panel1, scratch);
    }
  }
  using ManyRows = typename Operands::ManyRows;
  using Ops = typename ManyRows::Ops;
  // Integers are the same whatever their groups are like.
  constexpr bool zeros = Ops::kFloat && kGroups == GroupKind::zero_points;
  gemm<T, Ops, kGroups>(job, expand_codes<T, ManyRows, zeros>, panel0, panel1, row0, row1, scratch);
}

// The kinds of group that there are with these codes.
template <class Operands>
constexpr bool has_kind(GroupKind kind) {
  const bool lookup = Operands::kLookup;
  switch (kind) {
    case GroupKind::constant: return true;
    case GroupKind::zero_points: return !lookup;
    case GroupKind::mins: return !lookup;
    default: return !Operands::Ops::kFloat && Operands::kBits >= 2 && Operands::kBits <= 6;
  }
}

template <class T, class Operands>
void product_by_kind(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                     int64_t row1, void* scratch) {
  const GroupKind kind = group_kind<typename Operands::Ops>(*job.weight);
  const auto run = [&](auto k) {
    constexpr GroupKind kGroups = static_cast<GroupKind>(decltype(k)::value);
    if constexpr (has_kind<Operands>(kGroups)) {
      if (kind == kGroups) {
        product_of<T, Operands, kGroups>(job, panel0, panel1, row0, row1, scratch);
      }
    }
  };
  unroll<4>(run);
}

template <class T>
void int8_product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                  int64_t row1, void* scratch) {
  with_int_operands<T>(*job.weight, [&](auto use) {
    using Operands = typename decltype(use)::Operands;
    product_by_kind<T, Operands>(job, panel0, panel1, row0, row1, scratch);
  });
}

template <class T>
void float_product(const ProductJob& job, int64_t panel0, int64_t panel1, int64_t row0,
                   int64_t row1, void* scratch) {
  with_float_operands<T>(*job.weight, [&](auto use) {
    using Operands = typename decltype(use)::Operands;
    product_by_kind<T, Operands>(job, panel0, panel1, row0, row1, scratch);
  });
}

}  // namespace
}  // namespace nibblas
