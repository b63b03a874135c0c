# SPDX-License-Identifier: Apache-2.0
"""The importer of HQQ weights against the format's formula and its package."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import hqq

from .cases import assert_same_bits
from .io_cases import UNIT, check_linear, check_size, random_scales

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
bits_ = pytest.mark.parametrize("bits", hqq.BITS)


class Weight(NamedTuple):
    """The arguments of the importer, and what they stand for, (N, K)."""

    arguments: dict[str, Any]
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """In float64, where this is exact for zeros and scales of 16 bits."""
        codes, zeros, scales = (a.astype(np.float64) for a in self[1:])
        return (codes - zeros) * scales


def pack_rows(rng: np.random.Generator, codes: np.ndarray, bits: int) -> np.ndarray:
    """Row i of the words has row i of each part, the first part in the highest bits."""
    if bits > 4:
        return codes.astype(np.uint8)
    parts = 10 if bits == 3 else 8 // bits
    if bits == 3:
        fill = -len(codes) % parts
        codes = np.concatenate([codes, rng.integers(0, 8, (fill, codes.shape[1]))])
    words = np.zeros((len(codes) // parts, codes.shape[1]), np.int64)
    for part in range(parts):
        rows = codes[part * len(words) : (part + 1) * len(words)]
        words = words * 2**bits + rows
    return words.astype(np.int32 if bits == 3 else np.uint8)


def random_weight(
    rng: np.random.Generator,
    shape: tuple[int, int],
    group: int,
    bits: int = 4,
    axis: int = 1,
    dtype: Any = np.float16,
    whole_zeros: bool = False,
) -> Weight:
    groups = shape[0] * shape[1] // group
    grouped = (groups, group) if axis else (group, groups)
    per_group = (groups, 1) if axis else (1, groups)
    codes = rng.integers(0, 1 << bits, grouped)
    scales = random_scales(rng, per_group, dtype)
    zeros = rng.uniform(-1, 1 << bits, per_group).astype(np.float32).astype(dtype)
    if whole_zeros:
        zeros = rng.integers(0, 1 << bits, per_group).astype(dtype)
    arguments = {
        "W_q": pack_rows(rng, codes, bits),
        "scale": scales,
        "zero": zeros,
        "bits": bits,
        "shape": shape,
        "group_size": group,
        "axis": axis,
    }
    expanded = (np.broadcast_to(a, grouped).reshape(shape) for a in (codes, zeros, scales))
    return Weight(arguments, *expanded)


def assert_values(w: nibblas.PackedWeight, weight: Weight) -> None:
    found = w.dequantize()
    if weight.scales.dtype != np.float32:
        # Equal; of the two zeros there is one.
        assert np.array_equal(found, weight.values.astype(np.float32))
        return
    # Zero times scale is rounded, too.
    magnitudes = np.abs(weight.scales) * (weight.codes + np.abs(weight.zeros))
    assert (np.abs(found - weight.values) <= 2 * UNIT * magnitudes).all()


# --- the formula


@bits_
@given(
    eights=st.integers(1, 5),
    group=st.sampled_from([16, 32, 48, 64, 128]),
    parts=st.integers(1, 4),
    dtype=st.sampled_from(FLOATS),
    whole_zeros=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_formula(bits, eights, group, parts, dtype, whole_zeros, seed):
    rng = np.random.default_rng(seed)
    shape = (8 * eights, group * parts)
    weight = random_weight(rng, shape, group, bits, dtype=dtype, whole_zeros=whole_zeros)
    w = hqq.from_arrays(**weight.arguments)
    assert (w.scheme, w.shape) == (f"uint{bits}", shape)
    assert w.scale_dtype == np.dtype(dtype).name
    assert_values(w, weight)


@pytest.mark.parametrize(
    ("shape", "group", "stored"),
    [
        ((16, 96), 64, 32),  # groups straddle rows
        ((16, 48), 96, None),  # a group is two rows
        ((16, 48), 768, None),  # one group is all there is
        ((16, 17), 17, None),
        ((8, 17), 34, None),
        ((3, 80), 16, 16),
    ],
)
def test_groups(rng, shape, group, stored):
    bits = 4 if shape[0] % 2 == 0 and (shape[0] * shape[1] // group) % 2 == 0 else 3
    weight = random_weight(rng, shape, group, bits)
    w = hqq.from_arrays(**weight.arguments)
    assert w.group_size == stored
    assert_values(w, weight)


@pytest.mark.parametrize("group", [None, 48])
def test_rows_as_groups(rng, group):
    weight = random_weight(rng, (16, 48), 48)
    assert_values(hqq.from_arrays(**{**weight.arguments, "group_size": group}), weight)


def test_groups_that_are_none(rng):
    weight = random_weight(rng, (16, 100), 64, 8)
    with pytest.raises(ValueError, match="groups of 64 straddle rows of 100: what divides both"):
        hqq.from_arrays(**weight.arguments)


@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((32, 64), 2048),  # one scale
        ((32, 64), 1024),  # two: those of the odd and of the even inputs
        ((32, 64), 512),
        ((2, 96), 64),
    ],
)
def test_axis_0_that_has_groups_along_k(rng, shape, group):
    weight = random_weight(rng, shape, group, axis=0)
    assert_values(hqq.from_arrays(**weight.arguments), weight)


@pytest.mark.parametrize(
    ("shape", "group"), [((32, 64), 32), ((32, 64), 64), ((32, 64), 256), ((2, 96), 48)]
)
def test_axis_0_that_has_not(rng, shape, group):
    weight = random_weight(rng, shape, group, axis=0)
    with pytest.raises(ValueError, match="quantize with axis=1"):
        hqq.from_arrays(**weight.arguments)


def test_one_scale(rng):
    """As HQQ has it with channel_wise=False."""
    weight = random_weight(rng, (16, 64), 64)
    scale, zero = np.float16(0.25), np.float16(7.3)
    changes = {"scale": np.array(scale), "zero": np.array([zero])}
    w = hqq.from_arrays(**{**weight.arguments, **changes})
    expected = (weight.codes - np.float64(zero)) * np.float64(scale)
    assert_same_bits(w.dequantize(), expected.astype(np.float32))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", FLOATS)
def test_bytes_as_floats(rng, bits, dtype):
    weight = random_weight(rng, (16, 64), 32, bits)
    data = weight.arguments["W_q"].view(dtype)
    assert_values(hqq.from_arrays(**{**weight.arguments, "W_q": data}), weight)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_whole_zeros_become_integers(rng, bits):
    weight = random_weight(rng, (16, 64), 32, bits, whole_zeros=True)
    w = hqq.from_arrays(**weight.arguments)
    assert w.planes["zero_points"].dtype == np.uint8
    weight.arguments["zero"][3] += np.float16(0.5)
    w = hqq.from_arrays(**weight.arguments)
    assert w.planes["zero_points"].dtype == np.float16


@bits_
@pytest.mark.parametrize("whole_zeros", [True, False])
def test_is_computed_with(rng, bits, whole_zeros):
    weight = random_weight(rng, (48, 512), 64, bits, whole_zeros=whole_zeros)
    w = hqq.from_arrays(**weight.arguments)
    magnitudes = np.abs(weight.scales).astype(np.float64) * (weight.codes + np.abs(weight.zeros))
    check_linear(rng, w, weight.values, magnitudes)
    if bits not in (5, 6):  # less than the file has
        arguments = weight.arguments
        check_size(w, arguments["W_q"], arguments["scale"], arguments["zero"])


# --- errors


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 7}, ValueError, "bits must be one of 1, 2, 3, 4, 5, 6, 8, got 7"),
        ({"bits": 1.58}, TypeError, "bits must be an int"),
        ({"axis": 2}, ValueError, "axis must be 0 or 1, got 2"),
        ({"axis": None}, TypeError, "axis must be an int"),
        ({"shape": 3}, TypeError, "shape must be a tuple"),
        ({"shape": (16, 64, 1)}, ValueError, r"shape must be \(N, K\)"),
        ({"shape": (16, 0)}, ValueError, "K must be at least 1"),
        ({"shape": (1 << 50, 1 << 50)}, ValueError, "W_q must have"),
        ({"group_size": 0}, ValueError, "group_size must be at least 1"),
        ({"group_size": 48}, ValueError, "group_size must divide the 1024 elements"),
        ({"group_size": 32.0}, TypeError, "group_size must be an int"),
        ({"group_size": 1024}, ValueError, r"W_q must have 1 rows .* 2 of them in each uint8"),
        ({"W_q": np.zeros((32, 32), np.uint8)}, ValueError, r"of \(16, 32\); got shape \(32, 32\)"),
        ({"W_q": np.zeros((16, 32), np.int32)}, TypeError, "W_q of 4 bits must be uint8"),
        ({"W_q": np.zeros((16, 32), np.float16)}, ValueError, r"got shape \(16, 64\)"),
        ({"W_q": np.zeros((16, 33), np.float16), "bits": 3}, TypeError, "W_q of 3 bits must be"),
        ({"scale": np.ones((32, 1), np.uint8)}, ValueError, "scale is itself quantized"),
        ({"zero": np.ones((32, 1), np.uint8)}, ValueError, "zero is itself quantized"),
        ({"scale": np.ones((32, 1))}, TypeError, "scale must be float32 or float16"),
        ({"scale": np.ones((1, 32), np.float16)}, ValueError, r"scale must have shape \(32, 1\)"),
        ({"zero": np.ones((31, 1), np.float16)}, ValueError, r"zero must have shape \(32, 1\)"),
        ({"zero": np.full((32, 1), np.nan, np.float16)}, ValueError, "zero_points must be finite"),
        ({"zero": None}, TypeError, "zero must be a NumPy array"),
    ],
)
def test_errors(rng, changes, error, words):
    weight = random_weight(rng, (16, 64), 32)
    if changes.get("bits") == 3:
        changes = {**changes, "W_q": np.zeros((4, 33), np.float16)}
    with pytest.raises(error, match=words):
        hqq.from_arrays(**{**weight.arguments, **changes})


# --- the package itself


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("as_float", [False, True])
def test_against_the_package(rng, bits, as_float):
    torch = pytest.importorskip("torch")
    packing = pytest.importorskip("hqq.core.bitpack").BitPack
    weight = random_weight(rng, (48, 128), 64, bits)
    name = "3bit_32" if bits == 3 else f"{bits}bit_u8"
    codes = torch.from_numpy(weight.codes.reshape(-1, 64).copy())
    data = getattr(packing, f"pack_{name}")(codes)
    tensors = {
        "W_q": data.view(torch.bfloat16) if as_float else data,
        "scale": torch.from_numpy(weight.arguments["scale"]),
        "zero": torch.from_numpy(weight.arguments["zero"]),
    }
    w = hqq.from_arrays(**{**weight.arguments, **tensors})
    unpacked = getattr(packing, f"unpack_{name}")(data, dtype=torch.float32)[: codes.shape[0]]
    # In float32 the package rounds twice.
    expected = ((unpacked - tensors["zero"].float()) * tensors["scale"].float()).numpy()
    magnitudes = np.abs(weight.scales).astype(np.float64) * (weight.codes + np.abs(weight.zeros))
    error = np.abs(w.dequantize() - expected.reshape(48, 128))
    assert (error <= 3 * UNIT * magnitudes).all()
    assert_values(w, weight)
