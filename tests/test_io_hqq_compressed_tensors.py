# SPDX-License-Identifier: Apache-2.0
"""Importers of HQQ and compressed-tensors weights against the formulas of the formats.

Codes are packed here bit by bit, so that no unpacking of the library checks itself.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nibblas.io import compressed_tensors, hqq

from .io_cases import (
    FLOATS,
    bit_stream,
    check_linear,
    check_size,
    check_values,
    exact,
    random_scales,
    word_by_word,
)

seeds = st.integers(0, 2**32 - 1)


# --- HQQ


def hqq_packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes packed along the rows, the first rows in the highest bits."""
    in_word, dtype, top = (10, np.int32, 27) if bits == 3 else (8 // bits, np.uint8, 8 - bits)
    rows = -(-len(codes) // in_word)
    padded = np.zeros((rows * in_word, codes.shape[1]), np.int64)
    padded[: len(codes)] = codes
    packed = np.zeros((rows, codes.shape[1]), np.int64)
    for i in range(in_word):
        packed |= padded[i * rows : (i + 1) * rows] << (top - bits * i)
    return packed.astype(dtype)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@given(seed=seeds, cols=st.sampled_from([8, 16, 40]), runs=st.integers(1, 4))
def test_hqq(bits, seed, cols, runs):
    rng = np.random.default_rng(seed)
    depth, group = 32 * runs, 32
    codes = rng.integers(0, 1 << bits, (cols * runs, group), np.uint8)
    kind = FLOATS[rng.integers(3)]
    scale = rng.standard_normal((cols * runs, 1)).astype(kind)
    zero = rng.uniform(0, 1 << bits, (cols * runs, 1)).astype(kind)
    w = hqq.from_arrays(
        hqq_packed(codes, bits), scale, zero, bits=bits, shape=(cols, depth), group_size=group
    )
    assert w.scheme == f"uint{bits}"
    values = (codes - zero.astype(np.float64)) * scale.astype(np.float64)
    magnitudes = (codes + np.abs(zero.astype(np.float64))) * np.abs(scale.astype(np.float64))
    values, magnitudes = values.reshape(cols, depth), magnitudes.reshape(cols, depth)
    if kind is np.float32:  # zero * scale is rounded once, then the sum
        assert (np.abs(w.dequantize() - values) <= 2.0**-23 * magnitudes + 1e-40).all()
    else:
        check_values(w, values)
    check_linear(rng, w, values, magnitudes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_against_the_package(bits, rng):
    torch = pytest.importorskip("torch")
    bitpack = pytest.importorskip("hqq.core.bitpack").BitPack
    codes = rng.integers(0, 1 << bits, (64, 64), np.uint8)
    names = {8: "pack_8bit_u8", 4: "pack_4bit_u8", 3: "pack_3bit_32", 2: "pack_2bit_u8"}
    packed = getattr(bitpack, names[bits])(torch.from_numpy(codes.copy()))
    scale, zero = np.ones((64, 1), np.float16), np.zeros((64, 1), np.float16)
    w = hqq.from_arrays(packed, scale, zero, bits=bits, shape=(32, 128), group_size=64)
    assert np.array_equal(w.dequantize(), codes.reshape(32, 128))


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (4, 32), (3, 64), (2, 64), (8, 128)])
def test_hqq_size(bits, group, rng):
    cols, depth = 160, 1024
    codes = rng.integers(0, 1 << bits, (cols * depth // group, group), np.uint8)
    scale = np.ones((len(codes), 1), np.float16)
    zero = rng.uniform(0, 4, (len(codes), 1)).astype(np.float16)
    packed = hqq_packed(codes, bits)
    w = hqq.from_arrays(packed, scale, zero, bits=bits, shape=(cols, depth), group_size=group)
    check_size(w, packed, scale, zero)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"axis": 0}, ValueError, "axis=0 has a scale for each input"),
        ({"axis": 2}, ValueError, "axis must be 0 or 1"),
        ({"bits": 5}, ValueError, "bits must be one of"),
        ({"group_size": 24}, ValueError, "must divide the 64 inputs, got 24"),
        ({"group_size": 1.0}, TypeError, "group_size must be an int"),
        ({"shape": (4,)}, ValueError, r"shape must be \(N, K\)"),
        ({"shape": (5, 64)}, ValueError, r"must have shape \(5, 32\)"),
        ({"scale": np.ones((8, 1), np.uint8)}, TypeError, "dequantize quantized scales"),
        ({"zero": np.ones((7, 1), np.float16)}, ValueError, "zero must have 8 elements"),
        ({"W_q": np.zeros((4, 32), np.int32)}, TypeError, "must be uint8, got int32"),
    ],
)
def test_hqq_refuses(changes, error, message):
    arguments = {
        "W_q": np.zeros((4, 32), np.uint8),
        "scale": np.ones((8, 1), np.float16),
        "zero": np.ones((8, 1), np.float16),
        "bits": 4,
        "shape": (4, 64),
        "group_size": 32,
    }
    hqq.from_arrays(**arguments)
    with pytest.raises(error, match=message):
        hqq.from_arrays(**{**arguments, **changes})


# --- compressed-tensors


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("layout", ["dense", "padded"])
@given(
    seed=seeds, cols=st.integers(1, 40), depth=st.sampled_from([32, 64, 160]), how=st.integers(0, 3)
)
def test_compressed_tensors(bits, layout, seed, cols, depth, how):
    rng = np.random.default_rng(seed)
    group = depth if how == 3 else 32
    groups = depth // group
    half = 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (cols, depth), np.uint8)
    zeros = np.full((cols, groups), half, np.int64)
    scales = random_scales(rng, (cols, groups))
    words = bit_stream if layout == "dense" else word_by_word
    index = np.arange(depth) // group
    given_zeros = given_index = None
    if how in (1, 2):
        zeros = rng.integers(0, 1 << bits, (cols, groups))
        packed_zeros = words(np.ascontiguousarray(zeros.T.astype(np.uint8)), bits)
        given_zeros = np.ascontiguousarray(packed_zeros.T)
    if how == 2:
        index = rng.permutation(index)
        given_index = index.astype(np.int32)
    w = compressed_tensors.from_arrays(
        words(codes, bits),
        scales,
        given_zeros,
        given_index,
        weight_shape=np.array([cols, depth]),
        bits=bits,
        layout=layout,
    )
    values = exact(codes, zeros, scales, index)
    check_values(w, values)
    check_linear(rng, w, values)


def test_compressed_tensors_tells_the_layouts_apart(rng):
    codes = rng.integers(0, 8, (16, 320), np.uint8)
    values = (codes.astype(np.float32) - 4) * 0.5
    arguments = {"weight_shape": (16, 320), "bits": 3}
    scales = np.full((16, 1), 0.5, np.float16)
    for words in (bit_stream, word_by_word):
        check_values(compressed_tensors.from_arrays(words(codes, 3), scales, **arguments), values)
    # 20 codes of 3 bits take two words in both, and lie differently in them.
    few = bit_stream(codes[:, :20], 3)
    with pytest.raises(ValueError, match='take 2 words in both layouts: give layout="dense"'):
        compressed_tensors.from_arrays(few, scales, weight_shape=(16, 20), bits=3)
    for words, layout in ((bit_stream, "dense"), (word_by_word, "padded")):
        w = compressed_tensors.from_arrays(
            words(codes[:, :20], 3), scales, weight_shape=(16, 20), bits=3, layout=layout
        )
        check_values(w, values[:, :20])
    with pytest.raises(ValueError, match="take 30 words, or 32 if padded, got 31"):
        compressed_tensors.from_arrays(np.zeros((16, 31), np.int32), scales, **arguments)


def the_package(file: str) -> ModuleType:
    """A file of compressed-tensors by itself: the package as a whole needs transformers."""
    found = importlib.util.find_spec("compressed_tensors")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package compressed-tensors")
    path = Path(found.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location("packing_of_the_package", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("bits", range(2, 9))
def test_compressed_tensors_against_the_package(bits, rng):
    torch = pytest.importorskip("torch")
    pack_to_int32 = the_package("compressors/pack_quantized/helpers.py").pack_to_int32
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (48, 320), np.int8)
    packed = pack_to_int32(torch.from_numpy(codes), bits)
    scales = np.ones((48, 1), np.float32)
    w = compressed_tensors.from_arrays(packed, scales, weight_shape=(48, 320), bits=bits)
    assert np.array_equal(w.dequantize(), codes)


@pytest.mark.parametrize(
    ("bits", "group"), [(2, 128), (3, 128), (4, 32), (4, 128), (5, 32), (8, 32)]
)
def test_compressed_tensors_size(bits, group, rng):
    codes = rng.integers(0, 1 << bits, (64, 1024), np.uint8)
    packed = bit_stream(codes, bits)
    scales = np.ones((64, 1024 // group), ml_dtypes.bfloat16)
    w = compressed_tensors.from_arrays(packed, scales, weight_shape=(64, 1024), bits=bits)
    check_size(w, packed, scales)
