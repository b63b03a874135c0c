// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>

#include "ops/ops.h"
#include "runtime/dispatch.h"
#include "runtime/pool.h"

namespace nibblas {
namespace {

// Elements of a task: long against the cost of taking one, 64 KB of floats. Whole batches of 16
// blocks of any type.
constexpr int64_t kElementsPerTask = int64_t{1} << 14;
// Floats worth a thread: about 20 us of decoding, and more of encoding.
constexpr int64_t kElementsPerThread = int64_t{1} << 16;

// run(first block, blocks) over all of them.
template <class Run>
void over_blocks(BlockType type, int64_t blocks, int asked, const Run& run) {
  const int64_t elements = block_shape(type).elements;
  const int64_t per_task = kElementsPerTask / elements;
  const int threads = static_cast<int>(
      std::clamp<int64_t>(blocks * elements / kElementsPerThread, 1, thread_count(asked)));
  parallel_for((blocks + per_task - 1) / per_task, threads, [&](int64_t task, int) {
    const int64_t first = task * per_task;
    run(first, std::min(per_task, blocks - first));
  });
}

}  // namespace

void dequantize_blocks(BlockType type, const uint8_t* raw, int64_t blocks, float* out,
                       int threads) {
  const ConversionTable& conversions = active_conversions();
  const BlockShape& shape = block_shape(type);
  over_blocks(type, blocks, threads, [&](int64_t first, int64_t count) {
    conversions.dequantize_blocks(type, raw + first * shape.bytes, count,
                                  out + first * shape.elements);
  });
}

void unpack_blocks(BlockType type, const uint8_t* raw, int64_t blocks, const BlockParts& parts,
                   int threads) {
  const ConversionTable& conversions = active_conversions();
  over_blocks(type, blocks, threads, [&](int64_t first, int64_t count) {
    conversions.unpack_blocks(type, raw, first, count, parts);
  });
}

void quantize_blocks(BlockType type, const float* x, int64_t blocks, uint8_t* raw, int threads) {
  const ConversionTable& conversions = active_conversions();
  const BlockShape& shape = block_shape(type);
  std::atomic<bool> not_finite{false};
  std::atomic<bool> overflow{false};
  over_blocks(type, blocks, threads, [&](int64_t first, int64_t count) {
    const QuantizeResult result = conversions.quantize_blocks(type, x + first * shape.elements,
                                                              count, raw + first * shape.bytes);
    if (result == QuantizeResult::not_finite) not_finite = true;
    if (result == QuantizeResult::overflow) overflow = true;
  });
  // NaN and infinity are the complaint to make, whatever else there is.
  if (not_finite) {
    throw std::invalid_argument("data has NaN or infinite values, which cannot be quantized");
  }
  if (overflow) {
    throw std::invalid_argument(std::string("data is too large for the float16 scales of ") +
                                shape.name);
  }
}

}  // namespace nibblas
