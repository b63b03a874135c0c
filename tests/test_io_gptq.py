# SPDX-License-Identifier: Apache-2.0
"""The importers of GPTQ and AWQ weights against the formats' formulas."""

from __future__ import annotations

import sys
import types
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import awq, gptq

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
dtypes = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**32)


class Weight(NamedTuple):
    """The arguments of an importer, and what they stand for, (N, K)."""

    arguments: dict[str, Any]
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return value_of(self.codes, self.zeros, self.scales)


def gptq_weight(
    rng: np.random.Generator,
    shape: tuple[int, int],
    group: int,
    bits: int = 4,
    checkpoint_format: str = "gptq",
    dtype: Any = np.float16,
    order: str = "none",
    fields: np.ndarray | None = None,
) -> Weight:
    """A weight; `order` "none" leaves g_idx out, "plain" counts up, "shuffled" is by activation."""
    cols, depth = shape
    groups = -(-depth // group)
    index = np.arange(depth) // group
    if order == "shuffled":
        rng.shuffle(index)
    codes = rng.integers(0, 1 << bits, shape)
    if fields is None:
        fields = rng.integers(0, 1 << bits, (cols, groups))
        if bits == 8 and checkpoint_format == "gptq":
            fields = np.minimum(fields, 254)
    scales = random_scales(rng, (groups, cols), dtype)
    arguments = {
        "qweight": join_bits(rng, codes, bits).T.copy(),
        "qzeros": join_bits(rng, fields.T, bits),
        "scales": scales,
        "g_idx": None if order == "none" else index.astype(np.int32),
        "bits": bits,
        "checkpoint_format": checkpoint_format,
    }
    zeros = fields + 1 if checkpoint_format == "gptq" else fields
    return Weight(arguments, codes, zeros[:, index], scales.T[:, index])


bits_ = pytest.mark.parametrize("bits", gptq.BITS)
formats_ = pytest.mark.parametrize("checkpoint_format", gptq.OFFSETS)


# --- GPTQ


@bits_
@formats_
@given(
    cols=st.integers(1, 40),
    groups=st.integers(1, 4),
    group=st.sampled_from([32, 64, 96, 128]),
    tail=st.integers(0, 31),
    order=st.sampled_from(["plain", "shuffled"]),
    dtype=dtypes,
    seed=seeds,
)
def test_formula(bits, checkpoint_format, cols, groups, group, tail, order, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (cols, groups * group - tail)  # the last group may have fewer inputs
    weight = gptq_weight(rng, shape, group, bits, checkpoint_format, dtype, order)
    w = gptq.from_arrays(**weight.arguments)
    assert (w.scheme, w.shape) == (f"uint{bits}", shape)
    assert w.scale_dtype == np.dtype(dtype).name
    assert_same_bits(w.dequantize(), weight.values)


@bits_
@formats_
@given(cols=st.integers(1, 40), groups=st.integers(1, 4), parts=st.integers(1, 4), seed=seeds)
def test_formula_without_g_idx(bits, checkpoint_format, cols, groups, parts, seed):
    rng = np.random.default_rng(seed)
    weight = gptq_weight(rng, (cols, 32 * parts * groups), 32 * parts, bits, checkpoint_format)
    assert_same_bits(gptq.from_arrays(**weight.arguments).dequantize(), weight.values)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_greatest_field(rng, bits):
    """Of "gptq" it is 2^bits, more than any code, unless it is to wrap."""
    top = (1 << bits) - 1
    fields = np.where(rng.random((16, 2)) < 0.5, top, 0)
    weight = gptq_weight(rng, (16, 64), 32, bits, fields=fields)
    assert weight.zeros.max() == top + 1
    assert_same_bits(gptq.from_arrays(**weight.arguments).dequantize(), weight.values)
    wrapped = gptq.from_arrays(**weight.arguments, wrap_zeros=True)
    assert_same_bits(wrapped.dequantize(), weight._replace(zeros=weight.zeros % (top + 1)).values)


def test_zero_point_of_256(rng):
    weight = gptq_weight(rng, (16, 64), 32, 8, fields=np.full((16, 2), 255))
    with pytest.raises(ValueError, match="zero_points of uint8 must be from 0 to 255, got 256"):
        gptq.from_arrays(**weight.arguments)
    wrapped = gptq.from_arrays(**weight.arguments, wrap_zeros=True)
    assert_same_bits(wrapped.dequantize(), weight._replace(zeros=weight.zeros * 0).values)


def test_symmetric_has_no_zero_points(rng):
    weight = gptq_weight(rng, (32, 256), 128, fields=np.full((32, 2), 7))
    w = gptq.from_arrays(**weight.arguments)
    assert w.offset == "symmetric"
    codes = (weight.codes - 8).astype(np.int8)
    same = nibblas.pack(codes, weight.arguments["scales"].T, scheme="int4", group_size=128)
    assert w.nbytes == same.nbytes
    x = rng.standard_normal((3, 256), dtype=np.float32)
    for compute in ("int8", "float32"):
        found = nibblas.linear(x, w, compute=compute)
        assert_same_bits(found, nibblas.linear(x, same, compute=compute))


@bits_
@pytest.mark.parametrize("order", ["none", "shuffled"])
def test_is_computed_with(rng, bits, order):
    weight = gptq_weight(rng, (48, 512), 64, bits, order=order)
    w = gptq.from_arrays(**weight.arguments)
    assert ("input_order" in w.planes) == (order == "shuffled")
    check_linear(rng, w, weight.values.astype(np.float64))


@bits_
@pytest.mark.parametrize("order", ["plain", "shuffled"])
def test_size(rng, bits, order):
    weight = gptq_weight(rng, (48, 512), 128, bits, order=order)
    arrays = [a for a in weight.arguments.values() if isinstance(a, np.ndarray)]
    check_size(gptq.from_arrays(**weight.arguments), *arrays)


def test_g_idx_that_sorts_nothing(rng):
    weight = gptq_weight(rng, (20, 128), 32, order="plain")
    w = gptq.from_arrays(**weight.arguments)
    assert same_planes(w, gptq.from_arrays(**{**weight.arguments, "g_idx": None}))


@bits_
def test_rows_are_the_whole(rng, bits):
    weight = gptq_weight(rng, (48, 64), 32, bits)
    whole = gptq.from_arrays(**weight.arguments)
    arguments = dict(weight.arguments)
    parts = gptq.read(**arguments)
    for start, stop in ((0, 16), (16, 48)):
        piece = parts.rows(start, stop).pack()
        assert_same_bits(piece.dequantize(), whole.dequantize()[start:stop])


def test_tensors(rng):
    torch = pytest.importorskip("torch")
    weight = gptq_weight(rng, (24, 64), 32, order="shuffled")
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in weight.arguments.items()
    }
    assert_same_bits(gptq.from_arrays(**tensors).dequantize(), weight.values)


def zeros(*shape: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 5}, ValueError, "bits must be one of 2, 3, 4, 8, got 5"),
        ({"bits": "4"}, TypeError, "bits must be an int, got str"),
        ({"checkpoint_format": "v2"}, ValueError, "'gptq' or 'gptq_v2', got 'v2'"),
        ({"checkpoint_format": 2}, TypeError, "checkpoint_format must be a string"),
        ({"wrap_zeros": 1}, TypeError, "wrap_zeros must be a bool"),
        ({"qweight": zeros(8, 24, dtype=np.int64)}, TypeError, "qweight must be int32, got int64"),
        ({"qweight": zeros(8)}, ValueError, "qweight must have two dimensions"),
        ({"qweight": zeros(0, 24)}, ValueError, r"g_idx must have shape \(0,\)"),
        ({"qweight": zeros(8, 25)}, ValueError, r"scales must have shape \(2, 25\)"),
        ({"qweight": zeros(9, 24)}, ValueError, r"g_idx must have shape \(72,\)"),
        ({"bits": 8}, ValueError, r"qzeros must have shape \(2, 6\)"),
        ({"qzeros": zeros(2, 4)}, ValueError, r"qzeros must have shape \(2, 3\)"),
        ({"scales": np.ones((0, 24), np.float16)}, ValueError, r"qzeros must have shape \(0, 3\)"),
        ({"scales": np.ones((2, 24))}, TypeError, "scales must be float32 or float16 or bfloat16"),
        ({"scales": np.full((2, 24), np.inf, np.float32)}, ValueError, "scales must be finite"),
        ({"g_idx": np.zeros(64)}, TypeError, "g_idx must be integers"),
        ({"g_idx": zeros(64, 1)}, ValueError, r"g_idx must have shape \(64,\)"),
        ({"g_idx": zeros(64)}, ValueError, "2 groups of 64 inputs must be of one size"),
        ({"g_idx": np.arange(-1, 63)}, ValueError, "must be from 0 to 1, got -1 to 62"),
        ({"g_idx": (np.arange(64) > 15).astype(np.int32)}, ValueError, "must have 48 inputs in"),
        ({"group_size": 16}, ValueError, "group_size 16 does not cut 64 inputs into 2 groups"),
        ({"group_size": 32.0}, TypeError, "group_size must be an int or None"),
        ({"qweight": [[0]]}, TypeError, "qweight must be a NumPy array"),
    ],
)
def test_errors(rng, changes, error, words):
    weight = gptq_weight(rng, (24, 64), 32, order="plain")
    with pytest.raises(error, match=words):
        gptq.from_arrays(**{**weight.arguments, **changes})


def test_groups_that_shapes_do_not_tell(rng):
    weight = gptq_weight(rng, (8, 80), 32, order="plain")
    assert_same_bits(gptq.from_arrays(**weight.arguments).dequantize(), weight.values)
    changes = {"g_idx": np.full(80, -1, np.int32)}
    with pytest.raises(ValueError, match="3 groups do not divide 80 inputs evenly"):
        gptq.from_arrays(**{**weight.arguments, **changes})
    w = gptq.from_arrays(**{**weight.arguments, **changes}, group_size=32)
    assert_same_bits(w.dequantize(), weight.values)
    del weight.arguments["checkpoint_format"]
    with pytest.raises(TypeError, match="checkpoint_format"):
        gptq.from_arrays(**weight.arguments)


# --- AWQ


def awq_weight(
    rng: np.random.Generator, shape: tuple[int, int], group: int, dtype: Any = np.float16
) -> Weight:
    cols, depth = shape
    groups = depth // group
    codes = rng.integers(0, 16, shape)
    fields = rng.integers(0, 16, (cols, groups))
    scales = random_scales(rng, (groups, cols), dtype)

    def words(matrix: np.ndarray) -> np.ndarray:
        # Nibble i of a word is column ORDER[i] of its eight.
        order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
        eights = matrix.T.reshape(-1, cols // 8, 8)[:, :, order]
        return join_bits(rng, eights.reshape(-1, cols), 4)

    arguments = {"qweight": words(codes), "qzeros": words(fields), "scales": scales}
    index = np.arange(depth) // group
    return Weight(arguments, codes, fields[:, index], scales.T[:, index])


@given(
    eights=st.integers(1, 6),
    groups=st.integers(1, 4),
    parts=st.integers(1, 4),
    dtype=dtypes,
    seed=seeds,
)
def test_awq(eights, groups, parts, dtype, seed):
    rng = np.random.default_rng(seed)
    weight = awq_weight(rng, (8 * eights, 16 * parts * groups), 16 * parts, dtype)
    w = awq.from_arrays(**weight.arguments)
    assert w.scheme == "uint4"
    assert w.scale_dtype == np.dtype(dtype).name
    assert_same_bits(w.dequantize(), weight.values)


def test_awq_per_channel(rng):
    """One group may have any depth."""
    weight = awq_weight(rng, (8, 77), 77)
    w = awq.from_arrays(**weight.arguments)
    assert w.group_size is None
    assert_same_bits(w.dequantize(), weight.values)


def test_awq_is_computed_with(rng):
    weight = awq_weight(rng, (48, 512), 128)
    w = awq.from_arrays(**weight.arguments, bits=4)
    check_linear(rng, w, weight.values.astype(np.float64))
    check_size(w, *weight.arguments.values())
    piece = awq.read(**weight.arguments).rows(16, 48).pack()
    assert_same_bits(piece.dequantize(), w.dequantize()[16:])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 8}, ValueError, "bits must be one of 4, got 8"),
        ({"bits": None}, TypeError, "bits must be an int"),
        ({"qweight": zeros(64, 4)}, ValueError, r"scales must have shape \(2, 32\)"),
        ({"qweight": zeros(63, 3)}, ValueError, "2 groups do not divide 63 inputs evenly"),
        ({"qweight": zeros(64, 3, dtype=np.uint8)}, TypeError, "qweight must be int32, got uint8"),
        ({"qzeros": zeros(1, 3)}, ValueError, r"qzeros must have shape \(2, 3\)"),
        ({"qzeros": zeros(2, 3, dtype=np.int8)}, TypeError, "qzeros must be int32"),
        ({"scales": np.ones((2, 25), np.float16)}, ValueError, r"scales must have shape \(2, 24\)"),
        (
            {"scales": np.ones((8, 24), np.float16), "qzeros": zeros(8, 3)},
            ValueError,
            "group_size must be a multiple of 16",
        ),
        ({"scales": zeros(2, 24)}, TypeError, "scales must be float32 or"),
    ],
)
def test_awq_errors(rng, changes, error, words):
    weight = awq_weight(rng, (24, 64), 32)
    with pytest.raises(error, match=words):
        awq.from_arrays(**{**weight.arguments, **changes})


# --- the packages themselves


@bits_
def test_against_auto_gptq(rng, monkeypatch, bits):
    """Values that the package packs by its own formula are the ones that come out."""
    # Of transformers it looks at one class, to see that a layer is none.
    transformers = types.ModuleType("transformers")
    transformers.pytorch_utils = types.SimpleNamespace(Conv1D=type("Conv1D", (), {}))
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    package = file_of_package("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
    import torch

    cols, depth = 32, 128
    index = rng.permutation(np.arange(depth) // 32)
    codes = rng.integers(0, 1 << bits, (cols, depth))
    zeros = rng.integers(1, 1 << bits, (cols, 4))
    scales = (2.0 ** rng.integers(-4, 1, (cols, 4))).astype(np.float32)
    values = value_of(codes, zeros[:, index], scales[:, index])
    layer = torch.nn.Linear(depth, cols, bias=False)
    layer.weight.data = torch.from_numpy(values)
    packed = package.QuantLinear(bits, 32, depth, cols, False)
    numbers = torch.from_numpy(scales), torch.from_numpy(zeros.astype(np.float32))
    packed.pack(layer, *numbers, torch.from_numpy(index.astype(np.int32)))
    arrays = (packed.qweight, packed.qzeros, packed.scales, packed.g_idx)
    w = gptq.from_arrays(*arrays, bits=bits, checkpoint_format="gptq")
    assert_same_bits(w.dequantize(), values)


def test_against_autoawq(rng):
    package = file_of_package("awq", "utils/packing_utils.py")
    import torch

    weight = awq_weight(rng, (48, 128), 32, np.float32)
    tensors = {name: torch.from_numpy(array) for name, array in weight.arguments.items()}
    expected = package.dequantize_gemm(**tensors, bits=4, group_size=32).numpy().T
    w = awq.from_arrays(**tensors)
    assert_same_bits(w.dequantize(), np.ascontiguousarray(expected))
