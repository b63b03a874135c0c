# SPDX-License-Identifier: Apache-2.0
"""The importer of pack-quantized weights against the format's formula and its package."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nibblas.io import compressed_tensors as importer

from .cases import assert_same_bits, same_planes
from .io_cases import (
    check_linear,
    check_size,
    file_of_package,
    join_bits,
    random_scales,
    value_of,
)

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
ZEROS = ("none", "packed", "int8")
bits_ = pytest.mark.parametrize("bits", importer.BITS)
layouts_ = pytest.mark.parametrize("layout", importer.LAYOUTS)
zeros_ = pytest.mark.parametrize("zeros", ZEROS)


class Weight(NamedTuple):
    """The arguments of the importer, and what they stand for, (N, K): signed integers."""

    arguments: dict[str, Any]
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return value_of(self.codes, self.zeros, self.scales)


def random_weight(
    rng: np.random.Generator,
    shape: tuple[int, int],
    group: int,
    bits: int = 4,
    zeros: str = "none",
    layout: str = "dense",
    dtype: Any = np.float16,
    ordered: bool = True,
) -> Weight:
    cols, depth = shape
    groups = -(-depth // group)
    index = np.arange(depth) // group
    if not ordered:
        rng.shuffle(index)
    offset = 1 << (bits - 1)
    codes = rng.integers(-offset, offset, shape)
    points = (
        rng.integers(-offset, offset, (cols, groups))
        if zeros != "none"
        else np.zeros((cols, groups), int)
    )
    per_word = 0 if layout == "dense" else 32 // bits
    scales = random_scales(rng, (cols, groups), dtype)
    arguments = {
        "weight_packed": join_bits(rng, codes + offset, bits, per_word),
        "weight_scale": scales,
        "weight_shape": shape,
        "bits": bits,
        "layout": layout,
        "group_size": group,
    }
    if zeros == "packed":
        arguments["weight_zero_point"] = join_bits(rng, (points + offset).T, bits, per_word).T
    elif zeros == "int8":
        arguments["weight_zero_point"] = points.astype(np.int8)
    if not ordered:
        arguments["weight_g_idx"] = index.astype(np.int32)
    return Weight(arguments, codes, points[:, index], scales[:, index])


@bits_
@layouts_
@zeros_
@given(
    cols=st.integers(1, 40),
    groups=st.integers(1, 6),
    group=st.sampled_from([16, 32, 48, 64]),
    tail=st.integers(0, 15),
    dtype=st.sampled_from(FLOATS),
    ordered=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_formula(bits, layout, zeros, cols, groups, group, tail, dtype, ordered, seed):
    rng = np.random.default_rng(seed)
    shape = (cols, groups * group - tail)
    weight = random_weight(rng, shape, group, bits, zeros, layout, dtype, ordered)
    w = importer.from_arrays(**weight.arguments)
    signed = zeros == "none" and bits > 1
    assert (w.scheme, w.shape) == (f"{'int' if signed else 'uint'}{bits}", shape)
    assert w.scale_dtype == np.dtype(dtype).name
    assert_same_bits(w.dequantize(), weight.values)


@bits_
@layouts_
@pytest.mark.parametrize("depth", [160, 192, 1024])
def test_layout_is_told_by_the_width(rng, bits, layout, depth):
    """From K = 160 on the widths differ, or the layouts are one."""
    weight = random_weight(rng, (24, depth), 32, bits, "packed", layout)
    w = importer.from_arrays(**{**weight.arguments, "layout": None, "group_size": None})
    assert_same_bits(w.dequantize(), weight.values)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_widths_that_do_not_tell(rng, bits):
    """Every K of which both layouts have the same number of words is refused, and no other."""
    per_word = 32 // bits
    refused = 0
    for depth in range(1, 200):
        for layout in importer.LAYOUTS:
            weight = random_weight(rng, (1, depth), 4096, bits, layout=layout)
            arguments = {**weight.arguments, "layout": None}
            if -(-depth * bits // 32) == -(-depth // per_word) and depth > per_word:
                refused += 1
                with pytest.raises(ValueError, match=r"both layouts .* give layout='dense'"):
                    importer.from_arrays(**arguments)
            else:
                w = importer.from_arrays(**arguments)
                assert_same_bits(w.dequantize(), weight.values)
    assert refused
    assert depth >= 160


def test_zero_points_tell_the_layout(rng):
    """21 codes of 3 bits are 2 words dense and 3 padded, 15 are 2 words in both."""
    for layout in importer.LAYOUTS:
        weight = random_weight(rng, (21, 15), 16, 3, "packed", layout)
        w = importer.from_arrays(**{**weight.arguments, "layout": None})
        assert_same_bits(w.dequantize(), weight.values)


def test_scales_of_channels_and_of_the_tensor(rng):
    """As the strategy "tensor" has them: zero points are not packed."""
    weight = random_weight(rng, (20, 64), 64)
    per_channel = {"weight_scale": weight.arguments["weight_scale"][:, 0]}
    w = importer.from_arrays(**{**weight.arguments, **per_channel})
    assert_same_bits(w.dequantize(), weight.values)
    scale, zero = np.float32([0.25]), np.int8([-3])
    changes = {"weight_scale": scale, "weight_zero_point": zero, "group_size": None}
    w = importer.from_arrays(**{**weight.arguments, **changes})
    assert_same_bits(w.dequantize(), value_of(weight.codes, zero, scale))


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_zero_points_are_none(rng, bits):
    """Zero points of 0 take no more than none."""
    weight = random_weight(rng, (16, 256), 64, bits, "int8")
    changes = {"weight_zero_point": weight.arguments["weight_zero_point"] * np.int8(0)}
    w = importer.from_arrays(**{**weight.arguments, **changes})
    without = importer.from_arrays(**{**weight.arguments, "weight_zero_point": None})
    assert w.nbytes == without.nbytes
    assert_same_bits(w.dequantize(), without.dequantize())


def test_g_idx_that_is_none(rng):
    weight = random_weight(rng, (20, 64), 32)
    for index in (np.full(64, -1), np.arange(64) // 32):
        w = importer.from_arrays(**weight.arguments, weight_g_idx=index)
        assert same_planes(w, importer.from_arrays(**weight.arguments))


@bits_
@zeros_
@pytest.mark.parametrize("ordered", [True, False])
def test_is_computed_with(rng, bits, zeros, ordered):
    weight = random_weight(rng, (48, 512), 64, bits, zeros, ordered=ordered)
    w = importer.from_arrays(**weight.arguments)
    check_linear(rng, w, weight.values.astype(np.float64))


@bits_
@layouts_
@pytest.mark.parametrize("zeros", ["none", "packed"])
@pytest.mark.parametrize("ordered", [True, False])
def test_size(rng, bits, layout, zeros, ordered):
    weight = random_weight(rng, (96, 512), 128, bits, zeros, layout, ordered=ordered)
    w = importer.from_arrays(**weight.arguments)
    check_size(w, *(a for a in weight.arguments.values() if isinstance(a, np.ndarray)))


@zeros_
def test_rows_are_the_whole(rng, zeros):
    weight = random_weight(rng, (48, 64), 32, 5, zeros)
    parts = importer.read(**weight.arguments)
    for start, stop in ((0, 16), (16, 48)):
        piece = parts.rows(start, stop).pack()
        assert_same_bits(piece.dequantize(), weight.values[start:stop])


def test_tensors(rng):
    torch = pytest.importorskip("torch")
    weight = random_weight(rng, (24, 64), 32, zeros="packed")
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value))
        for name, value in weight.arguments.items()
        if isinstance(value, np.ndarray)
    }
    tensors["weight_shape"] = torch.tensor([24, 64])
    w = importer.from_arrays(**{**weight.arguments, **tensors})
    assert_same_bits(w.dequantize(), weight.values)


def zeros(*shape: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 9}, ValueError, "bits must be one of 1, 2, 3, 4, 5, 6, 7, 8, got 9"),
        ({"bits": 4.0}, TypeError, "bits must be an int"),
        ({"layout": "wide"}, ValueError, "'dense' or 'padded', got 'wide'"),
        ({"layout": 3}, TypeError, "layout must be a string or None"),
        ({"layout": "padded"}, ValueError, r"layout 'padded': expected .* or 9 \(padded\) words"),
        ({"weight_shape": (24, 96)}, ValueError, r"expected 9 \(dense\) or 10 \(padded\) words"),
        ({"weight_shape": (25, 84)}, ValueError, r"weight_scale must have shape \(25, G\)"),
        ({"weight_shape": (24, 84, 1)}, ValueError, r"weight_shape must be \(N, K\)"),
        ({"weight_shape": (24, 0)}, ValueError, r"weight_shape\[1\] must be at least 1"),
        ({"weight_shape": (24, 84.0)}, TypeError, r"weight_shape\[1\] must be an int"),
        ({"weight_shape": (24, 1 << 60)}, ValueError, "does not cut 1152921504606846976 inputs"),
        ({"weight_shape": np.ones(2)}, TypeError, "weight_shape must be integers"),
        ({"weight_shape": zeros(3)}, ValueError, r"weight_shape must have shape \(2,\)"),
        ({"weight_shape": None}, TypeError, "weight_shape must be a NumPy array"),
        ({"weight_packed": zeros(24, 8, dtype=np.uint8)}, TypeError, "weight_packed must be int32"),
        ({"weight_packed": zeros(23, 8)}, ValueError, "weight_packed must have 24 rows"),
        ({"weight_packed": zeros(1, 24, 8)}, ValueError, "weight_packed must have two dimensions"),
        ({"weight_scale": np.ones((24, 3))}, TypeError, "weight_scale must be float32"),
        ({"weight_scale": np.ones(23, np.float32)}, ValueError, r"weight_scale must have shape"),
        ({"weight_scale": np.ones((24, 2), np.float32)}, ValueError, "84 inputs into 2 groups"),
        ({"group_size": None, "weight_shape": (24, 85)}, ValueError, "give group_size"),
        ({"group_size": 64}, ValueError, "group_size 64 does not cut 84 inputs into 3 groups"),
        ({"group_size": "32"}, TypeError, "group_size must be an int"),
        ({"weight_zero_point": zeros(3, 2)}, ValueError, "weight_zero_point must have 3 columns"),
        ({"weight_zero_point": zeros(4, 3)}, ValueError, "24 codes of weight_zero_point, got 4"),
        ({"weight_zero_point": zeros(24, 3, dtype=np.float16)}, TypeError, "zero_point must be"),
        ({"weight_zero_point": zeros(3, 3, dtype=np.int8)}, ValueError, r"shape \(24, 3\)"),
        (
            {"weight_zero_point": np.full((24, 3), 4, np.int8)},
            ValueError,
            "weight_zero_point of 3 bits must be from -4 to 3, got 4 to 4",
        ),
        ({"weight_g_idx": zeros(83)}, ValueError, r"weight_g_idx must have shape \(84,\)"),
        ({"weight_g_idx": zeros(84)}, ValueError, "group_index must have 32 inputs"),
        ({"weight_g_idx": np.zeros(84)}, TypeError, "weight_g_idx must be integers"),
    ],
)
def test_errors(rng, changes, error, words):
    weight = random_weight(rng, (24, 84), 32, 3, "packed")
    with pytest.raises(error, match=words):
        importer.from_arrays(**{**weight.arguments, **changes})


# --- the package itself


@pytest.fixture(scope="module")
def helpers() -> ModuleType:
    return file_of_package("compressed_tensors", "compressors/pack_quantized/helpers.py")


@bits_
@pytest.mark.parametrize("shape", [(32, 192), (20, 75)])
def test_against_the_package(rng, helpers, bits, shape):
    import torch

    weight = random_weight(rng, shape, 32, bits, "int8")
    codes = torch.from_numpy(weight.codes.astype(np.int8))
    zeros = torch.from_numpy(weight.arguments["weight_zero_point"])
    tensors = {
        "weight_packed": helpers.pack_to_int32(codes, bits),
        "weight_zero_point": helpers.pack_to_int32(zeros, bits, packed_dim=0),
        "weight_shape": torch.tensor(shape),
    }
    unpacked = helpers.unpack_from_int32(tensors["weight_packed"], bits, torch.Size(shape))
    assert torch.equal(unpacked, codes)
    # Of versions before 2026 the words are those of "padded".
    width = tensors["weight_packed"].shape[1]
    layout = "dense" if width == -(-shape[1] * bits // 32) else "padded"
    w = importer.from_arrays(**{**weight.arguments, **tensors, "layout": layout})
    assert_same_bits(w.dequantize(), weight.values)
