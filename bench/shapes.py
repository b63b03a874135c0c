# SPDX-License-Identifier: Apache-2.0
"""All sizes and schemes that the suites go through, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nibblas.cli._accuracy import SchemeChoice
from nibblas.cli._bench import Shape, parse_schemes, parse_shapes


class Sizes(NamedTuple):
    """One selection: every combination of these is a benchmark."""

    shapes: Sequence[Shape]  # N x K
    rows: Sequence[int]
    schemes: Sequence[SchemeChoice]


# A sentence encoder's feed-forward layer; two squares; and a 7B language model's feed-forward
# layers, wide and deep.
FULL = Sizes(
    parse_shapes("384x1536,1024x1024,4096x4096,11008x4096,4096x11008"),
    (1, 4, 8, 32, 128, 512),
    parse_schemes(
        "int8,int8-g32,uint8,int4-g16,int4-g32,int4-g128,int4-channel,"
        "uint4-g32,uint4-g128,uint4-g32-min"
    ),
)

# One in a core's caches and one that is not; one row (memory) and many (arithmetic).
SMALL = Sizes(
    parse_shapes("1024x1024,4096x4096"),
    (1, 128),
    parse_schemes("int8,int4-g32,uint4-g32,uint4-g32-min"),
)

# With --benchmark-disable, which shows that the suites work: everything once, in seconds.
SMOKE = Sizes(parse_shapes("384x1536"), (1, 8), SMALL.schemes)

# The smallest product that is more than a call.
OVERHEAD = Sizes(parse_shapes("16x64"), (1,), SMALL.schemes)

# The speed table: N x K, and what is measured at how many rows.
SPEED_SHAPE = "4096x4096"
SPEED_WARM = (128, ("int4-g32", "int8"))
SPEED_COLD = (1, ("int4-g32",))

# bench/compare.py: products with cold weights, then with warm ones; operations on weights are on
# fewer outputs, since they cost more for each.
COMPARE_SHAPE = "4096x4096"
COMPARE_SCHEMES = "int4-g32,int8,q4_k,nf4"
COMPARE_COLD_ROWS = (1, 4)
COMPARE_WARM_ROWS = (8, 32, 128)
COMPARE_FLOAT_ROWS = (1, 32)
COMPARE_WEIGHT_COLS = 512
COMPARE_ACTIVATION_ROWS = 32
COMPARE_CALL_SHAPE = "16x64"
