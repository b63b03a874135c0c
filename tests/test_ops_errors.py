# SPDX-License-Identifier: Apache-2.0
"""What the operations refuse: each error says what was expected and what came."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import nibblas


@pytest.fixture(scope="module")
def weight():
    rng = np.random.default_rng(0)
    return nibblas.quantize(rng.standard_normal((20, 100), dtype=np.float32), "int4", 32)


X = np.ones((6, 100), np.float32)
BIAS = np.ones(20, np.float32)
OUT = np.zeros((6, 20), np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.int32, np.uint8, np.bool_, ">f4", "S4"])
def test_linear_refuses_types_of_x_and_says_how_to_convert(dtype, weight):
    with pytest.raises(TypeError, match=r"x must be .*float32.*astype"):
        nibblas.linear(np.zeros((6, 100), dtype), weight)
    with pytest.raises(TypeError, match=r"x must be .*float32.*astype"):
        np.zeros((6, 100), dtype) @ weight.T


@pytest.mark.parametrize("x", [[[1.0] * 100], (1.0,), 1.0, None, "x", object()])
def test_linear_refuses_what_is_no_array(x, weight):
    with pytest.raises(TypeError, match=r"x must be a NumPy array.*got"):
        nibblas.linear(x, weight)


@pytest.mark.parametrize("bad", [np.ones((20, 100), np.float32), None, "w"])
def test_linear_refuses_what_is_no_weight(bad):
    with pytest.raises(TypeError, match="weight must be a PackedWeight, got"):
        nibblas.linear(X, bad)


def test_linear_names_the_way_to_make_a_weight():
    with pytest.raises(TypeError, match=r"nibblas\.quantize"):
        nibblas.linear(X, X)


def test_linear_refuses_the_transpose(weight):
    with pytest.raises(TypeError, match=r"not its transpose"):
        nibblas.linear(X, weight.T)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[:, :99]}, ValueError, "weight has 100 input features, x has 99"),
        ({"x": X[0, :50]}, ValueError, "weight has 100 input features, x has 50"),
        ({"x": X.T}, ValueError, "weight has 100 input features, x has 6"),
        ({"x": np.ones((), np.float32)}, ValueError, "dimension"),
        ({"bias": BIAS[:19]}, ValueError, r"bias must have shape \(20,\), got \(19,\)"),
        ({"bias": BIAS[:, None]}, ValueError, r"\(20,\), got \(20, 1\)"),
        ({"bias": np.ones((), np.float32)}, ValueError, r"bias must have shape \(20,\)"),
        ({"bias": BIAS.astype(np.float64)}, TypeError, r"bias must be .*float64.*astype"),
        ({"bias": BIAS.astype(np.int32)}, TypeError, r"bias must be .*int32.*astype"),
        ({"bias": [1.0] * 20}, TypeError, "bias must be a NumPy array.*got list"),
        ({"compute": "int4"}, ValueError, 'compute must be .*int8.*float32.*"?int4"?'),
        ({"compute": None}, TypeError, "compute"),
        ({"compute": 8}, TypeError, "compute"),
        ({"activation": "swish"}, ValueError, "activation must be .*relu.*gelu_tanh.*silu.*swish"),
        ({"activation": 1}, TypeError, "activation"),
        ({"dtype": "float64"}, TypeError, "dtype must be one of .*, got float64"),
        ({"dtype": np.int32}, TypeError, "got int32"),
        ({"dtype": "half"}, None, ""),
        ({"out": OUT[:, :19].copy()}, ValueError, r"out must have shape \(6, 20\), got \(6, 19\)"),
        ({"out": OUT[0].copy()}, ValueError, r"\(6, 20\), got \(20,\)"),
        ({"out": OUT.astype(np.float64)}, TypeError, "out must be .*float64"),
        ({"out": OUT.astype(np.int32)}, TypeError, "out must be .*int32"),
        ({"out": OUT.astype(">f4")}, TypeError, "out must be"),
        ({"out": [[0.0]]}, TypeError, "out must be a NumPy array.*got list"),
        ({"out": OUT.copy(), "dtype": "float16"}, TypeError, "float32.*float16|float16.*float32"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        ({"num_threads": -2}, ValueError, "num_threads must be at least 1, got -2"),
        ({"num_threads": 2.0}, TypeError, "num_threads must be an int or None, got float"),
        ({"num_threads": True}, TypeError, "got bool"),
    ],
)
def test_linear_refuses(arguments, error, message, weight):
    arguments = {"x": X, **arguments}
    if error is None:
        nibblas.linear(weight=weight, **arguments)
        return
    with pytest.raises(error, match=message):
        nibblas.linear(weight=weight, **arguments)


def test_linear_tells_the_sizes_of_a_real_layer():
    w = nibblas.pack(
        np.zeros((16, 4096), np.int8), np.ones(16, np.float32), scheme="int8", group_size=None
    )
    with pytest.raises(ValueError, match="weight has 4096 input features, x has 4095"):
        nibblas.linear(np.zeros((2, 4095), np.float32), w)


def test_linear_refuses_read_only_out(weight):
    out = OUT.copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        nibblas.linear(X, weight, out=out)
    with pytest.raises(ValueError, match=r"read-only|share memory"):
        nibblas.linear(X, weight, out=np.broadcast_to(np.float32(0), (6, 20)))


def test_linear_refuses_out_that_overlaps(weight):
    memory = np.ones((6, 120), np.float32)
    with pytest.raises(ValueError, match="shares memory with an input"):
        nibblas.linear(memory[:, :100], weight, out=memory[:, 50:70])
    shared = np.ones(200, np.float32)
    with pytest.raises(ValueError, match=r"shares? memory"):
        nibblas.linear(X, weight, shared[:20], out=shared[:120].reshape(6, 20))
    # Two elements of out in one place: which of them would it be?
    out = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (6, 20), (4, 4))
    with pytest.raises(ValueError, match=r"shares? memory"):
        nibblas.linear(X, weight, out=out)


def test_linear_refuses_out_that_overlaps_the_weight():
    scales = np.ones(32, np.float32)
    w = nibblas.pack(np.zeros((32, 32), np.int8), scales, scheme="int8", group_size=None)
    plane = w.planes["scales"]  # a view of memory that Python code can find, and write to
    memory = plane.base
    start = plane.ctypes.data - memory.ctypes.data
    out = memory[start : start + 128].view(np.float32)
    assert out.flags.writeable
    assert np.shares_memory(out, plane)
    with pytest.raises(ValueError, match=r"shares? memory"):
        nibblas.linear(np.ones(32, np.float32), w, out=out)


def test_a_failed_call_leaves_out_alone(weight):
    out = np.full((6, 20), 7, np.float32)
    with pytest.raises(ValueError, match="activation"):
        nibblas.linear(X, weight, activation="none", out=out)
    assert (out == 7).all()


def test_bfloat16_without_ml_dtypes_names_what_to_install(weight, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    w = nibblas.quantize(np.ones((4, 64), np.float32), scale_dtype="bfloat16")  # needs it not
    assert nibblas.linear(np.ones(64, np.float32), w).shape == (4,)
    for call in (
        lambda: nibblas.linear(X, weight, dtype="bfloat16"),
        lambda: weight.dequantize("bfloat16"),
        lambda: weight.take([0], "bfloat16"),
        lambda: w.unpack(),
    ):
        with pytest.raises(ImportError, match=r"pip install nibblas\[ml_dtypes\]"):
            call()


def test_linear_wants_keywords(weight):
    with pytest.raises(TypeError, match="positional"):
        nibblas.linear(X, weight, None, "int8")
    with pytest.raises(TypeError, match="unexpected keyword"):
        nibblas.linear(X, weight, threads=2)


A = np.ones((5, 70), np.uint8)
B = np.ones((70, 33), np.int8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"a": A.astype(np.int16)}, TypeError, "a must be .*int8.*uint8.*int16"),
        ({"a": A.astype(np.float32)}, TypeError, "a must be .*float32"),
        ({"b": B.astype(np.int32)}, TypeError, "b must be .*int32"),
        ({"a": [[1]]}, TypeError, "a must be a NumPy array.*got list"),
        ({"b": None}, TypeError, "b must be a NumPy array.*got NoneType"),
        ({"b": B[:69]}, ValueError, "70.*69|69.*70"),
        ({"b": B[0]}, ValueError, "b must"),
        ({"b": B[None]}, ValueError, "b must"),
        ({"a": np.ones((), np.int8)}, ValueError, "a must"),
        ({"a_zero_point": np.ones(4, np.uint8)}, ValueError, "a_zero_point.*5"),
        ({"b_zero_point": np.ones(5, np.int8)}, ValueError, "b_zero_point.*33"),
        ({"a_zero_point": np.ones((5, 1), np.uint8)}, ValueError, "a_zero_point"),
        ({"a_zero_point": 256}, ValueError, "a_zero_point.*256"),
        ({"a_zero_point": -1}, ValueError, "a_zero_point.*-1"),
        ({"b_zero_point": 128}, ValueError, "b_zero_point.*128"),
        ({"a_zero_point": 0.5}, TypeError, "a_zero_point"),
        ({"b_zero_point": np.ones(33, np.float32)}, TypeError, "b_zero_point"),
        ({"out": np.zeros((5, 33), np.int64)}, TypeError, "out must be int32, got int64"),
        ({"out": np.zeros((33, 5), np.int32)}, ValueError, r"\(5, 33\), got \(33, 5\)"),
        ({"num_threads": 0}, ValueError, "at least 1"),
    ],
)
def test_matmul_integer_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        nibblas.matmul_integer(**{"a": A, "b": B, **arguments})


@pytest.mark.parametrize(
    ("x", "group", "error", "message"),
    [
        (X.astype(np.float64), None, TypeError, r"x must be .*float64.*astype"),
        ([1.0], None, TypeError, "x must be a NumPy array"),
        (np.ones((), np.float32), None, ValueError, "dimension"),
        (X, 24, ValueError, "group_size must be .*power of two.*24"),
        (X, 8, ValueError, "power of two.*8"),
        (X, 0, ValueError, "group_size"),
        (X, -16, ValueError, "group_size"),
        (X, 16.0, TypeError, "group_size"),
        (X, "auto", TypeError, "group_size"),
    ],
)
def test_quantize_activations_refuses(x, group, error, message):
    with pytest.raises(error, match=message):
        nibblas.quantize_activations(x, group)


@pytest.mark.parametrize("group", [100, 101, 99999])
def test_quantize_activations_whole_row(group):
    codes, scales = nibblas.quantize_activations(X, group)
    assert scales.shape == (6, 1)
    assert (codes == 127).all()
