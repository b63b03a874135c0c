// SPDX-License-Identifier: Apache-2.0
// How a tile gets its weights: straight from the packed planes (few rows: each byte is used once or
// a few times), or from a block that was expanded once and is swept by many rows.
#pragma once

#include "kernels/operands.h"
#include "kernels/scales.h"

namespace nibblas {
namespace {

// How groups are combined, as far as the loops differ: codes have one zero point for the whole
// matrix (free), a zero point per group, or a float min per group; or (integer products only)
// groups are summed as integers up to their super-block.
enum class GroupKind { constant, zero_points, mins, two_level };

template <class Ops>
GroupKind group_kind(const Weight& w) {
  if (w.two_level && !Ops::kFloat) return GroupKind::two_level;
  return w.zero_points ? GroupKind::zero_points
         : has_mins(w) ? GroupKind::mins
                       : GroupKind::constant;
}

// Pairs of groups of a super-block, whose sums of x and whose factors are summed two by two.
inline int pairs_per_super(const Weight& w) {
  return w.group == kSuperBlock ? 1 : static_cast<int>(kSuperBlock / w.group / 2);
}

// Two-level: the integers that the sums of x of groups g and g + 1 are multiplied with, as int16
// in the low and high half of each lane: the mins, or what a zero point takes from the scales.
template <class T, class Ops>
NIBBLAS_INLINE typename T::I32 offset_pair(const Weight& w, int64_t panel, int64_t g) {
  const auto factor = [&](int64_t group) {
    const int64_t index = panel * w.groups + group;
    if (w.super_mins) return sub_min<T>(w, index);
    // 128 * 128 in int16. (Codes with mins are small: they have no bias.)
    return T::mul_i32(T::set1_i32(Ops::kBias - w.zero), sub_scale<T>(w, index));
  };
  const auto low = T::and_i32(factor(g), T::set1_i32(0xffff));
  if (w.group == kSuperBlock) return low;
  return T::or_i32(low, T::template shl<16>(factor(g + 1)));
}

// Few rows read what is most often stored, float16 and bytes, as it stands: converting it ahead
// took a tenth of a product of one row. Null where it is expanded.
struct Direct {
  const uint16_t* scales;  // of the block's first group and panel
  const uint16_t* mins;
  const uint8_t* zeros;
  int64_t stride;  // from panel to panel
};

// Operands in memory.
template <class Ops>
constexpr int64_t kOperandBytes = kRowBytes * Ops::kQuads;

// A block of panels, expanded: rows of operands side by side, and what groups are combined with.
// (Straight from the planes only the latter is.)
struct Block {
  uint8_t* rows;     // [rows][panels][64]
  float* scales;     // [groups][panels][16]; two-level [supers][panels][16]
  float* mins;       // the same
  int32_t* zeros;    // [groups][panels][16]
  int32_t* factors;  // two-level: [groups][panels][16] and
  int32_t* pairs;    // [pairs][panels][16], see offset_pair
  Direct direct;
};

// What the tile reads of a group, counted from the block's first.
template <class T, class Ops, GroupKind kGroups, int NV>
struct GroupSource {
  const Weight& weight;
  Block block;
  typename Ops::Zero zeros[NV];

  GroupSource(const Weight& w, const Block& b) : weight(w), block(b) {}

  void begin_group(int64_t g) {
    if constexpr (kGroups == GroupKind::zero_points) {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        zeros[n.value] = Ops::as_zeros(T::load_i32(block.zeros + (g * NV + n.value) * kPanel));
      });
    }
  }
  void begin_super(int64_t) {}
  typename T::F32 scale(int n, int64_t g) const {
    return T::load(block.scales + (g * NV + n) * kPanel);
  }
  typename T::F32 min(int n, int64_t g) const {
    return T::load(block.mins + (g * NV + n) * kPanel);
  }
  typename T::I32 factor(int n, int64_t g) const {
    return T::load_i32(block.factors + (g * NV + n) * kPanel);
  }
  typename T::I32 pair(int n, int64_t p) const {
    return T::load_i32(block.pairs + (p * NV + n) * kPanel);
  }
};

// Two-level: what multiplies and offsets the groups of a super-block.
template <class T>
NIBBLAS_INLINE void prefetch_super(const Weight& w, int64_t panel, int64_t super) {
  const int64_t at = panel * w.supers + super;
  const int64_t bytes = kSuperBlock / w.group * kPanel;
  for (int64_t i = 0; i < bytes; i += kRowBytes) {
    T::prefetch(static_cast<const char*>(w.scales) + at * bytes + i);
    if (w.mins) T::prefetch(static_cast<const char*>(w.mins) + at * bytes + i);
  }
  T::prefetch(static_cast<const char*>(w.super_scales) + at * kPanel * 2);
  if (w.super_mins) T::prefetch(static_cast<const char*>(w.super_mins) + at * kPanel * 2);
}
constexpr int kSupersAhead = 2;  // measured: 1 and 4 are 2 and 4 % slower

// Ahead of each of several streams, whose sum covers the latency of DRAM, and of one that several
// rows slow down (held to AVX2, 4 and 8 rows of int4 and int8 took 0.86 to 0.90 of the time so; at
// 1 and 2 rows it does harm).
constexpr int64_t kPrefetchBytes = 2048;
constexpr int64_t kPrefetchSlowBytes = 1024;

// Ahead of one stream of 4 to 6 bits through panels of so many bytes, from T::kFarRows on: where
// arithmetic takes about as long as reading. (4,096 to 11,008 deep: held to AVX2 1 and 2 rows of
// int4 per channel 0.67 of the time, in groups of 32 0.82 to 0.98, q4_k 0.86; 2 rows on avx512 0.65
// to 0.86. Shorter panels take up to 1.28, less arithmetic up to 1.4; 2,048 ahead took 1.07 to
// 1.66, 16,384 a bit more than 8,192.)
constexpr int64_t kPrefetchFarBytes = 8192;
constexpr int64_t kLongPanelBytes = 32768;

// Lines of x that one stream keeps in L1, at most: it touches one in each step, in turns. Codes of
// a long panel would push them out, and a line from L2 waits for the few buffers that lines from
// memory occupy. (1 row, 4,096 deep, from memory: int4 per channel 0.82 to 0.88 of the time on
// avx512vnni, in groups of 32 0.96, q4_k 0.94, int8 on avx2 0.83. 11,008 deep int4 0.83 to 0.87,
// where touching all lines took 1.1 to 1.2.)
constexpr int64_t kKeptLines = 64;
constexpr int64_t kKeptPanelBytes = 16384;  // of shorter panels (and x) all stays there

// Parts of a step that narrow sums hold for sure: all, or a half or a fourth of them ... (Of a
// codebook only the weight knows: see takes_planes.)
template <class Operands>
constexpr int narrow_run(int parts) {
  if constexpr (Operands::Ops::kNarrow && !Operands::kLookup) {
    while (parts > Operands::Ops::most_steps((1 << Operands::kBits) - 1)) parts /= 2;
  }
  return parts;
}

// Codes straight from the planes: NV panels in flight. Of two-level schemes what groups are
// combined with comes straight from its planes, too, from the matrix's first group on.
template <class T, class Operands_, GroupKind kGroups, int NV>
struct PlaneSource : GroupSource<T, typename Operands_::Ops, kGroups, NV> {
  using Operands = Operands_;
  using Ops = typename Operands::Ops;
  using Reader = CodeReader<T, Operands::kBits, Ops::kQuads>;
  static constexpr int kPanels = NV;
  static constexpr int kParts = Reader::kQuads / Ops::kQuads * Ops::kQuadParts;
  static constexpr int kRun = narrow_run<Operands>(kParts);
  static constexpr GroupKind kKind = kGroups;
  static constexpr bool kFetchesRows = false;
  static constexpr bool kFar = !Ops::kFloat && Operands::kBits >= 4 && Operands::kBits < 8;
  // Of 4 bits, high halves of bytes may be operands 16 times as large, where sums of their own take
  // them: no shift, and the sums, of a segment at most, stay below 32768 * 240 * 128 < 2^31.
  static constexpr bool kHighInPlace = Operands::kBits == 4 && !Operands::kLookup && Ops::kSplits &&
                                       Ops::kPlaneIsOperand && kGroups != GroupKind::two_level;

  Operands operands;
  Reader reader;
  int64_t panel;
  bool fetches;                // whether to ask for codes ahead
  bool far;                    // whether far
  int64_t left;                // steps to the panels' end
  const char* kept = nullptr;  // the line of x to touch, one of those from kept_begin to kept_end
  const char* kept_begin = nullptr;
  const char* kept_end = nullptr;
  int64_t kept_step = 0;  // bytes; 0 where x is left to itself

  PlaneSource(const Weight& w, int64_t first, int64_t k, const Block& groups, bool fetch)
      : GroupSource<T, Ops, kGroups, NV>(w, groups),
        operands(w),
        reader(w, first, k),
        panel(first),
        fetches(fetch),
        far(fetch && w.depth_padded * 2 * Operands::kBits >= kLongPanelBytes),
        left(steps(w.depth_padded - k)) {}

  // Whether MR rows keep lines of x in L1, and from step `step` on they do if panels are long: x is
  // so many bytes.
  template <int MR>
  static constexpr bool kKeeps =
      NV == 1 && !Ops::kFloat && MR <= T::kStreamRows && !(kFar && MR >= T::kFarRows);
  void keep(const int32_t* x, int64_t bytes, int64_t step) {
    const Weight& w = this->weight;
    if (!fetches || w.depth_padded * 2 * Operands::kBits <= kKeptPanelBytes) return;
    if (w.group == 128) return;  // as fast without (4,096 deep 1.15 of the time with)
    kept_step = (bytes / kRowBytes + kKeptLines - 1) / kKeptLines * kRowBytes;
    kept_begin = reinterpret_cast<const char*>(x);
    kept_end = kept_begin + bytes;
    kept = kept_begin + step % kKeptLines * kept_step;
    if (kept >= kept_end) kept = kept_begin;
  }

  // The small planes are too slow streams for the hardware's prefetchers.
  NIBBLAS_INLINE void begin_super(int64_t s) const {
    unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
      prefetch_super<T>(this->weight, panel + n.value, s + kSupersAhead);
    });
  }

  void begin_group(int64_t g) {
    if constexpr (kGroups == GroupKind::zero_points) {
      const Direct& direct = this->block.direct;
      if (!direct.zeros) return GroupSource<T, Ops, kGroups, NV>::begin_group(g);
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        const auto bytes = T::load_u8(direct.zeros + n.value * direct.stride + g * kPanel);
        this->zeros[n.value] = Ops::as_zeros(bytes);
      });
    }
  }
  typename T::I32 factor(int n, int64_t g) const {
    return Ops::as_factor(sub_scale<T>(this->weight, (panel + n) * this->weight.groups + g));
  }
  typename T::I32 pair(int n, int64_t p) const {
    const int64_t per_pair = this->weight.group == kSuperBlock ? 1 : 2;
    return offset_pair<T, Ops>(this->weight, panel + n, p * per_pair);
  }
  typename T::F32 scale(int n, int64_t g) const {
    if constexpr (kGroups == GroupKind::two_level) {
      return super_scale<T>(this->weight, panel + n, g);
    }
    const Direct& direct = this->block.direct;
    if (!direct.scales) return GroupSource<T, Ops, kGroups, NV>::scale(n, g);
    return T::load_f16(direct.scales + n * direct.stride + g * kPanel);
  }
  typename T::F32 min(int n, int64_t g) const {
    if constexpr (kGroups == GroupKind::two_level) {
      return super_min<T>(this->weight, panel + n, g);
    }
    const Direct& direct = this->block.direct;
    if (!direct.mins) return GroupSource<T, Ops, kGroups, NV>::min(n, g);
    return T::load_f16(direct.mins + n * direct.stride + g * kPanel);
  }

  static int64_t steps(int64_t depth) { return depth / Reader::kStep; }
  int64_t most_steps() const { return Ops::most_steps(this->weight.top_operand) / kParts; }
  using Raw = typename Reader::Rows;
  template <int MR>
  NIBBLAS_INLINE Raw load(int n) const {
    // One fast stream is best left to the hardware's prefetchers; they follow few, to a page's end.
    if constexpr (NV > 1) {
      if (fetches) reader.prefetch_l2(n, kPrefetchBytes, left, NV);
    } else if (kFar && MR >= T::kFarRows && far) {
      reader.prefetch_l2(n, kPrefetchFarBytes, left, NV);
    } else if (MR > 2 && fetches) {
      reader.prefetch(n, kPrefetchSlowBytes);
    }
    auto rows = reader.load(n);
    // Or GCC would load them again for the second part.
    if constexpr (Ops::kHalvesX) {
      for (auto& row : rows.row) T::hide(row);
    }
    return rows;
  }
  template <int part, int MR, bool in_place>
  NIBBLAS_INLINE typename Ops::W operand(int n, const Raw& raw) const {
    if constexpr (in_place) return Reader::template high_in_place<part / 2>(raw);
    const auto w = operand_of<part, Reader, MR>(operands, raw);
    if constexpr (Ops::kFloat && kGroups == GroupKind::zero_points) {
      return T::sub(w, this->zeros[n]);
    } else {
      return w;
    }
  }
  template <int MR>
  NIBBLAS_INLINE void next() {
    if constexpr (kKeeps<MR>) {
      if (kept_step) {
        T::prefetch(kept);
        kept += kept_step;
        if (kept >= kept_end) kept = kept_begin;
      }
    }
    reader.next();
    --left;
  }
};

// 8-bit codes as they stand, for the tiles of many rows. Where those come from L3 or memory, the
// hardware's prefetchers lose a part of the time at the start of each, so each asks for the next
// one's (512 rows 11,008 deep took 0.96 of the time so on AVX-512, float32 0.76; held to AVX2 0.77
// and 0.54).
template <class T, class Dot, int NV>
struct SweptPlanes : PlaneSource<T, IntCodes<T, 8, Dot>, GroupKind::constant, NV> {
  static constexpr bool kFetchesRows = true;
  int64_t rows_ahead = 0;  // words

  using PlaneSource<T, IntCodes<T, 8, Dot>, GroupKind::constant, NV>::PlaneSource;
};

// Operands of a block that make a step: of floats two (held to AVX2 0.96 of the time), of integers,
// where it is 0.99, one, to keep the code small.
template <class Ops>
constexpr int kBlockParts = Ops::kFloat ? 2 : 1;

// Operands of a block. Float ones have their zero points subtracted already.
template <class T, class Ops_, GroupKind kGroups, int NV>
struct BlockSource : GroupSource<T, Ops_, kGroups, NV> {
  using Ops = Ops_;
  static constexpr int kPanels = NV;
  static constexpr int kParts = kBlockParts<Ops>;
  static constexpr int kRun = kParts;
  static constexpr GroupKind kKind = kGroups;
  static constexpr bool kFetchesRows = !Ops::kNarrow;  // as SweptPlanes
  static constexpr bool kHighInPlace = false;
  int64_t rows_ahead = 0;

  BlockSource(const Weight& w, const Block& b) : GroupSource<T, Ops, kGroups, NV>(w, b) {}

  static int64_t steps(int64_t depth) { return depth / 4 * Ops::kQuadParts / Ops::kQuads / kParts; }
  int64_t most_steps() const { return Ops::most_steps(this->weight.top_operand); }
  using Raw = const uint8_t*;
  template <int>
  NIBBLAS_INLINE Raw load(int n) const {
    return this->block.rows + n * kOperandBytes<Ops>;
  }
  template <int part, int MR, bool>
  NIBBLAS_INLINE typename Ops::W operand(int, Raw raw) const {
    return Ops::load_w(raw + part * NV * kOperandBytes<Ops>);
  }
  template <int MR>
  NIBBLAS_INLINE void next() {
    this->block.rows += kParts * NV * kOperandBytes<Ops>;
  }
};

}  // namespace
}  // namespace nibblas
