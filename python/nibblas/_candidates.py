# SPDX-License-Identifier: Apache-2.0
"""The candidate scales among which the rule "mse" of weight quantization chooses.

All sets come from a search over grids of 60 to 190 values: one candidate after another, then
exchanges, for the least mean log error over Gaussian, Laplace and Student t (5 and 3 degrees)
weights, groups of 16 to 256 and rows of 4096, float16 scales. What they gain is the mean squared
error on fresh weights relative to the plain scale alone, here for Gaussian (G) and Student t
(3 degrees, T) weights in groups of 32 and in rows of 4096:

            n    G 32  T 32  G 4096  T 4096
    int2    9    .263  .401   .187    .407    (the plain scale wastes one level of four)
    int3    9    .530  .566   .321    .325
    int4   15    .702  .738   .469    .363
    int5    7    .809  .863   .682    .514
    int6    5    .849  .906   .842    .735
    int7    3    .867  .928   .923    .895
    ternary 9    .420  .641   .239    .488
    uint1   7    .571  .651   .601    .789    with a zero point, as the next five
    uint2   9    .679  .773   .333    .455
    uint3   8    .876  .904   .480    .391
    uint4   7    .937  .956   .612    .497
    uint5   4    .966  .983   .787    .664
    uint6   2    .983  .994   .898    .872
    uint1   9    .174  .143   .050    .012    with a minimum, as the next two
    uint2  14    .602  .483   .254    .109
    uint3  13    .788  .757   .460    .147
    nf4     7    .795  .887   .859    .503
    fp4     7    .851  .924   .691    .431
    iq4_nl  9    .877  .933   .777    .475
    mxfp4   2    .962  .766     (groups of 32 alone)
    nvfp4   5    .735  .856     (groups of 16 alone)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Symmetric codes: scales m / d, m the weight of largest magnitude with its sign, so that m itself
# lands on d: of int4 on the code -8 for d = -8, beyond it (clipped) for the larger |d|, on 7 for d
# near 7. For int4 in full, relative to the absmax scale alone:
#
#                        group 16   32     64     128    256    4096
#   Gaussian               .683   .702   .701   .678   .647   .469
#   Laplace                .707   .718   .704   .674   .627   .378
#   Student t, 5 degrees   .700   .712   .698   .664   .605   .267
#   Student t, 3 degrees   .733   .738   .730   .700   .646   .363
#   d = -8 alone, Gaussian .746   .768   .777   .771   .771   .765
#   all 150, Gaussian      .680   .702   .700   .677   .643   .461
INT4_DIVISORS = (
    *(-8.0, -8.25, -8.5, -8.75, -9.0, -9.25, -9.75, -10.5),
    *(-11.5, -13.5, -17.0, -25.0, -7.75, 7.25, 6.25),
)
"""Candidates d of the int4 "mse" rule, in order, after the absmax scale."""

# Zero points: both ends of the range shrink by c. Zero must be a code and both ends are already
# met, so small groups gain little from 4 bits on. For uint4 in full:
#
#                        group 16   32     64     128    256    4096
#   Gaussian               .943   .937   .919   .897   .855   .612
#   Laplace                .954   .948   .935   .905   .858   .534
#   Student t, 3 degrees   .956   .956   .946   .919   .870   .497
#   all 57, Gaussian       .940   .934   .916   .892   .847   .597
UINT4_SHRINK = tuple(n / 64 for n in (64, 63, 62, 60, 58, 55, 44, 32))
"""Candidates c of the uint4 "mse" rule, in order; the first is the plain scale."""


def _shrink(*sixty_fourths: int) -> tuple[float, ...]:
    return tuple(n / 64 for n in sixty_fourths)


def _ranges(*cuts: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Where a range begins, and its width, from what is cut off below and above, in 32nds."""
    return tuple((below / 32, 1 - (below + above) / 32) for below, above in cuts)


# For uint1 to uint3 with a minimum. From 4 bits on a group needs both its ends more than it gains.
_MIN_RANGES: dict[int, tuple[tuple[float, float], ...]] = {
    1: _ranges(*((12, 11), (9, 8), (13, 13), (6, 5), (10, 13), (2, 10), (13, 9), (7, 12), (11, 6))),
    2: _ranges(
        *((7, 7), (4, 4), (10, 10), (2, 6), (6, 2), (12, 8), (9, 13)),
        *((5, 9), (9, 5), (12, 12), (2, 3), (4, 0), (5, 13), (0, 4)),
    ),
    3: _ranges(
        *((2, 4), (7, 8), (2, 1), (0, 2), (4, 3), (8, 11), (2, 0)),
        *((10, 6), (1, 1), (4, 5), (10, 13), (3, 0), (13, 9)),
    ),
}

_SYMMETRIC = {
    "int2": (-2.5, -2.9375, -2.1875, -3.75, -1.875, -5.5, -12.0, 2.625, 3.5),
    "int3": (-4.75, -5.25, -4.375, -6.0, -4.125, -7.0, -3.875, -9.5, -16.0),
    "int4": INT4_DIVISORS,
    "int5": (-16.0, -16.5, -17.0, -18.0, -14.0, -21.5, -28.0),
    "int6": (-32.0, -33.0, -30.0, -29.0, -39.0),
    "int7": (-64.0, -62.0, -68.0),
    # Ternary takes |m| / d.
    "ternary": (1.75, 2.0625, 2.375, 1.4375, 2.75, 3.25, 4.125, 5.6875, 10.0),
}
_ZERO_POINT = {
    "uint1": _shrink(17, 9, 30, 45, 22, 13, 8),
    "uint2": _shrink(36, 17, 49, 27, 10, 43, 55, 22, 32),
    "uint3": _shrink(44, 25, 57, 51, 36, 17, 60, 71),
    "uint4": UINT4_SHRINK[1:],
    "uint5": _shrink(63, 62, 52, 43),
    "uint6": _shrink(63, 57),
}

# Codebooks: scales |m| / d, and m / d where the two ends of the codebook differ (iq4_nl). A
# negative d turns the codebook of nf4 around, whose two halves are not alike. The first one is the
# plain rule: the largest weight becomes the largest entry (of mxfp4: e = floor(log2 |m|) - 2; of
# nvfp4: 6, and 4 puts it one entry lower, where the steps are finer).
_CODEBOOK = {
    "nf4": (1.0, -1.0, 1.09375, -1.0625, 1.03125, 0.9375, -1.46875, 2.0),
    "fp4": (1.0, 1.1875, 1.09375, 1.03125, 0.9375, 1.40625, 1.9375, 3.25),
    "iq4_nl": (-127.0, -132.0, -123.0, -138.0, -144.0, 114.0, -108.0, -162.0, -200.0, -280.0),
    "mxfp4": (4.0, 2.0, 8.0),
    "nvfp4": (6.0, 4.0, 6.5, 5.625, 4.375, 3.75),
}

CANDIDATES: Mapping[tuple[str, str], tuple[float, ...] | tuple[tuple[float, float], ...]] = (
    MappingProxyType(
        {
            **{(name, "symmetric"): divisors for name, divisors in _SYMMETRIC.items()},
            **{(name, "zero_point"): shrink for name, shrink in _ZERO_POINT.items()},
            **{(f"uint{bits}", "min"): ranges for bits, ranges in _MIN_RANGES.items()},
            **{(name, "symmetric"): divisors for name, divisors in _CODEBOOK.items()},
        }
    )
)
"""What the rule "mse" tries, by scheme and offset, in order."""


def candidates(
    scheme: str, offset: str, rule: str
) -> tuple[float, ...] | tuple[tuple[float, float], ...]:
    """What a rule tries besides the plain scale, in order; for codebooks, all that it tries.

    Symmetric codes: divisors of the weight of largest magnitude. Zero points: factors of both ends
    of the range. Minima: pairs, where in the range and how wide a part of it the codes cover.
    Codebooks: divisors, the first of which is the rule "absmax".

    Examples
    --------
    >>> candidates("int6", "symmetric", "mse")
    (-32.0, -33.0, -30.0, -29.0, -39.0)
    >>> candidates("int6", "symmetric", "absmax"), candidates("int8", "symmetric", "mse")
    ((), ())
    >>> candidates("nvfp4", "symmetric", "absmax")
    (6.0,)
    """
    tried = CANDIDATES.get((scheme, offset), ())
    if rule == "absmax":
        return tried[:1] if scheme in _CODEBOOK else ()
    return tried
