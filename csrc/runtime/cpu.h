// SPDX-License-Identifier: Apache-2.0
// What this CPU is and can run. Detected at first use, without locks, and kept for the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace nibblas {

// One bit per feature, so that a target states what it needs as a mask.
namespace feature {
constexpr uint64_t kAvx2 = 1u << 0;
constexpr uint64_t kFma = 1u << 1;
constexpr uint64_t kF16c = 1u << 2;
constexpr uint64_t kBmi2 = 1u << 3;
constexpr uint64_t kAvxVnni = 1u << 4;
constexpr uint64_t kAvxVnniInt8 = 1u << 5;
constexpr uint64_t kAvx512F = 1u << 6;
constexpr uint64_t kAvx512Bw = 1u << 7;
constexpr uint64_t kAvx512Vl = 1u << 8;
constexpr uint64_t kAvx512Dq = 1u << 9;
constexpr uint64_t kAvx512Vnni = 1u << 10;
constexpr uint64_t kAvx512Vbmi = 1u << 11;
constexpr uint64_t kAmxTile = 1u << 12;
constexpr uint64_t kAmxInt8 = 1u << 13;
constexpr uint64_t kNeon = 1u << 16;
constexpr uint64_t kDotprod = 1u << 17;
constexpr uint64_t kFp16 = 1u << 18;
constexpr uint64_t kI8mm = 1u << 19;
}  // namespace feature

// A bit is set only if the CPU has the feature and the operating system saves its registers.
struct CpuFeatures {
  uint64_t bits = 0;

  bool has(uint64_t mask) const { return (bits & mask) == mask; }
  uint64_t missing(uint64_t mask) const { return mask & ~bits; }
};

// As seen from one core, in bytes; 0 where unknown. l3 is the slice that core shares.
struct CacheSizes {
  std::size_t l1d = 0;
  std::size_t l2 = 0;
  std::size_t l3 = 0;
};

struct Cpu {
  CpuFeatures features;
  CacheSizes caches;
  std::string vendor;  // "" where unknown, as is brand
  std::string brand;
};

const Cpu& cpu();

inline const CpuFeatures& cpu_features() { return cpu().features; }

// The features of a mask, spelled as in Linux's /proc/cpuinfo on x86 ("avx512_vnni").
std::vector<const char*> feature_names(uint64_t mask);

// The mask of such names. Throws std::invalid_argument if one is not known.
uint64_t feature_mask(const std::vector<std::string>& names);

}  // namespace nibblas
