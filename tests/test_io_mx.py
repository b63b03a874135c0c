# SPDX-License-Identifier: Apache-2.0
"""Importers of MXFP4 and NVFP4 against the formulas of the formats."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import mxfp4, nvfp4

from .cases import assert_same_bits
from .io_cases import check_linear, check_size

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def elements(packed: np.ndarray) -> np.ndarray:
    """e2m1 values of (..., bytes): element 2 i in the low nibble of byte i."""
    values = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.float32)
    values[..., 0::2] = E2M1[packed % 16]
    values[..., 1::2] = E2M1[packed // 16]
    return values


def mxfp4_values(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """In float64, in which every product is exact."""
    exponents = scales.astype(np.float64)
    factors = np.where(scales == 255, np.nan, 2.0 ** (exponents - 127))
    flat = blocks.reshape(*scales.shape[:-1], 16 * scales.shape[-1])
    return elements(flat).astype(np.float64) * factors.repeat(32, axis=-1)


def assert_values(w: nibblas.PackedWeight, expected: np.ndarray) -> None:
    """Equal, NaN included; of the two zeros of e2m1 there is one, as codes become integers."""
    found = w.dequantize()
    assert found.dtype == expected.dtype == np.float32
    assert np.array_equal(found, expected, equal_nan=True)


# --- MXFP4


@given(st.integers(0, 40), st.integers(1, 20), st.booleans(), st.integers(0, 2**32))
def test_mxfp4(rows, groups, flat, seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, groups, 16), np.uint8)
    scales = rng.integers(0, 256, (rows, groups), np.uint8)
    given_blocks = blocks.reshape(rows, 16 * groups) if flat else blocks
    w = mxfp4.from_arrays(given_blocks, scales)
    assert w.scheme == "mxfp4"
    assert w.shape == (rows, 32 * groups)
    with np.errstate(over="ignore"):
        assert_values(w, mxfp4_values(blocks, scales).astype(np.float32))


def test_mxfp4_scales_at_the_ends():
    """The byte 0 is 2^-127, a subnormal, of which half (code 1) is exact; 255 is NaN."""
    blocks = np.full((1, 3, 16), 0x71, np.uint8)
    w = mxfp4.from_arrays(blocks, np.array([[0, 254, 255]], np.uint8))
    values = w.dequantize()[0]
    assert np.array_equal(values[:2], np.float32([2.0**-128, 6 * 2.0**-127]))
    assert values[32] == 2.0**126
    assert values[33] == np.inf  # 6 * 2^127 is beyond float32
    assert np.isnan(values[64:]).all()


def test_mxfp4_is_computed_with(rng):
    blocks = rng.integers(0, 256, (48, 8, 16), np.uint8)
    scales = rng.integers(118, 130, (48, 8), np.uint8)
    blocks[5] = 0
    w = mxfp4.from_arrays(blocks, scales)
    check_linear(rng, w, mxfp4_values(blocks, scales))
    check_size(w, blocks, scales)


def test_mxfp4_e8m0_arrays(rng):
    blocks = rng.integers(0, 256, (4, 2, 16), np.uint8)
    scales = rng.integers(100, 140, (4, 2), np.uint8)
    w = mxfp4.from_arrays(blocks, scales.view(ml_dtypes.float8_e8m0fnu))
    assert_same_bits(w.dequantize(), mxfp4.from_arrays(blocks, scales).dequantize())


@pytest.mark.parametrize("flat", [False, True])
def test_mxfp4_experts(rng, flat):
    blocks = rng.integers(0, 256, (3, 20, 4, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 20, 4), np.uint8)
    weights = mxfp4.from_arrays(blocks.reshape(3, 20, 64) if flat else blocks, scales)
    assert isinstance(weights, list)
    for w, expected in zip(weights, mxfp4_values(blocks, scales), strict=True):
        assert_values(w, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("blocks", "scales", "words"),
    [
        ((4, 2, 16), (4, 3), "blocks must have shape"),
        ((4, 2, 15), (4, 2), "blocks must have shape"),
        ((4, 33), (4, 2), "blocks must have shape"),
        ((4, 2, 16), (2,), "scales must have shape"),
        ((4, 0, 16), (4, 0), "scales must have shape"),
        ((1, 1, 4, 32), (1, 1, 4, 2), "scales must have shape"),
    ],
)
def test_mxfp4_wrong_shapes(blocks, scales, words):
    with pytest.raises(ValueError, match=words):
        mxfp4.from_arrays(np.zeros(blocks, np.uint8), np.zeros(scales, np.uint8))


def test_mxfp4_wrong_types():
    good = np.zeros((4, 2, 16), np.uint8)
    with pytest.raises(TypeError, match=r"scales must be uint8 or float8_e8m0fnu, got float32"):
        mxfp4.from_arrays(good, np.ones((4, 2), np.float32))
    with pytest.raises(TypeError, match=r"blocks must be uint8, got int8"):
        mxfp4.from_arrays(good.view(np.int8), np.zeros((4, 2), np.uint8))
    with pytest.raises(TypeError, match=r"blocks must be a NumPy array"):
        mxfp4.from_arrays([0], np.zeros((4, 2), np.uint8))


# --- NVFP4


def nvfp4_scales(scales: np.ndarray, number: np.float32, convention: str) -> np.ndarray:
    """One rounding in float32, as the formats' own code has it."""
    factors = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    with np.errstate(all="ignore"):
        return factors / number if convention == "divide" else factors * number


@pytest.mark.parametrize("convention", ["divide", "multiply"])
@given(rows=st.integers(0, 40), pairs=st.integers(1, 150), seed=st.integers(0, 2**32))
def test_nvfp4(convention, rows, pairs, seed):
    rng = np.random.default_rng(seed)
    groups = -(-pairs // 8)
    packed = rng.integers(0, 256, (rows, pairs), np.uint8)
    scales = rng.integers(0, 256, (rows, groups), np.uint8)  # of both signs, and NaN
    number = np.float32(rng.uniform(0.1, 1) * 2.0 ** rng.integers(-10, 11))
    w = nvfp4.from_arrays(packed, scales, number, convention=convention)
    assert (w.scheme, w.shape) == ("nvfp4", (rows, 2 * pairs))
    assert (w.tensor_divisor is None) == (convention == "multiply")
    factors = nvfp4_scales(scales, number, convention).repeat(16, axis=1)[:, : 2 * pairs]
    assert_values(w, elements(packed) * factors)


def test_nvfp4_conventions_are_each_other_s_inverse(rng):
    """A number that is a power of two is stored by one tool as n and by the other as 1 / n."""
    packed = rng.integers(0, 256, (16, 64), np.uint8)
    scales = rng.integers(0, 127, (16, 8), np.uint8)
    one = nvfp4.from_arrays(packed, scales, 64.0, convention="divide")
    other = nvfp4.from_arrays(packed, scales, 1 / 64, convention="multiply")
    assert_same_bits(one.dequantize(), other.dequantize())


@pytest.mark.parametrize("convention", ["divide", "multiply"])
def test_nvfp4_is_computed_with(rng, convention):
    packed = rng.integers(0, 256, (48, 128), np.uint8)
    scales = rng.integers(8, 0x7E, (48, 16), np.uint8)
    number = np.float32(448 * 6 / 0.37 if convention == "divide" else 0.37 / 448 / 6)
    w = nvfp4.from_arrays(packed, scales, number, convention=convention)
    factors = nvfp4_scales(scales, number, convention).astype(np.float64).repeat(16, axis=1)
    check_linear(rng, w, elements(packed) * factors)
    check_size(w, packed, scales)


@pytest.mark.parametrize(
    "number",
    [
        4.0,
        4,
        np.float32(4),
        np.array(4, np.float32),
        np.array([4], np.float16),
        np.array([[4]], ml_dtypes.bfloat16),
    ],
    ids=lambda number: type(number).__name__,
)
def test_nvfp4_numbers_and_e4m3_arrays(rng, number):
    packed = rng.integers(0, 256, (4, 16), np.uint8)
    scales = rng.integers(0, 127, (4, 2), np.uint8)
    w = nvfp4.from_arrays(
        packed, scales.view(ml_dtypes.float8_e4m3fn), number, convention="multiply"
    )
    assert w.tensor_scale == 4


def test_nvfp4_errors():
    packed, scales = np.zeros((4, 16), np.uint8), np.zeros((4, 2), np.uint8)

    def call(packed=packed, scales=scales, number=1.0, convention="divide"):
        nvfp4.from_arrays(packed, scales, number, convention=convention)

    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'convention'"):
        nvfp4.from_arrays(packed, scales, 1.0)
    with pytest.raises(ValueError, match=r"convention must be 'divide' or 'multiply', got 'x'"):
        call(convention="x")
    with pytest.raises(TypeError, match=r"convention must be a string"):
        call(convention=None)
    with pytest.raises(ValueError, match=r"weight_packed must have shape"):
        call(packed=packed[0])
    with pytest.raises(ValueError, match=r"weight_packed must have shape"):
        call(packed=packed[:, :0])
    with pytest.raises(ValueError, match=r"weight_scale must have shape \(4, 2\)"):
        call(scales=scales[:, :1])
    with pytest.raises(TypeError, match=r"weight_scale must be uint8 or float8_e4m3fn"):
        call(scales=scales.astype(np.float16))
    for number in (0.0, np.nan, np.inf, 0.1):
        with pytest.raises(ValueError, match=r"tensor_divisor"):
            call(number=number)
    with pytest.raises(ValueError, match=r"global_scale must have one element"):
        call(number=np.ones(2, np.float32))
    for number in (None, True, "1", np.ones(1, np.int32)):
        with pytest.raises(TypeError, match=r"global_scale must be"):
            call(number=number)
