# SPDX-License-Identifier: Apache-2.0
"""8-bit codes where pairs of products are summed in int16.

Activation codes that are too large for that, two of a pair together, have rests, which are
multiplied apart, unless a row has too many: csrc/kernels/rests.h.
"""

from __future__ import annotations

import numpy as np
import pytest

import nibblas

from .cases import Variant, assert_same_bits, random_weight

PER_CHANNEL = [
    Variant("int8", "symmetric"),
    Variant("uint8", "zero"),
    Variant("uint8", "zero_point"),
    Variant("uint8", "min"),
]


def spread(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Rows whose codes have few large pairs, many, nothing else, or hardly any small code."""
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "even":
        return rng.random(shape, np.float32)
    if kind == "equal":
        return np.where(x[:, :1] < 0, np.float32(-3), np.float32(3)) * np.ones_like(x)
    if kind == "outliers":
        x[:, :: max(shape[1] // 3, 1)] *= 40
    if kind == "mixed":
        x[rng.random(shape[0]) < 0.3] = 1
    return x


def codes_of_all_pairs(words_apart: int) -> np.ndarray:
    """int8 codes, zeros but for each pair (a, b) once, in one word of four out of so many."""
    pairs = np.stack(np.meshgrid(np.arange(-128, 128), np.arange(-128, 128)), -1).reshape(-1, 2)
    words = np.zeros((len(pairs), words_apart, 4), np.int8)
    words[::2, 0, :2] = pairs[::2]
    words[1::2, 0, 2:] = pairs[1::2]
    return words.reshape(1024, -1)


# One word in 8 may have a rest, so 64 of a row of 512 words all have room, of 256 words not.
@pytest.mark.emulated
@pytest.mark.parametrize("words_apart", [16, 8, 4])
def test_every_pair_of_activation_codes(words_apart, rng, target):
    a = codes_of_all_pairs(words_apart)
    b = rng.integers(-128, 128, (a.shape[1], 18), np.int8)
    b[:, 0], b[:, 1] = 127, -128
    expected = a.astype(np.int32) @ b.astype(np.int32)
    for rows in (1024, 30, 7, 5, 3):
        first = 1024 - rows
        assert np.array_equal(nibblas.matmul_integer(a[first:], b), expected[first:]), rows
    zero = np.arange(1024).astype(np.int8)
    moved = expected - zero[:, None].astype(np.int32) * b.sum(0, np.int32)
    assert np.array_equal(nibblas.matmul_integer(a, b, zero), moved)


@pytest.mark.parametrize("variant", PER_CHANNEL, ids=str)
@pytest.mark.parametrize("kind", ["normal", "even", "equal", "outliers", "mixed"])
def test_rows_of_any_spread(variant, kind, rng, target):
    for cols, depth in ((5, 7), (40, 64), (33, 1000), (20, 4100)):
        w = random_weight(rng, variant, (cols, depth), None, codes="high")
        x = spread(rng, kind, (70, depth))
        with nibblas.use_target("scalar"):
            expected = nibblas.linear(x, w)
        for rows in (2, 3, 4, 5, 6, 8, 11, 24, 25, 31, 70):
            for threads in (1, 3):
                y = nibblas.linear(x[-rows:], w, num_threads=threads)
                assert_same_bits(y, expected[-rows:], (cols, depth, rows, threads))


# Rows are packed 64 MB at a time, here 510 or 508 of them; the last ones have tiles of their own.
@pytest.mark.slow
def test_several_passes(rng, target):
    depth = 65_536
    w = random_weight(rng, Variant("int8", "symmetric"), (3, depth), None, codes="high")
    x = np.tile(spread(rng, "mixed", (37, depth)), (14, 1))[:517]
    a = np.clip(x * 30, -128, 127).astype(np.int8)
    zero = rng.integers(-128, 128, len(a), np.int8)
    b = w.unpack()["codes"].T.astype(np.int8)
    with nibblas.use_target("scalar"):
        expected = nibblas.linear(x[:37], w)
        integers = nibblas.matmul_integer(a[:37], b)
    sums = b.sum(0, np.int32)
    for rows in (510, 511, 513, 515, 517):
        again = np.arange(rows) % 37
        assert_same_bits(nibblas.linear(x[:rows], w), expected[again], rows)
        moved = integers[again] - zero[:rows, None].astype(np.int32) * sums
        assert np.array_equal(nibblas.matmul_integer(a[:rows], b, zero[:rows]), moved), rows


# 65,536 is where a row's sums would begin a new segment.
@pytest.mark.parametrize("depth", [65_536, 65_600])
def test_deep_rows(depth, rng, target):
    w = random_weight(rng, Variant("int8", "symmetric"), (20, depth), None, codes="high")
    x = np.concatenate([spread(rng, kind, (6, depth)) for kind in ("normal", "equal")])
    with nibblas.use_target("scalar"):
        expected = nibblas.linear(x, w)
    assert_same_bits(nibblas.linear(x, w), expected, depth)
