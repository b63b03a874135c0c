# SPDX-License-Identifier: Apache-2.0
"""The numeric contract of nibblas in NumPy: what every kernel computes, bit for bit.

Nothing here needs the native module, nor does any kernel run through here: these functions exist to
be read, to be tested against, and to check a result on a machine without nibblas. They are exact
and slow. `docs/numerics.md` states the same in words.
"""

from nibblas._candidates import CANDIDATES, INT4_DIVISORS, UINT4_SHRINK, candidates

from .activations import gelu, gelu_tanh, relu, silu
from .codebooks import float32_to_e4m3, quantize_codebook
from .fma import fma
from .k_quants import K_QUANTS, quantize_blocks
from .layout import (
    bfloat16_to_float32,
    canonical_nan,
    e4m3_to_float32,
    e8m0_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    group_count,
    normalize_group_size,
    pack_groups,
    pack_planes,
    padded_depth,
    round_to,
    scales_to_float32,
    slice_widths,
    to_float32,
    unpack_groups,
    unpack_planes,
)
from .parts import Parts
from .products import (
    ACTIVATIONS,
    dequantize,
    linear,
    matmul_integer,
    quantize_activations,
)
from .weights import quantize

CONTRACT_VERSION = 1
"""Raised whenever a bit of a result may change."""

__all__ = [
    "ACTIVATIONS",
    "CANDIDATES",
    "CONTRACT_VERSION",
    "INT4_DIVISORS",
    "K_QUANTS",
    "UINT4_SHRINK",
    "Parts",
    "bfloat16_to_float32",
    "candidates",
    "canonical_nan",
    "dequantize",
    "e4m3_to_float32",
    "e8m0_to_float32",
    "float32_to_bfloat16",
    "float32_to_e4m3",
    "float32_to_float16",
    "fma",
    "gelu",
    "gelu_tanh",
    "group_count",
    "linear",
    "matmul_integer",
    "normalize_group_size",
    "pack_groups",
    "pack_planes",
    "padded_depth",
    "quantize",
    "quantize_activations",
    "quantize_blocks",
    "quantize_codebook",
    "relu",
    "round_to",
    "scales_to_float32",
    "silu",
    "slice_widths",
    "to_float32",
    "unpack_groups",
    "unpack_planes",
]
