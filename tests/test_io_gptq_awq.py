# SPDX-License-Identifier: Apache-2.0
"""Importers of GPTQ and AWQ weights against the formulas of the formats.

Codes are packed here bit by bit, so that no unpacking of the library checks itself.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nibblas.io import awq, gptq

from .io_cases import bit_stream, check_linear, check_size, check_values, exact, random_scales

seeds = st.integers(0, 2**32 - 1)


# --- GPTQ


def gptq_arrays(rng, bits, cols, depth, group, *, order=False, low=0):
    """Arrays of a checkpoint, and the values they mean in version 2."""
    groups = -(-depth // group)
    codes = rng.integers(0, 1 << bits, (cols, depth), np.uint8)
    fields = rng.integers(low, 1 << bits, (cols, groups), np.uint8)
    scales = random_scales(rng, (cols, groups))
    index = np.arange(depth) // group
    if order:
        index = rng.permutation(index)
    arrays = {
        "qweight": np.ascontiguousarray(bit_stream(codes, bits).T),
        "qzeros": bit_stream(np.ascontiguousarray(fields.T), bits),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": index.astype(np.int32) if order else None,
    }
    return arrays, codes, fields.astype(np.int64), scales, index


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", [False, True])
@given(
    seed=seeds, blocks=st.integers(1, 5), runs=st.integers(1, 4), group=st.sampled_from([16, 32])
)
def test_gptq(bits, order, seed, blocks, runs, group):
    rng = np.random.default_rng(seed)
    cols, depth = 32 * blocks, 32 * runs
    arrays, codes, fields, scales, index = gptq_arrays(rng, bits, cols, depth, group, order=order)
    w = gptq.from_arrays(**arrays, bits=bits, checkpoint_format="gptq_v2")
    assert w.scheme == f"uint{bits}"
    check_values(w, exact(codes, fields, scales, index))
    check_linear(rng, w, exact(codes, fields, scales, index))
    plus_one = fields + 1
    if bits < 8 or plus_one.max() < 256:
        w = gptq.from_arrays(**arrays, bits=bits, checkpoint_format="gptq")
        check_values(w, exact(codes, plus_one, scales, index))
    w = gptq.from_arrays(**arrays, bits=bits, checkpoint_format="gptq", wrap_zeros=True)
    check_values(w, exact(codes, plus_one % (1 << bits), scales, index))


def test_gptq_zero_field_15():
    """16 is no code of 4 bits, but a zero point all the same; wrapping it is another choice."""
    codes = np.full((8, 16), 15, np.uint8)
    arrays = {
        "qweight": np.ascontiguousarray(bit_stream(codes, 4).T),
        "qzeros": np.full((1, 1), -1, np.int32),
        "scales": np.ones((1, 8), np.float16),
        "bits": 4,
        "checkpoint_format": "gptq",
    }
    assert (gptq.from_arrays(**arrays).dequantize() == -1).all()
    assert (gptq.from_arrays(**arrays, wrap_zeros=True).dequantize() == 15).all()
    assert gptq.from_arrays(**arrays).offset == "symmetric"  # one zero for all is free


def test_gptq_zero_256_is_refused():
    arrays = {
        "qweight": np.zeros((4, 4), np.int32),
        "qzeros": np.full((1, 1), -1, np.int32),
        "scales": np.ones((1, 4), np.float16),
        "bits": 8,
    }
    with pytest.raises(ValueError, match="zero_points of uint8 must be from 0 to 255, got 256"):
        gptq.from_arrays(**arrays, checkpoint_format="gptq")
    assert (gptq.from_arrays(**arrays, checkpoint_format="gptq_v2").dequantize() == -255).all()


def test_gptq_groups_of_another_size(rng):
    arrays, codes, fields, scales, index = gptq_arrays(rng, 4, 32, 96, 64, order=True)
    w = gptq.from_arrays(**arrays, bits=4, checkpoint_format="gptq_v2")
    check_values(w, exact(codes, fields, scales, index))  # 64 and 32 inputs, told by g_idx
    arrays, codes, fields, scales, index = gptq_arrays(rng, 4, 32, 96, 64)
    w = gptq.from_arrays(**arrays, bits=4, checkpoint_format="gptq_v2", group_size=64)
    check_values(w, exact(codes, fields, scales, index))
    arrays["g_idx"] = rng.integers(0, 2, 96).astype(np.int32)
    arrays["g_idx"][:70] = 0
    with pytest.raises(ValueError, match="group_index must have 64 inputs"):
        gptq.from_arrays(**arrays, bits=4, checkpoint_format="gptq_v2", group_size=64)


@pytest.mark.parametrize(
    ("bits", "group"), [(2, 32), (2, 128), (3, 32), (4, 32), (4, 128), (8, 32)]
)
def test_gptq_size(bits, group, rng):
    arrays, *_ = gptq_arrays(rng, bits, 64, 1024, group)
    arrays["scales"] = arrays["scales"].astype(np.float16)
    w = gptq.from_arrays(**arrays, bits=bits, checkpoint_format="gptq_v2")
    check_size(w, *(array for array in arrays.values() if array is not None))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bits": 5}, ValueError, "bits must be one of 2, 3, 4, 8, got 5"),
        ({"bits": "4"}, TypeError, "bits must be an int"),
        ({"checkpoint_format": "v1"}, ValueError, "'gptq' or 'gptq_v2', got 'v1'"),
        ({"checkpoint_format": None}, TypeError, "checkpoint_format must be a string"),
        ({"qweight": np.zeros((4, 32))}, TypeError, "qweight must be int32, got float64"),
        ({"qweight": np.zeros(4, np.int32)}, ValueError, "two dimensions"),
        ({"scales": np.ones((2, 31), np.float16)}, ValueError, r"scales must have shape \(2, 32\)"),
        ({"scales": np.ones((3, 32), np.float16)}, ValueError, r"qzeros must have shape \(3, 4\)"),
        ({"scales": np.ones((2, 32), np.int32)}, TypeError, "scales must be float32 or float16"),
        ({"g_idx": np.zeros(31, np.int32)}, ValueError, r"g_idx must have shape \(32,\)"),
        ({"g_idx": np.full(32, 2, np.int32)}, ValueError, "from 0 to 1"),
        ({"g_idx": np.zeros(32)}, TypeError, "g_idx must be integers"),
        ({"group_size": 8}, ValueError, "group_size 8 does not cut 32 inputs into 2 groups"),
    ],
)
def test_gptq_refuses(changes, error, message):
    arguments = {
        "qweight": np.zeros((4, 32), np.int32),
        "qzeros": np.zeros((2, 4), np.int32),
        "scales": np.ones((2, 32), np.float16),
        "bits": 4,
        "checkpoint_format": "gptq",
    }
    gptq.from_arrays(**arguments)
    with pytest.raises(error, match=message):
        gptq.from_arrays(**{**arguments, **changes})


def test_gptq_checkpoint_format_has_no_default():
    with pytest.raises(TypeError, match="checkpoint_format"):
        gptq.from_arrays(*([np.zeros((4, 8), np.int32)] * 3), bits=4)


# --- AWQ


@given(seed=seeds, blocks=st.integers(1, 6), depth=st.sampled_from([32, 64, 96]))
def test_awq(seed, blocks, depth):
    rng = np.random.default_rng(seed)
    cols, groups = 8 * blocks, depth // 32
    codes = rng.integers(0, 16, (cols, depth), np.uint8)
    zeros = rng.integers(0, 16, (cols, groups), np.uint8)
    scales = random_scales(rng, (cols, groups))

    def words(matrix: np.ndarray) -> np.ndarray:
        packed = np.zeros((matrix.shape[1], cols // 8), np.uint32)
        for i, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            packed |= matrix[output::8].T.astype(np.uint32) << np.uint32(4 * i)
        return packed.view(np.int32)

    w = awq.from_arrays(words(codes), words(zeros), np.ascontiguousarray(scales.T))
    values = exact(codes, zeros.astype(np.int64), scales, np.arange(depth) // 32)
    check_values(w, values)
    check_linear(rng, w, values)


def test_awq_size_and_what_it_refuses(rng):
    arrays = [
        rng.integers(-(2**31), 2**31, (1024, 16), np.int32),
        rng.integers(-(2**31), 2**31, (8, 16), np.int32),
        np.ones((8, 128), np.float16),
    ]
    check_size(awq.from_arrays(*arrays), *arrays)
    with pytest.raises(ValueError, match="bits must be one of 4, got 8"):
        awq.from_arrays(*arrays, bits=8)
    with pytest.raises(ValueError, match=r"qzeros must have shape \(8, 16\)"):
        awq.from_arrays(arrays[0], arrays[1][:7], arrays[2])
    with pytest.raises(ValueError, match=r"scales must have shape \(8, 128\)"):
        awq.from_arrays(arrays[0], arrays[1], arrays[2][:, :127])
