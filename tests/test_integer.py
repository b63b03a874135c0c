# SPDX-License-Identifier: Apache-2.0
"""matmul_integer: exact modulo 2^32, for every sign, zero point, shape, target and thread count."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import nibblas
from nibblas.schemes import SCHEMES

from .cases import (
    INTEGER_SCHEMES,
    TARGETS,
    VARIANTS,
    random_codes,
    random_weight,
    some_emulated,
)

TYPES = (np.int8, np.uint8)
signs = pytest.mark.parametrize(
    ("a_type", "b_type"),
    list(itertools.product(TYPES, TYPES)),
    ids=lambda dtype: np.dtype(dtype).name,
)


def exact(
    a: np.ndarray, b: np.ndarray, za: Any = None, zb: Any = None, wide: Any = np.int64
) -> np.ndarray:
    """(a - za) (b - zb), of which the low 32 bits are the result.

    float64 is exact, too, and much faster: sums are below 255 * 255 * 140,000 < 2^34 < 2^53.
    """
    left, right = a.astype(wide), b.astype(wide)
    if za is not None:
        left = left - np.asarray(za).astype(wide).reshape(-1, 1)
    if zb is not None:
        right = right - np.asarray(zb).astype(wide)
    return (left @ right).astype(np.int64).astype(np.uint32).view(np.int32)


def integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Random, or only the ends of the range, or one end alone."""
    ends = np.iinfo(dtype)
    kind = rng.integers(5)
    if kind == 0:
        return rng.choice(np.array([ends.min, ends.max], dtype), shape)
    if kind == 1:
        return np.full(shape, (ends.min, ends.max)[rng.integers(2)], dtype)
    if kind == 2:
        return rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int16), shape).astype(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


def zero_points(rng: np.random.Generator, length: int, dtype: Any) -> list[Any]:
    """None, a scalar of each kind, one for each row or column."""
    ends = np.iinfo(dtype)
    each = integers(rng, (length,), dtype)
    return [None, 0, ends.max, dtype(ends.min), np.array(ends.max, dtype), each, each[::-1]]


@signs
@pytest.mark.parametrize("rows", some_emulated([1, 2, 3, 4, 5, 6, 7, 13], {1, 3, 13}))
def test_all_signs_and_zero_points(a_type, b_type, rows, rng, target):
    for cols, depth in ((1, 1), (5, 4), (16, 64), (17, 63), (33, 70), (70, 131)):
        a, b = integers(rng, (rows, depth), a_type), integers(rng, (depth, cols), b_type)
        for za, zb in itertools.product(
            zero_points(rng, rows, a_type), zero_points(rng, cols, b_type)
        ):
            c = nibblas.matmul_integer(a, b, za, zb)
            assert c.dtype == np.int32
            assert np.array_equal(c, exact(a, b, za, zb)), (cols, depth, za, zb)


@signs
@hypothesis.settings(max_examples=100)
@hypothesis.given(
    lead=st.sampled_from([(), (1,), (2,), (3, 2)]),
    rows=st.integers(1, 21),
    depth=st.integers(1, 70) | st.sampled_from([127, 128, 129, 511, 512, 513, 777]),
    cols=st.integers(1, 40) | st.sampled_from([64, 65, 100]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(a_type, b_type, lead, rows, depth, cols, seed):
    rng = np.random.default_rng(seed)
    a = integers(rng, (*lead, rows, depth), a_type)
    b = integers(rng, (depth, cols), b_type)
    za = zero_points(rng, rows, a_type)[rng.integers(7)]
    zb = zero_points(rng, cols, b_type)[rng.integers(7)]
    expected = exact(a, b, za, zb)
    for name, threads in zip(TARGETS, itertools.cycle((1, 2, 3)), strict=False):
        with nibblas.use_target(name):
            c = nibblas.matmul_integer(a, b, za, zb, num_threads=threads)
            assert np.array_equal(c, expected), name


# The sums of 70,000 products of the ends with zero points at the other ends, 255 * 255 each, are
# 4.55e9: they wrap around 2^32. 65,536 is where products with scales would begin a new segment.
@signs
@pytest.mark.parametrize("depth", [65_536, 65_537, 70_000, 140_000])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_deep(a_type, b_type, depth, rows, rng, target):
    a_ends, b_ends = np.iinfo(a_type), np.iinfo(b_type)
    a, b = np.full((rows, depth), a_ends.max, a_type), np.full((depth, 18), b_ends.max, b_type)
    a[-1, ::3] = a_ends.min
    b[::5, 7] = b_ends.min
    b[:, 9] = rng.integers(b_ends.min, b_ends.max, depth, b_type, endpoint=True)
    each_row, each_col = integers(rng, (rows,), a_type), integers(rng, (18,), b_type)
    for za, zb in ((None, None), (a_ends.min, b_ends.min), (each_row, each_col), (None, each_col)):
        expected = exact(a, b, za, zb, np.float64)
        c = nibblas.matmul_integer(a, b, za, zb)
        assert np.array_equal(c, expected), (za, zb)


@pytest.mark.emulated
def test_sums_beyond_int32_wrap(target):
    """The exact results lie above 2^31, above 2^32 and below -2^31."""
    for depth, value, least, most in (
        (40_000, 255, 2**31, 2**32),
        (70_000, 255, 2**32, 2**33),
        (70_000, -128, -(2**32), -(2**31)),
    ):
        total = depth * 255 * value
        assert least < total < most
        b_type = np.uint8 if value > 0 else np.int8
        a, b = np.full((5, depth), 255, np.uint8), np.full((depth, 3), value, b_type)
        for rows in (1, 5):
            c = nibblas.matmul_integer(a[:rows], b)
            assert (c == (total + 2**31) % 2**32 - 2**31).all()


# --- packed weights as b


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("group", some_emulated([None, 16, 128], {16}))
def test_packed_weight(scheme, group, rng, target):
    w_type = np.dtype(SCHEMES[scheme].code_dtype).type
    low, high = SCHEMES[scheme].code_min, SCHEMES[scheme].code_max
    for (rows, cols, depth), codes in zip(
        ((1, 1, 1), (2, 17, 70), (4, 40, 200), (7, 33, 145), (13, 64, 256), (9, 70, 1)),
        ("any", "ends", "low", "high", "any", "any"),
        strict=True,
    ):
        values = random_codes(rng, scheme, (cols, depth), codes)
        scales = np.ones((cols, -(-depth // group) if group and group < depth else 1), np.float32)
        w = nibblas.pack(values, scales, scheme=scheme, group_size=group)
        for a_type in TYPES:
            a = integers(rng, (rows, depth), a_type)
            each = rng.integers(low, high, cols, endpoint=True).astype(w_type)
            for za, zb in (
                (None, None),
                (a_type(100), w_type(low)),
                (integers(rng, (rows,), a_type), high),
                (3, each),
                (integers(rng, (rows,), a_type), each),
            ):
                expected = exact(a, values.T, za, zb)
                assert np.array_equal(nibblas.matmul_integer(a, w, za, zb), expected)
                assert np.array_equal(nibblas.matmul_integer(a, w.T, za, zb), expected)


# The sums of 75,000 products 16 * 15 * 128, which only nibbles in place would have, pass 2^31.
@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("depth", [70_000, 150_000])
def test_deep_packed_weight(scheme, depth, rng, target):
    low, high = SCHEMES[scheme].code_min, SCHEMES[scheme].code_max
    w = nibblas.pack(
        np.full((18, depth), high, SCHEMES[scheme].code_dtype),
        np.ones(18, np.float32),
        scheme=scheme,
        group_size=None,
    )
    for rows, value in ((1, -128), (1, 127), (2, -128), (8, 127)):
        a = np.full((rows, depth), value, np.int8)
        for za, zb in ((None, None), (1, low)):
            total = (value - (za or 0)) * (high - (zb or 0)) * depth
            c = nibblas.matmul_integer(a, w, za, zb)
            assert (c == (total + 2**31) % 2**32 - 2**31).all()


def test_scales_and_offsets_of_a_packed_weight_are_not_used(rng, target):
    for variant in VARIANTS:
        w = random_weight(rng, variant, (20, 70), 16)
        a = integers(rng, (5, 70), np.int8)
        if SCHEMES[variant.scheme].codebook is not None:
            with pytest.raises(ValueError, match="codebook"):
                nibblas.matmul_integer(a, w)
            continue
        expected = exact(a, w.unpack()["codes"].T)
        assert np.array_equal(nibblas.matmul_integer(a, w), expected)


# --- arrangements, batches, threads


@signs
def test_any_arrangement(a_type, b_type, rng, target):
    a, b = integers(rng, (2, 3, 7, 83), a_type), integers(rng, (83, 37), b_type)
    za, zb = integers(rng, (7,), a_type), integers(rng, (37,), b_type)
    expected = exact(a, b, za, zb)
    wide = np.zeros((2, 6, 14, 166), a_type)
    wide[:, ::2, ::2, ::2] = a
    backwards = np.flip(np.flip(b).copy())
    every_third = np.zeros((83, 111), b_type)
    every_third[:, ::3] = b
    for a_there in (a, np.asfortranarray(a), wide[:, ::2, ::2, ::2], np.flip(np.flip(a).copy())):
        for b_there in (b, np.asfortranarray(b), backwards, every_third[:, ::3]):
            c = nibblas.matmul_integer(a_there, b_there, za[::-1].copy()[::-1], zb)
            assert np.array_equal(c, expected)
    out = np.zeros((37, 7, 3, 2), np.int32).T
    assert nibblas.matmul_integer(a, b, za, zb, out=out) is out
    assert np.array_equal(out, expected)
    memory = np.zeros((2, 3, 14, 75), np.int32)
    out = memory[:, :, ::-2, 74::-2][..., :37]
    nibblas.matmul_integer(a, b, za, zb, out=out)
    assert np.array_equal(out, expected)
    assert not memory[:, :, ::2].any()
    one = np.broadcast_to(a[0, 0, 0], (9, 83))
    assert np.array_equal(nibblas.matmul_integer(one, b), exact(one, b))
    assert np.array_equal(nibblas.matmul_integer(one, b[:, :1] + b_type(0)), exact(one, b[:, :1]))
    same = np.broadcast_to(b[:, :1], (83, 20))
    assert np.array_equal(nibblas.matmul_integer(a, same), exact(a, same))


def test_one_dimension(rng, target):
    a, b = integers(rng, (83,), np.uint8), integers(rng, (83, 37), np.int8)
    for za in (None, 7, np.array([7], np.uint8)):
        for zb in (None, -3, integers(rng, (37,), np.int8)):
            c = nibblas.matmul_integer(a, b, za, zb)
            assert c.shape == (37,)
            assert np.array_equal(c, exact(a[None], b, za, zb)[0])


@signs
@pytest.mark.parametrize("shape", [(1, 1500, 2100), (37, 523, 170), (520, 190, 33)], ids=str)
def test_threads_do_not_matter(a_type, b_type, shape, rng, target):
    rows, depth, cols = shape
    a, b = integers(rng, (rows, depth), a_type), integers(rng, (depth, cols), b_type)
    za, zb = integers(rng, (rows,), a_type), integers(rng, (cols,), b_type)
    expected = exact(a, b, za, zb, np.float64)
    for threads in (1, 2, 3, 50):
        c = nibblas.matmul_integer(a, b, za, zb, num_threads=threads)
        assert np.array_equal(c, expected), threads


@signs
def test_batch_and_place_do_not_matter(a_type, b_type, rng, target):
    a, b = integers(rng, (513, 83), a_type), integers(rng, (83, 37), b_type)
    za = integers(rng, (513,), a_type)
    together = nibblas.matmul_integer(a, b, za, 1)
    assert np.array_equal(together, exact(a, b, za, 1))
    for size in (*range(1, 21), 37, 511):
        for first in (0, 1, 250, 513 - size):
            if first + size <= 513:
                these = slice(first, first + size)
                c = nibblas.matmul_integer(a[these], b, za[these], 1)
                assert np.array_equal(c, together[these]), (size, first)


def test_rows_that_are_packed_in_several_passes(rng, target):
    a = np.lib.stride_tricks.as_strided(
        integers(rng, (1, 140_000), np.uint8), (513, 140_000), (0, 1), writeable=False
    )
    b = integers(rng, (140_000, 1), np.int8)
    za = integers(rng, (513,), np.uint8)
    expected = exact(a[:1], b, 0, 5) - za.astype(np.int32)[:, None] * exact(
        np.ones((1, 140_000), np.int8), b, 0, 5
    )
    assert np.array_equal(nibblas.matmul_integer(a, b, za, 5), expected)


@signs
def test_empty_sizes(a_type, b_type, target):
    nibblas.matmul_integer(np.full((9, 300), 77, a_type), np.full((300, 50), 99, b_type))
    for rows, depth, cols in itertools.product((0, 1, 2, 5, 40), (0, 3), (0, 1, 40)):
        a, b = np.ones((rows, depth), a_type), np.ones((depth, cols), b_type)
        for za, zb in ((None, None), (3, 4), (np.ones(rows, a_type), np.ones(cols, b_type))):
            c = nibblas.matmul_integer(a, b, za, zb)
            assert c.shape == (rows, cols)
            assert np.array_equal(c, exact(a, b, za, zb)), (rows, depth, cols)
