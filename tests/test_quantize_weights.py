# SPDX-License-Identifier: Apache-2.0
"""quantize, dequantize and take are those of `numerics`, bit for bit, on every target."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import nibblas
from nibblas import numerics
from nibblas.schemes import SCHEMES

from .cases import (
    BFLOAT16,
    FLOATS,
    TARGETS,
    VARIANTS,
    Variant,
    assert_same_bits,
    floats,
    groups,
    random_bits,
    random_weight,
    random_x,
    some_emulated,
    stored_group,
    tail_depth,
    variants,
    variants_and_groups,
)
from .quantize_cases import (
    QUANTIZED,
    RULES,
    check_quantize,
    dense,
    native,
    quantized,
)

SCALE_TYPES = ("float16", "float32", "bfloat16")
EVERY_WAY = (*VARIANTS, Variant("ternary", "symmetric"), Variant("mxfp4", "symmetric"))


def scale_type_of(variant, rng):
    """One of those that its scheme has."""
    return str(rng.choice(SCHEMES[variant.scheme].scale_types))


@quantized
@groups
def test_groups(variant, group, rng):
    if SCHEMES[variant.scheme].fixed_group not in (None, group):
        pytest.skip("not a group of this scheme")
    for cols, rule in ((1, "mse"), (17, "absmax"), (37, "mse")):
        w = dense(rng, (cols, tail_depth(group)))
        check_quantize(w, variant, group, rule, scale_type_of(variant, rng))


@quantized
@hypothesis.settings(max_examples=50)
@hypothesis.given(
    cols=st.integers(1, 40),
    depth=st.integers(1, 70) | st.sampled_from([127, 128, 129, 257]),
    group=st.sampled_from([16, 32, 64, 128, None]),
    rule=st.sampled_from(RULES),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(variant, cols, depth, group, rule, dtype, seed):
    rng = np.random.default_rng(seed)
    w = dense(rng, (cols, depth), dtype)
    check_quantize(w, variant, group, rule, scale_type_of(variant, rng))


@quantized
@hypothesis.settings(max_examples=60)
@hypothesis.given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False), min_size=20, max_size=20)
        | st.lists(st.floats(-4, 4, width=16), min_size=20, max_size=20),
        min_size=1,
        max_size=4,
    ),
    rule=st.sampled_from(RULES),
    index=st.integers(0, 2),
)
def test_any_values(variant, rows, rule, index):
    scale_types = SCHEMES[variant.scheme].scale_types
    w = np.array(rows, np.float32)
    for group in (16, None):
        check_quantize(w, variant, group, rule, scale_types[index % len(scale_types)])


@pytest.mark.parametrize("variant", some_emulated(QUANTIZED, EVERY_WAY), ids=str)
def test_sizes_at_the_ends_of_the_range(variant, rng):
    """Scales that are just finite or just not, subnormal or just 0, in each type."""
    ends = {
        "float16": (65504, 2.0**-24),
        "float32": (3.4028235e38, 2.0**-149),
        "bfloat16": (3.3895314e38, 2.0**-133),
        "e8m0": (3.4e38, 2.0**-128),
        "e4m3": (3.4e38, 2.0**-149),
    }
    code_max = (1 << SCHEMES[variant.scheme].bits) - 1
    for scale_type in SCHEMES[variant.scheme].scale_types:
        largest, least = ends[scale_type]
        for edge in (largest, largest * code_max, largest * code_max / 2, least, least * code_max):
            for factor in (0.25, 0.5, 0.99, 1.0, 1.01, 2.0):
                size = min(edge * factor, 3.4028234e38)
                w = (rng.uniform(-1, 1, (2, 35)) * size).astype(np.float32)
                w[0, 3], w[1, 20] = size, -size
                for rule in RULES:
                    check_quantize(w, variant, 16, rule, scale_type)


@pytest.mark.parametrize("variant", QUANTIZED[::3], ids=str)
@floats
def test_arrangements_and_threads(variant, dtype, rng, target):
    w = dense(rng, (150, 523), dtype)
    scale_type = SCHEMES[variant.scheme].scale_types[0]
    group = stored_group(variant.scheme, 32, 523)
    expected = native(w, variant, group, "mse", scale_type, 1)

    def same(there: np.ndarray, threads: int) -> None:
        found = native(there, variant, group, "mse", scale_type, threads)
        for name, plane in expected.items():
            if name == "codes":
                for one, other in zip(found[name], plane, strict=True):
                    assert_same_bits(one, other)
            elif isinstance(plane, np.ndarray):
                assert_same_bits(found[name], plane, name)
            else:
                assert found[name] == plane

    for threads in (1, 2, 3, 7):
        same(w, threads)
    wide = np.zeros((300, 1569), dtype)
    wide[::2, ::3] = w
    memory = np.zeros(w.nbytes + 1, np.uint8)
    misaligned = memory[1:].view(dtype).reshape(w.shape)
    misaligned[...] = w
    for there in (np.asfortranarray(w), wide[::2, ::3], np.flip(np.flip(w).copy()), misaligned):
        same(there, 2)


@quantized
def test_an_output_does_not_depend_on_its_neighbours(variant, rng, target):
    """Each lane of a panel goes its own way: rows alone, and in reverse, give the same parts."""
    w = dense(rng, (37, 70))
    w[:, 0] = 999  # the scale of a whole tensor is that of each row
    scheme, offset = variant
    arguments = {"group_size": stored_group(variant.scheme, 16, 70), "offset": offset}
    both = nibblas.quantize(w, scheme, **arguments).unpack()
    back = nibblas.quantize(w[::-1], scheme, **arguments).unpack()
    for name in ("codes", "scales", "zero_points", "mins"):
        if isinstance(both.get(name), np.ndarray):
            assert_same_bits(back[name][::-1], both[name], name)
    for n in (0, 15, 16, 36):
        one = nibblas.quantize(w[n : n + 1], scheme, **arguments)
        for name, values in one.unpack().items():
            if isinstance(values, np.ndarray) and name != "codebook":
                assert_same_bits(values, both[name][n : n + 1], (n, name))


@pytest.mark.parametrize("place", [(0, 0), (15, 69), (16, 64), (36, 33)])
@quantized
def test_one_weight_that_is_not_finite_is_found(variant, place, rng, target):
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        w = dense(rng, (37, 70))
        w[place] = bad
        for threads in (1, 3):
            with pytest.raises(ValueError, match="NaN or infinite"):
                nibblas.quantize(w, variant.scheme, offset=variant.offset, num_threads=threads)


# --- dequantize and take


@variants_and_groups
def test_dequantize_and_take(variant, group, rng, target):
    for ordered in (True, False):
        shape = (37, tail_depth(group))
        w = random_weight(rng, variant, shape, group, ordered=ordered)
        for dtype in FLOATS:
            expected = numerics.dequantize(w._raw_parts(), dtype)
            assert_same_bits(w.dequantize(dtype), expected, w)
            rows = rng.integers(0, 37, 40)
            assert_same_bits(w.take(rows, dtype), expected[rows], w)
            out = np.zeros((shape[1], 74), dtype).T[::2]
            w.dequantize(out=out)
            assert_same_bits(out, expected, w)


@variants
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    cols=st.integers(1, 40),
    depth=st.integers(1, 70) | st.sampled_from([127, 128, 129, 257]),
    group=st.sampled_from([16, 32, 64, 128, None]),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32 - 1),
)
def test_dequantize_any_shape(variant, cols, depth, group, dtype, seed):
    rng = np.random.default_rng(seed)
    w = random_weight(rng, variant, (cols, depth), group, ordered=bool(rng.integers(2)))
    expected = numerics.dequantize(w._raw_parts(), dtype)
    for name, threads in zip(TARGETS, (1, 2, 3), strict=False):
        with nibblas.use_target(name):
            assert_same_bits(w.dequantize(dtype, num_threads=threads), expected, name)
            rows = rng.integers(0, cols, (2, 9))
            assert_same_bits(w.take(rows, dtype, num_threads=threads), expected[rows], name)


@pytest.mark.emulated
@pytest.mark.parametrize("scale_type", SCALE_TYPES)
@floats
def test_dequantize_special_scales(scale_type, dtype, rng, target):
    """Subnormal scales, results beyond the output's range, zeros of both signs, ties."""
    stored = BFLOAT16 if scale_type == "bfloat16" else np.dtype(scale_type)
    scales = random_bits(rng, (50, 5), stored)
    with np.errstate(invalid="ignore"):  # ml_dtypes converts signaling NaNs to ask
        scales[~np.isfinite(scales)] = -0.0
    codes = rng.integers(0, 256, (50, 70), np.uint8)
    for offset in (
        {"zero_points": 128},
        {"zero_points": rng.integers(0, 256, (50, 5), np.uint8)},
        {"mins": random_x(rng, (50, 5))},
    ):
        w = nibblas.pack(codes, scales, scheme="uint8", group_size=16, **offset)
        assert_same_bits(w.dequantize(dtype), numerics.dequantize(w._raw_parts(), dtype))


@variants
def test_dequantize_threads_and_outputs(variant, rng, target):
    w = random_weight(rng, variant, (300, 523), 32)
    expected = numerics.dequantize(w._raw_parts())
    rows = rng.integers(0, 300, 411)
    for threads in (1, 2, 3, 7):
        assert_same_bits(w.dequantize(num_threads=threads), expected)
        assert_same_bits(w.take(rows, num_threads=threads), expected[rows])
    wide = np.zeros((600, 1569), np.float32)
    out = wide[598::-2, 1566::-3]
    w.dequantize(out=out)
    assert_same_bits(out, expected)
    assert not wide[1::2].any()
    assert not wide[:, 1::3].any()
    many = np.zeros((523, 411), np.float32).T
    w.take(rows, out=many)
    assert_same_bits(many, expected[rows])
    assert w.take(np.empty((0, 3), np.int64)).shape == (0, 3, 523)


@quantized
@pytest.mark.parametrize("shape", [(0, 64), (5, 0), (0, 0)])
def test_empty(variant, shape, target):
    w = nibblas.quantize(np.zeros(shape, np.float32), variant.scheme, offset=variant.offset)
    assert w.dequantize().shape == shape
    if shape[0]:
        assert w.take([4, 0]).shape == (2, shape[1])
        x = np.zeros((3, 0), np.float32)
        assert not nibblas.linear(x, w).any()
