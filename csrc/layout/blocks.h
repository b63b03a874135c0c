// SPDX-License-Identifier: Apache-2.0
// The block types of GGUF files: how many elements and bytes a block has. A row is whole blocks,
// one after the other, and so is an array of rows: operations on blocks see a flat run of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibblas {

enum class BlockType : uint8_t {
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  iq4_xs,
  mxfp4,
  tq1_0,
  tq2_0
};
constexpr int kBlockTypes = 15;

// Where the parts of blocks go, each a dense array over all blocks; null where a type has none.
struct BlockParts {
  uint8_t* codes;          // [blocks, elements], as stored: unsigned, but q8_0 as int8
  uint8_t* scales;         // [blocks, groups]: sub-scales (q3_k, q6_k, iq4_xs as int8), or e8m0
  uint8_t* mins;           // [blocks, groups]: sub-mins
  uint16_t* block_scales;  // [blocks] float16 d
  uint16_t* block_mins;    // [blocks] float16: m of q4_1 and q5_1, dmin of the others
};

// What a block of a type has.
struct BlockShape {
  const char* name;
  int elements;
  int bytes;
  int groups;  // each with a scale
  // Which members of BlockParts there are.
  bool has_scales, has_mins, has_block_scales, has_block_mins;
};

constexpr BlockShape kBlockShapes[kBlockTypes] = {
    {"Q4_0", 32, 18, 1, false, false, true, false},
    {"Q4_1", 32, 20, 1, false, false, true, true},
    {"Q5_0", 32, 22, 1, false, false, true, false},
    {"Q5_1", 32, 24, 1, false, false, true, true},
    {"Q8_0", 32, 34, 1, false, false, true, false},
    {"Q2_K", 256, 84, 16, true, true, true, true},
    {"Q3_K", 256, 110, 16, true, false, true, false},
    {"Q4_K", 256, 144, 8, true, true, true, true},
    {"Q5_K", 256, 176, 8, true, true, true, true},
    {"Q6_K", 256, 210, 16, true, false, true, false},
    {"IQ4_NL", 32, 18, 1, false, false, true, false},
    {"IQ4_XS", 256, 136, 8, true, false, true, false},
    {"MXFP4", 32, 17, 1, true, false, false, false},
    {"TQ1_0", 256, 54, 1, false, false, true, false},
    {"TQ2_0", 256, 66, 1, false, false, true, false},
};
constexpr const BlockShape& block_shape(BlockType type) {
  return kBlockShapes[static_cast<int>(type)];
}

}  // namespace nibblas
