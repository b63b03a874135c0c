# SPDX-License-Identifier: Apache-2.0
"""PackedWeight: its planes, unpack, dequantize, take, and how it behaves as an object."""

from __future__ import annotations

import copy
import itertools
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest

import nibblas
from nibblas import numerics
from nibblas.schemes import SCHEMES, stored_group_count

from .cases import (
    BFLOAT16,
    PLAIN_OFFSETS,
    all_variants,
    dense,
    random_weight,
    same_planes,
)

variants = pytest.mark.parametrize(
    ("scheme", "offset", "group"),
    [(*offset, group) for offset, group in itertools.product(PLAIN_OFFSETS, (None, 16, 32))],
)


@variants
def test_attributes_and_planes(scheme, offset, group, rng):
    w = nibblas.quantize(dense(rng), scheme, group, offset=offset)
    bits = SCHEMES[scheme].bits
    assert w.shape == (20, 100)
    assert w.ndim == 2
    assert w.scheme == scheme
    assert w.group_size == group
    assert w.offset == offset
    assert w.scale_dtype == ("float32" if group is None else "float16")
    depth = 128  # 100 rounded up, to 64 or to groups
    groups = 1 if group is None else depth // group
    expected = {
        "codes": (np.uint8, (2, depth * bits // 32, 16, 4)),
        "scales": (None, (2, groups, 16)),
    }
    if offset == "zero_point":
        expected["zero_points"] = (np.uint8, (2, groups, 16))
    elif offset == "min":
        expected["mins"] = (None, (2, groups, 16))
    assert w.planes.keys() == expected.keys()
    for name, (dtype, shape) in expected.items():
        plane = w.planes[name]
        assert plane.shape == shape
        assert plane.dtype == (w.scale_dtype if dtype is None else dtype)
        assert plane.flags.c_contiguous
        assert not plane.flags.writeable
        assert plane.ctypes.data % 64 == 0
    assert w.nbytes == sum(plane.nbytes for plane in w.planes.values())
    assert w.bits_per_weight == 8 * w.nbytes / (20 * 100)


def test_planes_is_a_dict_of_its_own(rng):
    w = nibblas.quantize(dense(rng))
    w.planes.clear()
    assert "codes" in w.planes


@variants
def test_codes_lie_where_the_layout_says(scheme, offset, group, rng):
    w = nibblas.quantize(dense(rng), scheme, group, offset=offset)
    natural = w.unpack()["codes"]
    stored = numerics.unpack_planes([w.planes["codes"]], SCHEMES[scheme].bits, w.shape)
    assert natural.dtype == SCHEMES[scheme].code_dtype
    assert np.array_equal(natural.astype(np.int64) - SCHEMES[scheme].code_min, stored)
    raw = w._raw_parts()
    assert raw["codes"].dtype == np.uint8
    assert np.array_equal(raw["codes"], stored)
    assert raw["zero"] == SCHEMES[scheme].zero


@variants
def test_unpack_and_pack_are_inverse(scheme, offset, group, rng):
    w = nibblas.quantize(dense(rng), scheme, group, offset=offset)
    parts = w.unpack()
    groups = 1 if group is None else -(-100 // group)
    assert parts["scales"].shape == (20, groups)
    assert parts["scheme"] == scheme
    assert parts["group_size"] == group
    assert parts["zero"] == 0
    assert same_planes(nibblas.pack(**parts), w)


@variants
def test_dequantize_is_the_formula_rounded_once(scheme, offset, group, rng):
    w = nibblas.quantize(dense(rng), scheme, group, offset=offset)
    parts = w.unpack()
    size = 100 if group is None else group
    of_k = np.arange(100) // size
    codes = parts["codes"].astype(np.float64)
    scales = parts["scales"].astype(np.float64)[:, of_k]
    if offset == "zero_point":
        exact = (codes - parts["zero_points"][:, of_k]) * scales
    elif offset == "min":
        exact = codes * scales + parts["mins"].astype(np.float64)[:, of_k]
    else:
        exact = (codes - parts["zero"]) * scales
    # Codes have 9 bits and scales 24, so products are exact in float64 and one rounding is left.
    # Sums with a min need more than 53 bits only where float32 cannot see it: at most 1 ulp.
    tolerance = 2.0**-23 if offset == "min" else 0
    np.testing.assert_allclose(w.dequantize(), exact.astype(np.float32), rtol=tolerance, atol=0)
    assert np.array_equal(w.dequantize(), numerics.dequantize(w._raw_parts()))


@pytest.mark.parametrize("dtype", ["float32", np.float32, "float16", np.dtype(np.float16)])
def test_dequantize_to_a_type(dtype, rng):
    w = nibblas.quantize(dense(rng))
    found = w.dequantize(dtype)
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, w.dequantize().astype(dtype))


def test_dequantize_to_bfloat16(rng):
    w = nibblas.quantize(dense(rng))
    for dtype in ("bfloat16", ml_dtypes.bfloat16):
        found = w.dequantize(dtype)
        assert found.dtype == BFLOAT16
        assert np.array_equal(found, w.dequantize().astype(BFLOAT16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_dequantize_into_out(dtype, rng):
    w = nibblas.quantize(dense(rng))
    expected = w.dequantize(dtype)
    memory = np.zeros((40, 300), dtype)
    for out in (np.zeros((20, 100), dtype), np.zeros((100, 20), dtype).T, memory[::2, ::3]):
        assert w.dequantize(out=out) is out
        assert np.array_equal(out, expected)
    assert not memory[1::2].any()
    assert not memory[:, 1::3].any()


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([], TypeError, "out must be a NumPy array, got list"),
        (np.zeros((20, 99), np.float32), ValueError, r"\(20, 100\), got \(20, 99\)"),
        (np.zeros((20, 100)), TypeError, "float64"),
        (np.zeros((20, 100), np.int32), TypeError, "int32"),
        (np.broadcast_to(np.float32(0), (20, 100)), ValueError, "read-only"),
    ],
)
def test_dequantize_refuses_out(out, error, message, rng):
    w = nibblas.quantize(dense(rng))
    with pytest.raises(error, match=message):
        w.dequantize(out=out)


@pytest.mark.parametrize("dtype", ["float64", np.int8, "nonsense", 5])
def test_dequantize_refuses_type(dtype, rng):
    with pytest.raises(TypeError, match="must be one of float32, float16, bfloat16, got"):
        nibblas.quantize(dense(rng)).dequantize(dtype)


# Outputs of 32 MB and more are written past the caches, whole lines at a time.
BEYOND_CACHES = (1050, 16051)


@pytest.fixture(scope="module")
def large_weight():
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, BEYOND_CACHES, np.uint8)
    scales = rng.standard_normal((len(codes), -(-BEYOND_CACHES[1] // 32)), np.float32)
    return codes, nibblas.pack(codes, scales, scheme="uint4", group_size=32, zero_points=7)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("at", [0, 1, 15])
def test_dequantize_beyond_caches(dtype, at, large_weight, target):
    _, w = large_weight
    rows, depth = w.shape
    guard = 64
    strided = np.zeros((rows, depth, 2), dtype)
    w.dequantize(out=strided[:, :, 0], num_threads=2)
    assert not strided[:, :, 1].any()
    memory = np.full(rows * depth + 2 * guard, 99, dtype)
    start = -(memory.ctypes.data // memory.itemsize) % (64 // memory.itemsize) + at
    out = memory[start : start + rows * depth].reshape(rows, depth)
    for threads in (1, 2):
        out[...] = 99
        w.dequantize(out=out, num_threads=threads)
        assert np.array_equal(out, strided[:, :, 0])
        assert (memory[:start] == 99).all()
        assert (memory[start + rows * depth :] == 99).all()
    assert np.array_equal(w.dequantize(dtype), out)
    some = [0, 16, 31, 32, rows - 1]
    assert np.array_equal(w.take(some, dtype), out[some])


def test_codes_beyond_caches(target):
    # Rows end at every place of a line.
    rng = np.random.default_rng(6)
    for scheme, dtype, low, high in (("uint8", "uint8", 0, 255), ("int5", "int8", -16, 15)):
        codes = rng.integers(low, high, (2100, 16051), dtype, endpoint=True)
        for threads in (1, 2):
            scales = np.ones(2100, np.float32)
            w = nibblas.pack(codes, scales, scheme=scheme, group_size=None, num_threads=threads)
            assert np.array_equal(w.unpack(num_threads=threads)["codes"], codes)
        small = nibblas.pack(codes[2080:], np.ones(20, np.float32), scheme=scheme, group_size=None)
        for name, plane in small.planes.items():
            assert np.array_equal(w.planes[name][130:], plane)


@variants
def test_take_is_dequantize_of_rows(scheme, offset, group, rng):
    w = nibblas.quantize(dense(rng), scheme, group, offset=offset)
    whole = w.dequantize()
    indices = np.array([[19, 0, 7], [7, 16, 15]])
    for dtype in (np.int64, np.int8, np.uint64, np.int32):
        assert np.array_equal(w.take(indices.astype(dtype)), whole[indices])
    assert np.array_equal(w.take([3, 3]), whole[[3, 3]])
    assert np.array_equal(w.take(5), whole[5])
    assert w.take([]).shape == (0, 100)
    assert w.take(np.zeros((0, 4), np.int32)).shape == (0, 4, 100)
    half = w.take(indices[:, ::2], "float16")
    assert np.array_equal(half, w.dequantize("float16")[indices[:, ::2]])


def test_take_into_out(rng):
    w = nibblas.quantize(dense(rng))
    indices = np.array([[19, 0, 7], [7, 16, 15]])
    for out in (
        np.zeros((2, 3, 100), np.float32),
        np.zeros((3, 2, 100), np.float32).transpose(1, 0, 2),  # rows that no stride steps through
        np.zeros((2, 3, 200), np.float16)[..., ::2],
    ):
        assert w.take(indices, out=out) is out
        assert np.array_equal(out, w.dequantize(out.dtype)[indices])


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 20], IndexError, "index 20 is out of range for 20 output features"),
        ([-1], IndexError, "index -1"),
        (np.array([2**63], np.uint64), IndexError, "9223372036854775808"),
        ([0.0], TypeError, "float64"),
        ([True], TypeError, "bool"),
        (["a"], TypeError, "integers"),
    ],
)
def test_take_refuses(indices, error, message, rng):
    with pytest.raises(error, match=message):
        nibblas.quantize(dense(rng)).take(indices)


# --- as an object


@pytest.fixture
def weight(rng):
    return nibblas.quantize(dense(rng), "uint4")


def test_cannot_be_made_or_changed(weight):
    with pytest.raises(TypeError, match=r"nibblas\.quantize"):
        nibblas.PackedWeight()
    with pytest.raises(AttributeError, match="cannot be changed"):
        weight.shape = (1, 2)
    with pytest.raises(AttributeError, match="cannot be changed"):
        weight.anything = 1
    with pytest.raises(AttributeError, match="cannot be changed"):
        del weight._planes
    for plane in weight.planes.values():
        with pytest.raises(ValueError, match="read-only"):
            plane[...] = 0


def test_is_no_array(weight):
    for convert in (np.asarray, np.array, np.median):
        with pytest.raises(TypeError, match=r"\.dequantize\(\)"):
            convert(weight)
        with pytest.raises(TypeError, match=r"\.dequantize\(\)"):
            convert(weight.T)
    for operation in (lambda x: x * weight, lambda x: x + weight.T, lambda x: weight @ x):
        with pytest.raises(TypeError):
            operation(np.ones((4, 100), np.float32))
    with pytest.raises(TypeError, match=r"x @ w\.T"):
        np.ones((4, 100), np.float32) @ weight


def test_transpose(weight):
    assert weight.T.shape == (100, 20)
    assert weight.T.ndim == 2
    assert weight.T.T is weight
    assert repr(weight) in repr(weight.T)


def test_is_equal_to_itself_only(weight):
    assert weight == weight
    assert weight != weight.copy()
    assert len({weight, weight.copy(), weight}) == 2
    assert weakref.ref(weight)() is weight


def test_copy_has_planes_of_its_own(weight):
    other = weight.copy()
    assert same_planes(other, weight)
    for name, plane in other.planes.items():
        assert not np.shares_memory(plane, weight.planes[name])
        assert plane.ctypes.data % 64 == 0
        assert not plane.flags.writeable
    assert copy.copy(weight) is weight
    assert copy.deepcopy(weight) is weight


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@all_variants
def test_pickle(protocol, variant, rng):
    w = random_weight(rng, variant, (20, 300), 32, ordered=protocol % 2 == 0)
    other = pickle.loads(pickle.dumps(w, protocol))
    assert same_planes(other, w)
    assert repr(other) == repr(w)
    assert (other.tensor_scale, other.tensor_divisor) == (w.tensor_scale, w.tensor_divisor)
    assert np.array_equal(other.dequantize(), w.dequantize())
    assert not other.planes["scales"].flags.writeable


def test_pickle_out_of_band_copies_nothing(weight):
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(weight, 5, buffer_callback=buffers.append)
    assert len(buffers) == len(weight.planes)
    assert len(data) < 1000
    other = pickle.loads(data, buffers=buffers)
    for name, plane in other.planes.items():
        assert np.shares_memory(plane, weight.planes[name])
    # Buffers of the receiver, such as shared memory, may be writable; the planes are not.
    mutable = [bytearray(buffer) for buffer in buffers]
    other = pickle.loads(data, buffers=mutable)
    assert np.array_equal(other.dequantize(), weight.dequantize())
    assert not other.planes["codes"].flags.writeable


def test_pickle_of_another_layout_is_refused(weight):
    make, arguments = weight.__reduce__()
    assert make(*arguments).scheme == "uint4"
    with pytest.raises(ValueError, match="layout_version 2"):
        make(2, *arguments[1:])
    planes = {**arguments[5], "codes": arguments[5]["codes"][:1]}
    with pytest.raises(ValueError, match="plane 'codes': expected uint8"):
        make(*arguments[:5], planes, *arguments[6:])


@all_variants
def test_repr(variant, rng):
    w = random_weight(rng, variant, (20, 300), 32)
    text = repr(w)
    assert f"{variant.scheme} 20x300" in text
    assert f"groups of {SCHEMES[variant.scheme].fixed_group or 32}" in text
    assert f"{w.scale_dtype} scales" in text
    words = {"zero_point": "zero points", "float_zero": "zero points", "min": "mins"}
    assert words.get(variant.offset, "bits") in text
    if SCHEMES[variant.scheme].fixed_group is None:
        assert "per channel" in repr(random_weight(rng, variant, (20, 300), None))


def test_padding_of_planes_is_zero(rng):
    w = nibblas.quantize(dense(rng) + 5, "uint4", 16, offset="min")
    assert stored_group_count(100, 16) == 8
    for name in ("scales", "mins"):
        assert not w.planes[name][:, 7:].any()
        assert not w.planes[name][1, :, 4:].any()
        assert w.planes[name][1, :7, :4].all()
