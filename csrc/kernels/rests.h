// SPDX-License-Identifier: Apache-2.0
// Rests of activation codes. Without VNNI the fastest product of 8-bit codes adds pairs of products
// in int16, which saturates where both activation codes of a pair are large. So a pair keeps what
// is safe, and its rest is multiplied apart: exactly, and at little cost, for few pairs have one
// (1 word of four codes in 67 where x is normally distributed and 4,096 deep). Rows in which many
// have, as where x is spread evenly, are multiplied by widening instead.
#pragma once

#include "kernels/sources.h"

namespace nibblas {
namespace {

// Whether a product of so many rows takes rests, on a target that may: not of so few that reading
// takes longer. (From memory, held to AVX2, 3 and 4 rows 1,024 deep took 1.7 to 1.9 of the time of
// widening, 8 rows 1.2, 4 rows 2,048 deep 1.1 to 1.2; 4,096 deep, or with 16 rows, they gain.)
template <class T>
bool takes_rests(const Weight& w, int64_t rows) {
  const int64_t least = w.depth_padded < 4096 ? 9 : T::kRestsRows;
  return w.codebook_type == CodebookType::none && w.bits == 8 && w.per_channel &&
         w.depth_padded > 0 && w.depth_padded <= kSegment && rows >= least;
}

// Rows up to here are swept over short blocks, whose codes are in L1: see depth_block.
constexpr int64_t kFewSweptRows = 24;

// Whether rows [row0, row1) sweep the planes: few, or some with rests. Else, where all are packed
// for widening, codes are widened once for all.
inline bool sweeps_planes(const PackedRows& x, int64_t row0, int64_t row1) {
  bool some = row1 - row0 <= kFewSweptRows;
  for (int64_t row = row0; row < row1 && !some; ++row) some = x.rest_counts[row] >= 0;
  return some;
}

// Puts the rests of a row's codes back.
inline void restore_codes(int8_t* codes, const Rest* rests, int64_t count) {
  for (int64_t n = 0; n < count; ++n) {
    int8_t rest[4];
    memcpy(rest, &rests[n].codes, 4);
    for (int i = 0; i < 4; ++i) codes[rests[n].word * 4 + i] += rest[i];
  }
}

// Takes the rests of a row's codes away; returns how many words had one, or -1 where there are
// more than there is room for: then the codes are as they were.
template <class Dot>
int32_t take_rests(int8_t* codes, int64_t padded, Rest* rests, int64_t room) {
  int32_t count = 0;
  for (int64_t k = 0; k < padded; k += kRowBytes) {
    const uint32_t large = Dot::large_pairs(codes + k);
    for (int word = 0; large >> word; ++word) {
      if (!(large >> word & 1)) continue;
      if (count == room) {
        restore_codes(codes, rests, count);
        return -1;
      }
      int8_t* code = codes + k + word * 4;
      int8_t rest[4] = {};
      for (int i = 0; i < 4; i += 2) {
        const int sum = code[i] + code[i + 1];
        const int over = sum > kSafePair ? sum - kSafePair : sum < -kSafePair ? sum + kSafePair : 0;
        rest[i + 1] = static_cast<int8_t>(over);
        code[i + 1] = static_cast<int8_t>(code[i + 1] - over);
      }
      rests[count].word = static_cast<int32_t>(k / 4 + word);
      memcpy(&rests[count].codes, rest, 4);
      ++count;
    }
  }
  return count;
}

// The same for m rows of a tile: all of them or none. Whether they did.
template <class Dot>
bool take_rests_of_tile(const Weight& w, int8_t* codes, int m, int64_t row0,
                        const PackedRows& out) {
  int32_t* counts = out.rest_counts + row0;
  Rest* rests = out.rests + row0 * out.rest_room;
  for (int i = 0; i < m; ++i) {
    counts[i] = take_rests<Dot>(codes + i * w.depth_padded, w.depth_padded,
                                rests + i * out.rest_room, out.rest_room);
    if (counts[i] >= 0) continue;
    while (--i >= 0) {
      restore_codes(codes + i * w.depth_padded, rests + i * out.rest_room, counts[i]);
    }
    for (i = 0; i < m; ++i) counts[i] = -1;
    return false;
  }
  return true;
}

// sums [m][NV][16] += the products of the rests of m rows.
template <class T, class Ops, int NV>
NIBBLAS_NOINLINE void add_rests(const Weight& w, int64_t panel, const PackedRows& x, int64_t row,
                                int m, int32_t* sums) {
  const int64_t plane = plane_rows(w.depth_padded, 8) * kRowBytes;
  const uint8_t* codes = w.slice[0].data + panel * plane;
  for (int i = 0; i < m; ++i, sums += NV * kPanel) {
    const int32_t count = x.rest_counts[row + i];
    if (count == 0) continue;
    const Rest* rests = x.rests + (row + i) * x.rest_room;
    typename Ops::Sum c[NV];
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      c[n.value] = Ops::load_sum(sums + n.value * kPanel);
    });
    for (int32_t r = 0; r < count; ++r) {
      const auto xm = Ops::load_x(&rests[r].codes);
      const uint8_t* from = codes + int64_t{rests[r].word} * kRowBytes;
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        c[n.value] = Ops::step(c[n.value], Ops::load_w(from + n.value * plane), xm);
      });
    }
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      Ops::store_sum(sums + n.value * kPanel, c[n.value]);
    });
  }
}

}  // namespace
}  // namespace nibblas
