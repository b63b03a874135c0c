# SPDX-License-Identifier: Apache-2.0
"""Products against float64: no further off than the roundings of the contract allow."""

from __future__ import annotations

import numpy as np
import pytest

import nibblas
from nibblas import numerics

from .cases import (
    Variant,
    assert_same_bits,
    computes,
    random_weight,
    random_x,
    tail_depth,
    variants,
)

Decoded = numerics.parts.Decoded
U = 2.0**-24  # the unit roundoff of float32


def exact_value(w: nibblas.PackedWeight) -> tuple[Decoded, np.ndarray, np.ndarray]:
    """The weight, its float64, and |code - zero| |scale| + |min|, in packed order of the inputs."""
    weight = numerics.parts.decode(w._raw_parts())
    group_of = np.arange(weight.values.shape[1]) // weight.group
    scaled = weight.values.astype(np.float64) * weight.scales.astype(np.float64)[:, group_of]
    low = 0.0 if weight.mins is None else weight.mins.astype(np.float64)[:, group_of]
    return weight, scaled + low, np.abs(scaled) + np.abs(low)


def error_bound(
    x: np.ndarray, weight: Decoded, size: np.ndarray, y: np.ndarray, compute: str
) -> np.ndarray:
    """What |y - exact| is at most, to first order in U = 2^-24 and 1% more for what is beyond.

    Let v be |code - zero| |scale| + |min|, G the number of groups (each with up to 2 fma) and g
    their size.

    float32 compute: each product x * v goes through at most g roundings of its group's sum (and
    one that sums x for the min), and 2 G of the row's: (g + 2 G + 1) U sum |x| v.

    int8 compute: x becomes a * code, with one a for a group or a super-block. Codes are rounded, so
    off by half: a / 2 sum v. r, a, a / 127 and x * r are rounded, too, each by U relative to x:
    4 U sum |x| v covers that. The integer sum is exact, its conversion, a * s, and the conversion
    and product for the min are one rounding each, the row's sum 2 G: (2 G + 3) U sum (|x| + a / 2)
    v. Values of float codebooks become integers / 127, off by what `off` says.

    Both: y + 0 is exact, y + bias and the output's rounding are U |y| each.
    """
    depth = x.shape[1]
    count = -(-depth // weight.group)
    magnitude = np.abs(x.astype(np.float64))
    if compute == "float32":
        bound = (weight.group + 2 * count + 1) * U * (magnitude @ size.T)
    else:
        segment = weight.group if weight.two_level is None else 256
        largest = np.maximum.reduceat(magnitude, np.arange(0, depth, segment), axis=1)
        a = largest.repeat(segment, axis=1)[:, :depth] / 127
        bound = (a / 2) @ size.T + 4 * U * (magnitude @ size.T)
        bound += (2 * count + 3) * U * ((magnitude + a / 2) @ size.T)
        if weight.float_codebook:
            scales = np.abs(weight.scales.astype(np.float64)).repeat(weight.group, axis=1)
            off = np.abs(weight.values - weight.integers / 127.0) * scales[:, :depth]
            bound += (magnitude + a / 2) @ off.T
    return 1.01 * (bound + 2 * U * np.abs(y))


@variants
@computes
@pytest.mark.parametrize("group", [16, 64, 512, None], ids=lambda group: f"g{group}")
def test_error_is_within_the_derived_bound(variant, compute, group, rng, target):
    x = random_x(rng, (7, tail_depth(group)))
    w = random_weight(rng, variant, (21, x.shape[1]), group)
    bias = random_x(rng, (21,))
    y = nibblas.linear(x, w, bias, compute=compute).astype(np.float64)
    weight, dense, size = exact_value(w)
    x = x[:, weight.input_order]
    exact = x.astype(np.float64) @ dense.T + bias
    bound = error_bound(x, weight, size, y, compute)
    assert (np.abs(y - exact) <= bound).all()
    # A bound that everything meets would say nothing. It is a small part of sum |x| v: some 800
    # roundings of 2^-24, or half of 1 / 127 of the largest |x|, about four times the mean one.
    part = bound.sum() / (np.abs(x.astype(np.float64)) @ size.T).sum()
    assert part < (0.03 if compute == "int8" else 1e-4)


def test_deep_rows_in_float32(rng, target):
    w = random_weight(rng, Variant("uint8", "zero_point"), (17, 70_000), None)
    x = random_x(rng, (5, 70_000))
    y = nibblas.linear(x, w, compute="float32")
    with nibblas.use_target("scalar"):  # in two parts, which are other kernels
        few = [nibblas.linear(part, w, compute="float32") for part in (x[:1], x[1:])]
    assert_same_bits(y, np.concatenate(few))
    weight, dense, size = exact_value(w)
    bound = error_bound(x, weight, size, y.astype(np.float64), "float32")
    assert (np.abs(y - x.astype(np.float64) @ dense.T) <= bound).all()
