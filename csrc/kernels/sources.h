// SPDX-License-Identifier: Apache-2.0
// How a tile gets its weights: straight from the packed planes (few rows: each byte is used once or
// a few times), or from a block that was expanded once and is swept by many rows.
#pragma once

#include "kernels/values.h"

namespace nibblas {
namespace {

// How codes are offset, as far as the loops differ: by one zero point for the whole matrix (free),
// by a zero point per group, or by a float min per group.
enum class OffsetKind { constant, zero_points, mins };

inline OffsetKind offset_kind(const Weight& w) {
  return w.zero_points ? OffsetKind::zero_points
                       : w.mins ? OffsetKind::mins : OffsetKind::constant;
}

// compute="int8": c = start + sum of products in int32, then acc = fma(float(c), a * s, acc).
template <class T, class Dot>
struct IntOps : Dot {
  static constexpr bool kFloat = false;
  using Sum = typename T::I32;
  using Zero = typename T::I32;
  static Zero load_zeros(const uint8_t* p) { return T::load_u8(p); }
  static Sum first(int32_t start) { return T::set1_i32(start); }
  static Sum first(int32_t start, Zero zeros) { return T::mul_i32(T::set1_i32(start), zeros); }
  static Sum load_sum(const void* p) { return T::load_i32(p); }
  static void store_sum(void* p, Sum c) { T::store_i32(p, c); }
  static typename T::F32 combine(Sum c, float a, typename T::F32 s, typename T::F32 acc) {
    return T::fma(T::to_f32(c), T::mul(T::set1(a), s), acc);
  }
};

// compute="float32": p = fma(x, value, p) from 0, then acc = fma(p, s, acc).
template <class T>
struct FloatOps {
  static constexpr bool kFloat = true;
  static constexpr int kMaxSteps = kUnlimited;
  using W = typename T::F32;
  using X = typename T::F32;
  using Acc = typename T::F32;
  using Sum = typename T::F32;
  using Zero = typename T::F32;
  static Zero load_zeros(const uint8_t* p) { return T::to_f32(T::load_u8(p)); }
  static W load_w(const uint8_t* p) { return T::from_bits(T::load_i32(p)); }
  static void store_w(uint8_t* p, W w) { T::store_i32(p, T::bits(w)); }
  static X load_x(const int32_t* p) {
    float x;
    memcpy(&x, p, sizeof x);
    return T::set1(x);
  }
  static Sum first(int32_t) { return T::zero_f32(); }
  static Sum first(int32_t, Zero) { return T::zero_f32(); }
  static Acc step(Acc p, W w, X x) { return T::fma(x, w, p); }
  static Sum load_sum(const void* p) { return T::from_bits(T::load_i32(p)); }
  static void store_sum(void* p, Sum c) { T::store_i32(p, T::bits(c)); }
  static typename T::F32 combine(Sum p, float, typename T::F32 s, typename T::F32 acc) {
    return T::fma(p, s, acc);
  }
};

// The operands in a plane row, in the order in which packed rows of x hold their words.
template <class T, int Bits>
struct IntSplit {
  using Dot = typename T::template IntDot<Bits>;
  using Ops = IntOps<T, typename Dot::Tile>;
  static constexpr int kParts = Dot::kParts;
  explicit IntSplit(const Weight&) {}
  template <int part>
  typename Ops::W split(typename T::I32 row) const { return Dot::template split<part>(row); }
};

template <class T, int Bits>
struct FloatSplit {
  using Ops = FloatOps<T>;
  static constexpr int kParts = 32 / Bits;  // one k each: byte part % 4, slice part / 4
  typename T::template Decoder<Bits> decoder;
  explicit FloatSplit(const Weight& w) : decoder(static_cast<float>(w.zero)) {}
  template <int part>
  typename T::F32 split(typename T::I32 row) const {
    return decoder.template decode<part % 4 * 8 + part / 4 * Bits>(row);
  }
};

// Weights straight from the planes: NV panels in flight.
template <class T, class Split, OffsetKind kOffset, int NV>
struct PlaneSource {
  using Ops = typename Split::Ops;
  static constexpr int kPanels = NV;
  static constexpr int kParts = Split::kParts;
  static constexpr OffsetKind kKind = kOffset;
  using Raw = typename T::I32;

  const Weight& weight;
  Split split;
  const uint8_t* codes;  // the next row of the first panel
  int64_t stride;        // from a panel's row to the next panel's
  int64_t panel;
  typename Ops::Zero zeros[NV];

  PlaneSource(const Weight& w, int64_t first_panel)
      : weight(w),
        split(w),
        codes(w.slice[0].data + first_panel * plane_rows(w.depth_padded, w.bits) * kRowBytes),
        stride(plane_rows(w.depth_padded, w.bits) * kRowBytes),
        panel(first_panel) {}

  int64_t rows(int64_t depth) const { return plane_rows(depth, weight.bits); }
  int64_t index(int n, int64_t g) const { return (panel + n) * weight.groups + g; }
  void begin_group(int64_t g) {
    if constexpr (kOffset == OffsetKind::zero_points) {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        zeros[n.value] = Ops::load_zeros(weight.zero_points + index(n.value, g) * kPanel);
      });
    }
  }
  Raw load(int n) const {
    const uint8_t* p = codes + n * stride;
    T::prefetch(p + kPrefetchBytes);
    return T::load_i32(p);
  }
  void next_row() { codes += kRowBytes; }
  template <int part>
  typename Ops::W operand(int n, Raw raw) const {
    const auto w = split.template split<part>(raw);
    if constexpr (Ops::kFloat && kOffset == OffsetKind::zero_points) {
      return T::sub(w, zeros[n]);
    } else {
      return w;
    }
  }
  typename T::F32 scale(int n, int64_t g) const {
    return load_scales<T>(weight.scales, weight.scale_type, index(n, g));
  }
  typename T::F32 min(int n, int64_t g) const {
    return load_scales<T>(weight.mins, weight.min_type, index(n, g));
  }

  // Hardware prefetchers stop at 4 KB pages and follow few streams; about 1 KB ahead covers the
  // latency of DRAM at the rate of one core.
  static constexpr int64_t kPrefetchBytes = 1024;
};

// A block of NV panels, expanded: rows of operands side by side, and float32 scales.
struct Block {
  uint8_t* rows;   // [rows][NV][64]
  float* scales;   // [groups][NV][16]
  float* mins;     // the same
  uint8_t* zeros;  // [groups][NV][16]
};

template <class T, class Ops_, OffsetKind kOffset, int NV>
struct BlockSource {
  using Ops = Ops_;
  static constexpr int kPanels = NV;
  static constexpr int kParts = 1;
  static constexpr OffsetKind kKind = kOffset;
  using Raw = typename Ops::W;

  Block block;
  typename Ops::Zero zeros[NV];

  explicit BlockSource(const Block& b) : block(b) {}

  void begin_group(int64_t g) {
    if constexpr (kOffset == OffsetKind::zero_points && !Ops::kFloat) {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        zeros[n.value] = Ops::load_zeros(block.zeros + (g * NV + n.value) * kPanel);
      });
    }
  }
  Raw load(int n) const { return Ops::load_w(block.rows + n * kRowBytes); }
  void next_row() { block.rows += NV * kRowBytes; }
  template <int part>
  typename Ops::W operand(int, Raw raw) const { return raw; }
  typename T::F32 scale(int n, int64_t g) const {
    return T::load(block.scales + (g * NV + n) * kPanel);
  }
  typename T::F32 min(int n, int64_t g) const {
    return T::load(block.mins + (g * NV + n) * kPanel);
  }
};

// Expands `depth` codes of NV panels from code k0 and, when they are groups, their parameters.
template <class T, class Split, OffsetKind kOffset, int NV>
void expand_block(const Weight& w, int64_t panel, int64_t k0, int64_t depth, bool parameters,
                  const Block& out) {
  using Ops = typename Split::Ops;
  PlaneSource<T, Split, kOffset, NV> from(w, panel);
  from.codes += plane_rows(k0, w.bits) * kRowBytes;
  const int64_t group = smaller(w.group, depth);  // a block is whole groups, or inside one
  uint8_t* to = out.rows;
  for (int64_t k = 0, g = k0 / w.group; k < depth; k += group, ++g) {
    from.begin_group(g);
    for (int64_t j = 0; j < plane_rows(group, w.bits); ++j, from.next_row()) {
      unroll<NV>([&](auto n) NIBBLAS_INLINE_LAMBDA {
        const auto raw = from.load(n.value);
        unroll<Split::kParts>([&](auto part) NIBBLAS_INLINE_LAMBDA {
          Ops::store_w(to + (part.value * NV + n.value) * kRowBytes,
                       from.template operand<part.value>(n.value, raw));
        });
      });
      to += Split::kParts * NV * kRowBytes;
    }
    if (!parameters) continue;
    const int64_t at = k / group * NV;
    for (int n = 0; n < NV; ++n) {
      T::store(out.scales + (at + n) * kPanel, from.scale(n, g));
      if constexpr (kOffset == OffsetKind::mins) {
        T::store(out.mins + (at + n) * kPanel, from.min(n, g));
      }
      if constexpr (kOffset == OffsetKind::zero_points) {
        memcpy(out.zeros + (at + n) * kPanel, w.zero_points + from.index(n, g) * kPanel, kPanel);
      }
    }
  }
}

}  // namespace
}  // namespace nibblas
