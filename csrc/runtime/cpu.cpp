// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "runtime/os.h"

#if NIBBLAS_X86
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32) && defined(_M_ARM64)
#define NOMINMAX
#include <windows.h>
#endif

namespace nibblas {
namespace {

constexpr struct {
  uint64_t bit;
  const char* name;
} kFeatureNames[] = {
    {feature::kAvx2, "avx2"},
    {feature::kFma, "fma"},
    {feature::kF16c, "f16c"},
    {feature::kBmi2, "bmi2"},
    {feature::kAvxVnni, "avx_vnni"},
    {feature::kAvxVnniInt8, "avx_vnni_int8"},
    {feature::kAvx512F, "avx512f"},
    {feature::kAvx512Bw, "avx512bw"},
    {feature::kAvx512Vl, "avx512vl"},
    {feature::kAvx512Dq, "avx512dq"},
    {feature::kAvx512Vnni, "avx512_vnni"},
    {feature::kAvx512Vbmi, "avx512_vbmi"},
    {feature::kAmxTile, "amx_tile"},
    {feature::kAmxInt8, "amx_int8"},
    {feature::kNeon, "neon"},
    {feature::kDotprod, "dotprod"},
    {feature::kFp16, "fp16"},
    {feature::kI8mm, "i8mm"},
};

#if NIBBLAS_X86

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero for a leaf that the CPU does not have: Intel answers those with the highest leaf's data.
Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
#if defined(_MSC_VER) && !defined(__clang__)
  int words[4];
  __cpuid(words, static_cast<int>(leaf & 0x80000000u));
  if (static_cast<uint32_t>(words[0]) < leaf) return r;
  __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
  std::memcpy(&r, words, sizeof r);
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// XCR0: the register state that the operating system saves on a context switch.
uint64_t saved_state() {
  constexpr uint32_t kOsXsave = 1u << 27;
  if ((cpuid(1).ecx & kOsXsave) == 0) return 0;
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  uint32_t low, high;  // the instruction spelled out, as the intrinsic needs -mxsave
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
#endif
}

CpuFeatures detect_features() {
  CpuFeatures found;
  const auto add = [&found](uint64_t feature, uint32_t word, int bit) {
    if ((word >> bit & 1u) != 0) found.bits |= feature;
  };
  const auto saves = [state = saved_state()](uint64_t mask) { return (state & mask) == mask; };
  const Registers leaf1 = cpuid(1);
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : Registers{};

  add(feature::kBmi2, leaf7.ebx, 8);
  if (saves(0x6)) {  // xmm, ymm
    add(feature::kAvx2, leaf7.ebx, 5);
    add(feature::kFma, leaf1.ecx, 12);
    add(feature::kF16c, leaf1.ecx, 29);
    add(feature::kAvxVnni, leaf7_1.eax, 4);
    add(feature::kAvxVnniInt8, leaf7_1.edx, 4);
  }
  // Also the mask registers, the upper halves of zmm0..15, and zmm16..31. (macOS turns these on at
  // a thread's first use and does not show them before: Intel Macs run avx2.)
  if (saves(0xE6)) {
    add(feature::kAvx512F, leaf7.ebx, 16);
    add(feature::kAvx512Dq, leaf7.ebx, 17);
    add(feature::kAvx512Bw, leaf7.ebx, 30);
    add(feature::kAvx512Vl, leaf7.ebx, 31);
    add(feature::kAvx512Vbmi, leaf7.ecx, 1);
    add(feature::kAvx512Vnni, leaf7.ecx, 11);
  }
  if (saves(0x60000)) {  // tile configuration, tile data; see also tile_permission.h
    add(feature::kAmxTile, leaf7.edx, 24);
    add(feature::kAmxInt8, leaf7.edx, 25);
  }
  return found;
}

CacheSizes detect_caches() {
  CacheSizes sizes;
  // Leaf 4 is Intel's; AMD leaves it empty and gives the same fields in 0x8000001D.
  const uint32_t leaf = (cpuid(4).eax & 31) != 0 ? 4u : 0x8000001Du;
  for (uint32_t index = 0; index < 16; ++index) {  // a bound for broken hypervisors
    const Registers r = cpuid(leaf, index);
    const uint32_t type = r.eax & 31;  // 0 ends the list, 1 data, 2 instruction, 3 unified
    if (type == 0) break;
    if (type == 2) continue;
    const std::size_t ways = (r.ebx >> 22) + 1;
    const std::size_t partitions = (r.ebx >> 12 & 0x3FF) + 1;
    const std::size_t line = (r.ebx & 0xFFF) + 1;
    const std::size_t bytes = ways * partitions * line * (std::size_t{r.ecx} + 1);
    switch (r.eax >> 5 & 7) {
      case 1: sizes.l1d = bytes; break;
      case 2: sizes.l2 = bytes; break;
      case 3: sizes.l3 = bytes; break;
      default: break;
    }
  }
  return sizes;
}

std::string detect_vendor() {
  const Registers r = cpuid(0);
  const uint32_t words[3] = {r.ebx, r.edx, r.ecx};
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  return text;
}

std::string detect_brand() {
  char text[3 * sizeof(Registers) + 1] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(text + i * sizeof r, &r, sizeof r);
  }
  std::string brand = text;  // padded with blanks on either side
  brand.erase(0, brand.find_first_not_of(' '));
  brand.erase(brand.find_last_not_of(' ') + 1);
  return brand;
}

#elif defined(__APPLE__)

template <class T>
T system_value(const char* name) {
  T value{};
  std::size_t size = sizeof value;
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : T{};
}

CpuFeatures detect_features() {
  CpuFeatures found{feature::kNeon};
  if (system_value<int>("hw.optional.arm.FEAT_DotProd")) found.bits |= feature::kDotprod;
  if (system_value<int>("hw.optional.arm.FEAT_FP16")) found.bits |= feature::kFp16;
  if (system_value<int>("hw.optional.arm.FEAT_I8MM")) found.bits |= feature::kI8mm;
  return found;
}

CacheSizes detect_caches() {  // perflevel0: the performance cores, which share their L2; no L3
  return {system_value<std::size_t>("hw.perflevel0.l1dcachesize"),
          system_value<std::size_t>("hw.perflevel0.l2cachesize"), 0};
}

std::string detect_vendor() { return "Apple"; }

std::string detect_brand() {
  char text[128] = {};
  std::size_t size = sizeof text - 1;
  ::sysctlbyname("machdep.cpu.brand_string", text, &size, nullptr, 0);
  return text;
}

#else

CpuFeatures detect_features() {
  CpuFeatures found;
#if defined(__linux__) && defined(__aarch64__)
  const unsigned long hwcap = ::getauxval(AT_HWCAP);
  const unsigned long hwcap2 = ::getauxval(AT_HWCAP2);
  // Bit numbers of the kernel's ABI (asm/hwcap.h), which old system headers lack in part.
  if (hwcap >> 1 & 1) found.bits |= feature::kNeon;      // ASIMD
  if (hwcap >> 10 & 1) found.bits |= feature::kFp16;     // ASIMDHP
  if (hwcap >> 20 & 1) found.bits |= feature::kDotprod;  // ASIMDDP
  if (hwcap2 >> 13 & 1) found.bits |= feature::kI8mm;    // I8MM
#elif defined(_WIN32) && defined(_M_ARM64)
  found.bits = feature::kNeon;
  // Of winnt.h, where older SDKs lack the second; a Windows that does not know it denies it.
  constexpr DWORD kDotprodInstructions = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  constexpr DWORD kI8mmInstructions = 66;     // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  if (::IsProcessorFeaturePresent(kDotprodInstructions)) found.bits |= feature::kDotprod;
  if (::IsProcessorFeaturePresent(kI8mmInstructions)) found.bits |= feature::kI8mm;
#endif
  return found;
}

CacheSizes detect_caches() {
  CacheSizes sizes;
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + '/';
    if (read_text(folder + "type") == "Instruction\n") continue;
    const std::string size = read_text(folder + "size");  // "32K"
    const std::size_t bytes = std::strtoull(size.c_str(), nullptr, 10) * 1024;
    switch (std::atoi(read_text(folder + "level").c_str())) {
      case 1: sizes.l1d = bytes; break;
      case 2: sizes.l2 = bytes; break;
      case 3: sizes.l3 = bytes; break;
      default: break;
    }
  }
  return sizes;
}

// Arm's main ID register: implementer in bits 24..31, part number in bits 4..15; 0 where unknown.
uint64_t main_id() {
  const std::string text = read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1");
  return std::strtoull(text.c_str(), nullptr, 16);
}

std::string detect_vendor() {
  switch (main_id() >> 24 & 0xFF) {
    case 0x41: return "Arm";
    case 0x46: return "Fujitsu";
    case 0x48: return "HiSilicon";
    case 0x4E: return "NVIDIA";
    case 0x51: return "Qualcomm";
    case 0x61: return "Apple";
    case 0x6D: return "Microsoft";
    case 0xC0: return "Ampere";
    default: return "";
  }
}

std::string detect_brand() {
  const uint64_t id = main_id();
  if (id == 0) return "";
  constexpr char kHex[] = "0123456789abcdef";
  return std::string("part 0x") + kHex[id >> 12 & 15] + kHex[id >> 8 & 15] + kHex[id >> 4 & 15];
}

#endif

}  // namespace

const Cpu& cpu() {
  // Not a function-local object: its guard, held by another thread at a fork, would hang the child.
  static std::atomic<const Cpu*> published{nullptr};
  const Cpu* known = published.load(std::memory_order_acquire);
  if (known == nullptr) {
    const Cpu* mine = new Cpu{detect_features(), detect_caches(), detect_vendor(), detect_brand()};
    if (published.compare_exchange_strong(known, mine, std::memory_order_acq_rel)) {
      known = mine;  // kept for the life of the process
    } else {
      delete mine;
    }
  }
  return *known;
}

uint64_t feature_mask(const std::vector<std::string>& names) {
  uint64_t mask = 0;
  for (const std::string& name : names) {
    uint64_t bit = 0;
    for (const auto& entry : kFeatureNames) {
      if (name == entry.name) bit = entry.bit;
    }
    if (bit == 0) throw std::invalid_argument("unknown CPU feature \"" + name + '"');
    mask |= bit;
  }
  return mask;
}

std::vector<const char*> feature_names(uint64_t mask) {
  std::vector<const char*> names;
  for (const auto& entry : kFeatureNames) {
    if ((mask & entry.bit) != 0) names.push_back(entry.name);
  }
  return names;
}

}  // namespace nibblas
