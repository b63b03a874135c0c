// SPDX-License-Identifier: Apache-2.0
#include "runtime/dispatch.h"

#include <atomic>
#include <functional>
#include <optional>
#include <stdexcept>

#include "runtime/os.h"
#include "runtime/tile_permission.h"

namespace nibblas {
namespace {

#if NIBBLAS_X86
// Every instruction set that cmake/targets.json lets the compiler use in the target's files.
constexpr uint64_t kAvx2Needs = feature::kAvx2 | feature::kFma | feature::kF16c | feature::kBmi2;
constexpr uint64_t kAvxVnniNeeds = kAvx2Needs | feature::kAvxVnni;
constexpr uint64_t kAvx512Needs = kAvx2Needs | feature::kAvx512F | feature::kAvx512Bw |
                                  feature::kAvx512Vl | feature::kAvx512Dq;
constexpr uint64_t kAvx512VnniNeeds = kAvx512Needs | feature::kAvx512Vnni;
constexpr uint64_t kAmxNeeds = kAvx512VnniNeeds | feature::kAmxTile | feature::kAmxInt8;
#endif
#if NIBBLAS_ARM
constexpr uint64_t kDotprodNeeds = feature::kNeon | feature::kDotprod;
constexpr uint64_t kI8mmNeeds = kDotprodNeeds | feature::kI8mm;
#endif

// Best first: avxvnni multiplies 4-bit codes as fast as avx512 does and 8-bit codes twice as fast.
// Targets that differ in integer dot products alone share all other tables. "scalar" is last and
// needs nothing, so that every CPU has a target.
constexpr TargetInfo kTargets[] = {
#if NIBBLAS_X86
    {"amx", "tiles for int8 products of many rows, else avx512vnni", kAmxNeeds, &kAmxKernels,
     &kAvx512Floats, &kAvx512Conversions},
    {"avx512vnni", "512-bit vectors, four-way int8 dot products", kAvx512VnniNeeds,
     &kAvx512VnniKernels, &kAvx512Floats, &kAvx512Conversions},
    {"avxvnni", "256-bit vectors, four-way int8 dot products", kAvxVnniNeeds, &kAvxVnniKernels,
     &kAvx2Floats, &kAvx2Conversions},
    {"avx512", "512-bit vectors, int8 dot products through int16", kAvx512Needs, &kAvx512Kernels,
     &kAvx512Floats, &kAvx512Conversions},
    {"avx2", "256-bit vectors, int8 dot products through int16", kAvx2Needs, &kAvx2Kernels,
     &kAvx2Floats, &kAvx2Conversions},
#endif
#if NIBBLAS_ARM
    {"neon_i8mm", "128-bit vectors, four-way dot products of codes as they are", kI8mmNeeds,
     &kNeonI8mmKernels, &kNeonFloats, &kNeonConversions},
    {"neon_dotprod", "128-bit vectors, four-way int8 dot products", kDotprodNeeds,
     &kNeonDotprodKernels, &kNeonFloats, &kNeonConversions},
    {"neon", "128-bit vectors, int8 dot products through int16", feature::kNeon, &kNeonKernels,
     &kNeonFloats, &kNeonConversions},
#endif
    {"scalar", "plain C++, the reference for every other target", 0, &kScalarKernels,
     &kScalarFloats, &kScalarConversions},
};

std::atomic<const TargetInfo*> g_active{nullptr};

using WhyNoTiles = std::function<std::string()>;

std::string why_unavailable(const TargetInfo& target, const CpuFeatures& features,
                            const WhyNoTiles& no_tiles) {
  std::string reason;
  for (const char* name : feature_names(features.missing(target.required))) {
    reason += reason.empty() ? "needs " : ", ";
    reason += name;
  }
  if (reason.empty() && (target.required & feature::kAmxTile)) reason = no_tiles();
  return reason;
}

// What there is to run on here. A build that emulates tiles has them.
CpuFeatures features_here() {
  CpuFeatures features = cpu_features();
#if NIBBLAS_EMULATE_TILES
  features.bits |= feature::kAmxTile | feature::kAmxInt8;
#endif
  return features;
}

std::string tiles_here() {
#if NIBBLAS_EMULATE_TILES
  return "";
#else
  return why_no_tiles();
#endif
}

std::string why_unavailable(const TargetInfo& target) {
  return why_unavailable(target, features_here(), tiles_here);
}

// `subject` opens the message: where the name came from.
const TargetInfo& find_target(std::string_view name, const char* subject) {
  std::string reason = "is not known";
  for (const TargetInfo& target : kTargets) {
    if (name != target.name) continue;
    const std::string unavailable = why_unavailable(target);
    if (unavailable.empty()) return target;
    reason = "cannot run on this CPU (" + unavailable + ")";
  }
  std::string choices;
  for (const TargetInfo* target : available_targets()) {
    choices.append(choices.empty() ? "" : ", ").append(target->name);
  }
  std::string message = subject;
  message.append(" \"").append(name).append("\" ").append(reason);
  throw std::invalid_argument(message + "; the choices on this CPU are: " + choices);
}

const TargetInfo& initial_target() {
  if (const std::optional<std::string> name = environment_variable("NIBBLAS_TARGET")) {
    return find_target(*name, "NIBBLAS_TARGET");
  }
  return *available_targets().front();
}

}  // namespace

const TargetInfo& active_target() {
  const TargetInfo* active = g_active.load(std::memory_order_acquire);
  if (active == nullptr) {
    const TargetInfo& initial = initial_target();
    // Whoever set one in the meantime wins.
    if (g_active.compare_exchange_strong(active, &initial)) active = &initial;
  }
  return *active;
}

void set_target(std::string_view name) {
  g_active.store(&find_target(name, "target"), std::memory_order_release);
}

std::vector<const TargetInfo*> available_targets() {
  std::vector<const TargetInfo*> available;
  for (const TargetInfo& target : kTargets) {
    if (why_unavailable(target).empty()) available.push_back(&target);
  }
  return available;
}

std::vector<TargetStatus> all_targets() { return targets_on(features_here(), tiles_here); }

std::vector<TargetStatus> targets_on(const CpuFeatures& features, const WhyNoTiles& no_tiles) {
  std::vector<TargetStatus> all;
  for (const TargetInfo& target : kTargets) {
    all.push_back({&target, why_unavailable(target, features, no_tiles)});
  }
  return all;
}

}  // namespace nibblas
