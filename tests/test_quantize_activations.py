# SPDX-License-Identifier: Apache-2.0
"""quantize_activations is the contract's rule, bit for bit, on every target."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import nibblas
from nibblas import numerics

from .cases import (
    BFLOAT16,
    TARGETS,
    Variant,
    assert_same_bits,
    bits,
    floats,
    groups,
    random_bits,
    random_weight,
    random_x,
    tail_depth,
)


def check(x: np.ndarray, group: int | None, threads: int | None = None) -> None:
    codes, scales = nibblas.quantize_activations(x, group, num_threads=threads)
    expected_codes, expected_scales = numerics.quantize_activations(x, group)
    assert_same_bits(codes, expected_codes, (x.shape, group))
    assert_same_bits(scales, expected_scales, (x.shape, group))


@pytest.mark.emulated
@groups
@floats
def test_groups(group, dtype, rng, target):
    depth = tail_depth(group)
    for rows in (1, 2, 5, 17):
        check(random_x(rng, (rows, depth), dtype), group)
        check(random_bits(rng, (rows, depth), dtype), group)


@floats
def test_every_depth(dtype, rng, target):
    for depth in (*range(71), 127, 128, 129, 257, 777, 4097):
        check(random_x(rng, (3, depth), dtype), None)
        check(random_x(rng, (depth,), dtype), 16)


def float_rows(width: int) -> st.SearchStrategy[np.ndarray]:
    """Rows of any floats, or of floats that lie together, so that no single one rules the row."""
    near_one = st.floats(-2, 2, width=width)
    row = st.lists(st.floats(width=width), min_size=1, max_size=40) | st.lists(
        near_one, min_size=1, max_size=40
    )
    return row.map(lambda values: np.array(values, f"float{width}"))


@pytest.mark.parametrize("width", [16, 32])
@hypothesis.settings(max_examples=200)
@hypothesis.given(data=st.data(), group=st.sampled_from([16, 32, None]))
def test_any_values(width, data, group):
    x = data.draw(float_rows(width))
    for name in TARGETS:
        with nibblas.use_target(name):
            check(x, group)


@pytest.mark.emulated
def test_ties_round_to_even(target):
    """With amax 127, r is 1 and x itself is rounded: 0.5 to 0, 1.5 to 2, -126.5 to -126."""
    x = np.arange(-127, 127.25, 0.5, dtype=np.float32)
    codes, scales = nibblas.quantize_activations(x)
    assert np.array_equal(codes, np.rint(x).astype(np.int8))
    assert scales == 1
    # One ulp beside each tie there is no choice.
    half = np.arange(-125.5, 126, 1, dtype=np.float32)
    for toward in (-np.inf, np.inf):
        beside = np.nextafter(half, np.float32(toward))
        codes, _ = nibblas.quantize_activations(np.append(beside, np.float32(127)))
        assert np.array_equal(codes[:-1], np.rint(beside))


@pytest.mark.parametrize("place", [0, 1, 15, 16, 17, 63, 64, 82])
def test_the_largest_magnitude_anywhere(place, rng, target):
    for sign in (1, -1):
        x = rng.uniform(-1, 1, (4, 83)).astype(np.float32)
        x[2, place] = 3.7 * sign
        codes, scales = nibblas.quantize_activations(x)
        assert codes[2, place] == 127 * sign
        assert scales[2] == np.float32(3.7) / np.float32(127)
        check(x, None)
        check(x, 16)


@pytest.mark.emulated
def test_codes_stay_within_127(rng, target):
    """rint(x r) is at most 127 for every amax: those with the largest products, and at random."""
    amax = rng.integers(1, 0x7F800000, (20_000, 1), np.uint32)
    x = np.concatenate([amax, amax | np.uint32(1 << 31), amax - 1], axis=1).view(np.float32)
    codes, _ = nibblas.quantize_activations(x)
    assert codes.min() == -127
    assert codes.max() == 127
    check(x, None)


# 127 / amax overflows below 127 / (2^128 (1 - 2^-25)), which is 3.73e-37: from there down all is 0.
@pytest.mark.emulated
def test_where_r_overflows(target):
    edge = np.float32(127 / 2.0**128)
    x = np.zeros((64, 20), np.float32)
    x.view(np.uint32)[:, 7] = bits(edge)[()] - np.uint32(32) + np.arange(64, dtype=np.uint32)
    codes, scales = nibblas.quantize_activations(x)
    with np.errstate(over="ignore"):
        overflow = np.isinf(np.float32(127) / x[:, 7])
    assert 0 < overflow.sum() < 64
    assert not codes[overflow].any()
    assert not bits(scales[overflow, 0]).any()
    assert (codes[~overflow, 7] == 127).all()
    assert (scales[~overflow, 0] > 0).all()
    check(x, None)
    check(x, 16)


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
def test_every_half_is_the_largest_of_a_group(dtype, target):
    """Subnormals, zeros, infinities and NaNs of either sign, in a group each, beside the least."""
    groups_of_16 = np.zeros((256, 256, 16), np.uint16)
    groups_of_16[..., 3] = 1
    groups_of_16[..., 9] = np.arange(1 << 16).reshape(256, 256)
    x = groups_of_16.reshape(256, -1).view(dtype)
    check(x, 16)
    check(x[:, :-3], 16)  # not of whole vectors


@pytest.mark.emulated
@pytest.mark.parametrize("bad", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001])
@pytest.mark.parametrize("place", [0, 15, 16, 50, 69])
def test_not_finite(bad, place, rng, target):
    x = random_x(rng, (3, 70))
    clean_codes, clean_scales = nibblas.quantize_activations(x, 16)
    x.view(np.uint32)[1, place] = bad
    codes, scales = nibblas.quantize_activations(x, 16)
    hit = np.arange(5) == place // 16
    assert (bits(scales[1, hit]) == 0x7FC00000).all()
    assert not codes[1, place // 16 * 16 : place // 16 * 16 + 16].any()
    clean_codes[1, place // 16 * 16 : place // 16 * 16 + 16] = 0
    clean_scales[1, hit] = scales[1, hit]
    assert_same_bits(codes, clean_codes)
    assert_same_bits(scales, clean_scales)
    check(x, 16)
    check(x, None)


@floats
@pytest.mark.parametrize("depth", [83, 80])  # 80 is of whole vectors, and of 2.5 groups of 32
def test_arrangements_and_threads(dtype, depth, rng, target):
    x = random_x(rng, (3, 4, depth), dtype)
    wide = np.zeros((6, 8, 3 * depth), dtype)
    wide[::2, ::2, ::3] = x
    memory = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = memory[1:].view(dtype).reshape(x.shape)
    misaligned[...] = x
    for there in (
        np.asfortranarray(x),
        wide[::2, ::2, ::3],
        wide[::2, ::2, :depth],
        np.flip(np.flip(x).copy()),
        misaligned,
        np.broadcast_to(x[:1], x.shape),
        np.broadcast_to(x[..., :1], x.shape),
    ):
        check(there, None)
        check(there, 32)
    large = random_x(rng, (300, 440 + depth), dtype)
    for threads in (1, 2, 3, 7):
        check(large, None, threads)
        check(large, 64, threads)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 0, 5), (2, 3, 0)])
def test_empty(shape, target):
    for group in (None, 16):
        check(np.zeros(shape, np.float32), group)


@pytest.mark.parametrize("group", [16, 512, None], ids=lambda group: f"g{group}")
def test_linear_uses_the_same_codes(group, rng, target):
    """The codes and scales are those that linear multiplies with.

    A weight that has a 1 in each row picks out one code: y = a * code, the scales being 1.
    """
    x = random_x(rng, (7, 600))
    x[3, 5] = np.nan
    codes, scales = nibblas.quantize_activations(x, group)
    identity = np.eye(600, dtype=np.int8)
    per_group = np.ones((600, 1 if group is None else -(-600 // group)), np.float32)
    w = nibblas.pack(identity, per_group, scheme="int8", group_size=group)
    of_k = np.zeros(600, int) if group is None else np.arange(600) // group
    expected = codes.astype(np.float32) * scales[:, of_k] + np.float32(0)
    # A NaN of one group reaches every output of the row.
    expected[3] = np.nan
    assert_same_bits(nibblas.linear(x, w), numerics.canonical_nan(expected))


def test_the_weight_does_not_change_the_codes(rng, target):
    """Rows of another scheme or another batch are quantized alike: here by comparing products."""
    x = random_x(rng, (9, 200))
    ones = nibblas.pack(
        np.ones((1, 200), np.uint8), np.ones(1, np.float32), scheme="uint8", group_size=None
    )
    codes, scales = nibblas.quantize_activations(x)
    sums = codes.astype(np.int64).sum(axis=1).astype(np.float32)
    assert_same_bits(nibblas.linear(x, ones)[:, 0], sums * scales[:, 0] + np.float32(0))
    w = random_weight(rng, Variant("uint4", "min"), (1, 200), None)
    assert_same_bits(nibblas.linear(x, w), numerics.linear(x, w._raw_parts()))
