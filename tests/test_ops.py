# SPDX-License-Identifier: Apache-2.0
"""linear, matmul_integer and quantize_activations as users call them: shapes, types, errors."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

import nibblas
from nibblas import numerics

from .cases import INTEGER_SCHEMES, PLAIN_OFFSETS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]

floats = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
computes = pytest.mark.parametrize("compute", ["int8", "float32"])


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


@pytest.fixture
def weight(rng):
    return nibblas.quantize(rng.standard_normal((20, 100), dtype=np.float32), "int4", 32)


@pytest.fixture
def x(rng):
    return rng.standard_normal((6, 100), dtype=np.float32)


class Tensor:
    """Somebody else's array, which speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **options):
        if self.device[0] != 1:
            raise BufferError("not on the CPU")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


# --- linear: what it takes


@computes
@pytest.mark.parametrize(("scheme", "offset"), PLAIN_OFFSETS)
@pytest.mark.parametrize("group", [None, 32])
def test_linear_is_the_contract(scheme, offset, group, compute, rng, x):
    w = nibblas.quantize(
        rng.standard_normal((20, 100), dtype=np.float32), scheme, group, offset=offset
    )
    bias = rng.standard_normal(20, dtype=np.float32)
    for activation in (None, "relu", "gelu", "gelu_tanh", "silu"):
        found = nibblas.linear(x, w, bias, compute=compute, activation=activation)
        expected = numerics.linear(x, w._raw_parts(), bias, compute, activation)
        assert np.array_equal(bits(found), bits(expected))


@floats
@pytest.mark.parametrize("lead", [(), (0,), (1,), (3,), (2, 0), (2, 3), (2, 1, 3)])
def test_linear_shapes(lead, dtype, weight, rng):
    x = rng.standard_normal((*lead, 100), dtype=np.float32).astype(dtype)
    y = nibblas.linear(x, weight)
    assert y.shape == (*lead, 20)
    assert y.dtype == dtype
    assert type(y) is np.ndarray
    rows = x.reshape(-1, 100)
    expected = [nibblas.linear(row, weight) for row in rows]
    assert np.array_equal(y.reshape(-1, 20), np.array(expected, dtype).reshape(-1, 20))


@computes
@floats
def test_linear_strides(dtype, compute, weight, x):
    x = x.astype(dtype)
    expected = nibblas.linear(x, weight, compute=compute)
    wide = np.zeros((12, 300), dtype)
    wide[::2, ::3] = x
    backwards = x[::-1, ::-1].copy()[::-1, ::-1]
    blocks = np.zeros((2, 5, 3, 100), dtype)
    blocks[:, 2] = x.reshape(2, 3, 100)
    misaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(dtype).reshape(x.shape)
    misaligned[...] = x
    for view in (np.asfortranarray(x), wide[::2, ::3], backwards, misaligned):
        assert np.array_equal(nibblas.linear(view, weight, compute=compute), expected)
    y = nibblas.linear(blocks[:, 2], weight, compute=compute)
    assert np.array_equal(y, expected.reshape(2, 3, 20))
    repeated = np.broadcast_to(x[0], (4, 100))
    assert np.array_equal(nibblas.linear(repeated, weight, compute=compute), expected[[0] * 4])


def test_linear_reads_read_only_inputs(weight, x, rng):
    bias = rng.standard_normal(20, dtype=np.float32)
    expected = nibblas.linear(x, weight, bias)
    x.flags.writeable = bias.flags.writeable = False
    assert np.array_equal(nibblas.linear(x, weight, bias), expected)


@floats
def test_linear_bias_types(dtype, weight, x, rng):
    bias = rng.standard_normal(20, dtype=np.float32).astype(dtype)
    expected = nibblas.linear(x, weight, bias.astype(np.float32))
    assert np.array_equal(nibblas.linear(x, weight, bias), expected)
    assert np.array_equal(nibblas.linear(x, weight, np.repeat(bias, 2)[::2]), expected)


@pytest.mark.parametrize("out_type", FLOATS, ids=lambda dtype: dtype.name)
@floats
def test_linear_output_type(dtype, out_type, weight, x):
    x = x.astype(dtype)
    expected = nibblas.linear(x.astype(np.float32), weight).astype(out_type)
    for given in (out_type.name, out_type, out_type.type):
        y = nibblas.linear(x, weight, dtype=given)
        assert y.dtype == out_type
        assert np.array_equal(y, expected)
    out = np.zeros((6, 20), out_type)
    assert nibblas.linear(x, weight, out=out) is out
    assert np.array_equal(out, expected)


def test_linear_out_strides(weight, x):
    expected = nibblas.linear(x, weight)
    memory = np.zeros((12, 60), np.float32)
    for out in (
        np.zeros((20, 6), np.float32).T,
        memory[::2, ::3],
        np.zeros((6, 20), np.float32)[::-1],
    ):
        assert nibblas.linear(x, weight, out=out) is out
        assert np.array_equal(out, expected)
    assert not memory[1::2].any()
    assert not memory[:, 1::3].any()
    # Side by side in one array is no overlap.
    both = np.zeros((6, 120), np.float32)
    both[:, :100] = x
    nibblas.linear(both[:, :100], weight, out=both[:, 100:])
    assert np.array_equal(both[:, 100:], expected)
    assert np.array_equal(both[:, :100], x)


@pytest.mark.parametrize("shape", [(20, 0), (0, 100), (0, 0)])
@computes
def test_linear_empty_weights(shape, compute, rng):
    w = nibblas.quantize(np.zeros(shape, np.float32), "int8")
    bias = rng.standard_normal(shape[0], dtype=np.float32)
    x = np.ones((3, shape[1]), np.float32)
    y = nibblas.linear(x, w, compute=compute)
    assert y.shape == (3, shape[0])
    assert not y.any()
    y = nibblas.linear(x, w, bias, compute=compute)
    assert np.array_equal(y, np.broadcast_to(bias, (3, shape[0])))


def test_matmul_operator(weight, x):
    assert np.array_equal(x @ weight.T, nibblas.linear(x, weight))
    assert np.array_equal(x[0] @ weight.T, nibblas.linear(x[0], weight))
    assert np.array_equal(x.reshape(2, 3, 100) @ weight.T, (x @ weight.T).reshape(2, 3, 20))
    assert np.array_equal(Tensor(x) @ weight.T, x @ weight.T)
    for bad in ([[1.0] * 100], 2.0):
        with pytest.raises(TypeError, match="x must be a NumPy array"):
            bad @ weight.T


def test_threads_do_not_matter(x, rng):
    w = nibblas.quantize(rng.standard_normal((200, 100), dtype=np.float32))
    expected = nibblas.linear(x, w, num_threads=1)
    for threads in (2, 3, np.int64(5)):
        assert np.array_equal(nibblas.linear(x, w, num_threads=threads), expected)


def test_subclasses_of_arrays(weight, x, tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
    mapped[...] = x
    y = nibblas.linear(mapped, weight)
    assert type(y) is np.ndarray
    assert np.array_equal(y, nibblas.linear(x, weight))


# --- DLPack


def test_dlpack(weight, x, rng):
    bias = rng.standard_normal(20, dtype=np.float32)
    expected = nibblas.linear(x, weight, bias)
    assert np.array_equal(nibblas.linear(Tensor(x), weight, Tensor(bias)), expected)
    assert np.array_equal(nibblas.linear(Tensor(x[::2]), weight, bias), expected[::2])
    dense = weight.dequantize()
    found, same = nibblas.quantize(Tensor(dense)), nibblas.quantize(dense)
    assert np.array_equal(found.dequantize(), same.dequantize())
    assert np.array_equal(weight.take(Tensor(np.array([3, 1]))), dense[[3, 1]])


def test_dlpack_out_is_returned_as_it_came(weight, x):
    memory = np.zeros((6, 20), np.float32)
    out = Tensor(memory)
    if np.from_dlpack(out).flags.writeable:  # NumPy before 2.1 cannot tell, and says no
        assert nibblas.linear(x, weight, out=out) is out
        assert np.array_equal(memory, nibblas.linear(x, weight))
    else:
        with pytest.raises(ValueError, match="read-only"):
            nibblas.linear(x, weight, out=out)


def test_dlpack_of_another_device(weight, x):
    with pytest.raises(TypeError, match=r"x: cannot read a .*Tensor through DLPack"):
        nibblas.linear(Tensor(x, (2, 0)), weight)


def test_dlpack_of_a_wrong_type(weight, x):
    with pytest.raises(TypeError, match="astype"):
        nibblas.linear(Tensor(x.astype(np.float64)), weight)


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    )


class BFloat16Tensor:
    """What PyTorch's and JAX's bfloat16 arrays are to others: a capsule of type code 4, 16 bits."""

    dtype = "torch.bfloat16"

    def __init__(self, array: np.ndarray, strided: bool = True, code: int = 4) -> None:
        self.array = array
        self.released = 0
        sizes = ctypes.c_int64 * array.ndim
        self.shape_array = sizes(*array.shape)
        self.stride_array = sizes(*(stride // 2 for stride in array.strides))
        self.deleter = type(_DLManagedTensor().deleter)(self.release)
        self.managed = _DLManagedTensor(
            _DLTensor(
                array.ctypes.data,
                1,
                0,
                array.ndim,
                code,
                16,
                1,
                self.shape_array,
                self.stride_array if strided else None,
                0,
            ),
            None,
            self.deleter,
        )

    def release(self, managed: int) -> None:
        self.released += 1

    def __dlpack__(self, **options: object) -> object:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self.managed), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("strided", [True, False])
def test_dlpack_bfloat16(strided, weight, x):
    x = x.astype(BFLOAT16)
    tensor = BFloat16Tensor(x, strided)
    y = nibblas.linear(tensor, weight)
    assert y.dtype == BFLOAT16
    assert np.array_equal(y, nibblas.linear(x, weight))
    assert tensor.released == 1
    transposed = BFloat16Tensor(np.ascontiguousarray(x.T).T)
    assert np.array_equal(nibblas.linear(transposed, weight), y)
    assert transposed.released == 1


def test_dlpack_bfloat16_array_owns_its_memory(x):
    tensor = BFloat16Tensor(x.astype(BFLOAT16))
    array = nibblas._nibblas.from_dlpack_bf16(tensor)
    assert array.dtype == np.uint16
    assert array.shape == x.shape
    assert np.shares_memory(array, tensor.array)
    view = array[1:]
    del array
    assert tensor.released == 0
    del view
    assert tensor.released == 1


def test_dlpack_that_only_says_bfloat16(weight, x):
    with pytest.raises(TypeError, match="DLPack"):
        nibblas.linear(BFloat16Tensor(x.astype(BFLOAT16), code=2), weight)


# --- matmul_integer


@pytest.mark.parametrize("b_type", [np.int8, np.uint8])
@pytest.mark.parametrize("a_type", [np.int8, np.uint8])
def test_matmul_integer(a_type, b_type, rng):
    a = rng.integers(np.iinfo(a_type).min, np.iinfo(a_type).max + 1, (2, 5, 70), a_type)
    b = rng.integers(np.iinfo(b_type).min, np.iinfo(b_type).max + 1, (70, 33), b_type)
    rows, cols = rng.integers(0, 100, 5).astype(a_type), rng.integers(0, 100, 33).astype(b_type)
    wide = a.astype(np.int64)
    for za, zb in ((None, None), (a_type(3), b_type(100)), (3, 100), (rows, None), (rows, cols)):
        left = wide - (0 if za is None else np.reshape(za, (-1, 1)).astype(np.int64))
        right = b.astype(np.int64) - (0 if zb is None else np.asarray(zb).astype(np.int64))
        c = nibblas.matmul_integer(a, b, za, zb)
        assert c.dtype == np.int32
        assert np.array_equal(c, left @ right)
    assert np.array_equal(nibblas.matmul_integer(a[0, 0], b), (wide @ b.astype(np.int64))[0, 0])
    strided = nibblas.matmul_integer(np.asfortranarray(a)[:, ::2], np.asfortranarray(b)[:, ::3])
    assert np.array_equal(strided, (wide @ b.astype(np.int64))[:, ::2, ::3])
    out = np.zeros((2, 33, 5), np.int32).transpose(0, 2, 1)
    assert nibblas.matmul_integer(a, b, out=out) is out
    assert np.array_equal(out, wide @ b.astype(np.int64))


def test_matmul_integer_wraps():
    a, b = np.full((1, 200_000), 255, np.uint8), np.full((200_000, 1), 255, np.uint8)
    exact = 255 * 255 * 200_000
    assert nibblas.matmul_integer(a, b)[0, 0] == (exact + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_matmul_integer_with_packed_weight(scheme, rng):
    w = nibblas.quantize(rng.standard_normal((33, 70), dtype=np.float32), scheme, 32)
    a = rng.integers(0, 256, (5, 70), np.uint8)
    expected = a.astype(np.int64) @ w.unpack()["codes"].T.astype(np.int64)
    assert np.array_equal(nibblas.matmul_integer(a, w), expected)
    assert np.array_equal(nibblas.matmul_integer(a, w.T), expected)
    shifted = expected - 3 * w.unpack()["codes"].astype(np.int64).sum(axis=1)
    assert np.array_equal(nibblas.matmul_integer(a, w, 3), shifted)


# --- quantize_activations


@floats
@pytest.mark.parametrize("group", [None, 16, 64, 128])
def test_quantize_activations(group, dtype, x):
    x = x.astype(dtype).reshape(2, 3, 100)
    codes, scales = nibblas.quantize_activations(x, group)
    expected_codes, expected_scales = numerics.quantize_activations(x, group)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(scales, expected_scales)
    one_codes, one_scales = nibblas.quantize_activations(x[1, 2], group)
    assert np.array_equal(one_codes, codes[1, 2])
    assert np.array_equal(one_scales, scales[1, 2])
    wide = np.zeros((2, 6, 300), dtype)
    wide[:, ::2, ::3] = x
    assert np.array_equal(nibblas.quantize_activations(wide[:, ::2, ::3], group)[0], codes)
