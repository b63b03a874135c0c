# SPDX-License-Identifier: Apache-2.0
"""pack: codes of other tools, kept as they are, and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nibblas
from nibblas import numerics
from nibblas.schemes import SCHEMES

from .cases import BFLOAT16, INTEGER_SCHEMES, same_planes


def make_codes(scheme: str, rng, cols=20, depth=100) -> np.ndarray:
    info = SCHEMES[scheme]
    dtype = np.int8 if info.signed else np.uint8
    return rng.integers(info.code_min, info.code_max + 1, (cols, depth)).astype(dtype)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
@pytest.mark.parametrize("dtype", [None, np.int64, np.int16])
def test_pack_keeps_codes_and_scales(scheme, dtype, rng):
    codes = make_codes(scheme, rng)
    scales = rng.standard_normal((20, 7), dtype=np.float32)
    w = nibblas.pack(codes.astype(dtype or codes.dtype), scales, scheme=scheme, group_size=16)
    parts = w.unpack()
    assert np.array_equal(parts["codes"], codes)
    assert np.array_equal(parts["scales"], scales)
    assert np.array_equal(w.dequantize(), codes * scales[:, np.arange(100) // 16])


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_pack_per_channel(scheme, rng):
    codes = make_codes(scheme, rng)
    scales = rng.standard_normal(20, dtype=np.float32)
    for group_size in (None, 100, 4096):
        one = nibblas.pack(codes, scales, scheme=scheme, group_size=group_size)
        two = nibblas.pack(codes, scales[:, None], scheme=scheme, group_size=group_size)
        assert one.group_size is None
        assert same_planes(one, two)
        assert np.array_equal(one.dequantize(), codes * scales[:, None])


@pytest.mark.parametrize("scheme", ["int2", "int4", "int7", "ternary", "uint1", "uint4", "uint7"])
def test_pack_finds_each_code_out_of_range(scheme, rng, target):
    good = make_codes(scheme, rng, 33, 577)
    low, high = SCHEMES[scheme].code_min, SCHEMES[scheme].code_max
    info = np.iinfo(good.dtype)
    bad = {high + 1, info.max, max(low - 1, info.min), info.min} - {low}
    scales = np.ones(33, np.float32)
    for place in ((0, 0), (15, 511), (16, 512), (31, 63), (32, 576)):
        for value in sorted(bad):
            codes = good.copy()
            codes[place] = value
            for given in (codes, np.asfortranarray(codes), np.repeat(codes, 2, 1)[:, ::2]):
                with pytest.raises(ValueError, match=f"codes.* {value}"):
                    nibblas.pack(given, scales, scheme=scheme, group_size=None)
    nibblas.pack(good, scales, scheme=scheme, group_size=None)


@pytest.mark.parametrize(
    ("given", "stored", "depth"),
    [(48, 16, 100), (48, 16, 97), (96, 32, 200), (112, 16, 113), (8192, 4096, 8200)],
)
def test_pack_divides_group_sizes(given, stored, depth, rng):
    codes = make_codes("uint4", rng, 18, depth)
    groups = -(-depth // given)
    scales = rng.standard_normal((18, groups)).astype(np.float16)
    zero_points = rng.integers(0, 16, (18, groups), np.uint8)
    w = nibblas.pack(codes, scales, zero_points, scheme="uint4", group_size=given)
    assert w.group_size == stored
    of_k = np.arange(depth) // given
    expected = codes.astype(np.float32) - zero_points[:, of_k]
    expected *= scales[:, of_k].astype(np.float32)
    assert np.array_equal(w.dequantize(), expected)
    assert w.unpack()["scales"].shape == (18, -(-depth // stored))


@pytest.mark.parametrize("size", [1, 15, 24, 40, 56, 99])
def test_pack_refuses_groups_it_cannot_divide(size, rng):
    with pytest.raises(ValueError, match=f"multiple of 16.*got {size}"):
        nibblas.pack(
            make_codes("int4", rng),
            np.ones((20, -(-100 // size)), np.float32),
            scheme="int4",
            group_size=size,
        )


@pytest.mark.parametrize("scheme", ["uint4", "uint8"])
def test_zero_point_of_the_whole_matrix_is_no_plane(scheme, rng):
    codes = make_codes(scheme, rng)
    scales = np.ones((20, 4), np.float16)
    given = (
        {"zero_points": 7},
        {"zero": 7},
        {"zero_points": np.int64(7)},
        {"zero_points": np.array(7)},
        {"zero_points": np.full((20, 4), 7, np.uint8)},
        {"zero_points": np.full((20, 4), 7, np.int32)},
    )
    for arguments in given:
        w = nibblas.pack(codes, scales, scheme=scheme, group_size=32, **arguments)
        assert w.offset == "symmetric"
        assert "zero_points" not in w.planes
        assert w.unpack()["zero"] == 7
        assert np.array_equal(w.dequantize(), codes.astype(np.float32) - 7)
        assert same_planes(nibblas.pack(**w.unpack()), w)


@pytest.mark.parametrize("scheme", ["uint4", "uint8"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, BFLOAT16])
def test_pack_mins(scheme, dtype, rng):
    codes = make_codes(scheme, rng)
    mins = rng.standard_normal((20, 4)).astype(dtype)
    w = nibblas.pack(codes, np.ones((20, 4), dtype), scheme=scheme, group_size=32, mins=mins)
    assert w.offset == "min"
    assert np.array_equal(w.unpack()["mins"], mins)
    expected = codes + mins.astype(np.float64)[:, np.arange(100) // 32]
    assert np.array_equal(w.dequantize(), expected.astype(np.float32))


def test_pack_int4_types_of_ml_dtypes(rng):
    codes = make_codes("int4", rng)
    scales = np.ones(20, np.float32)
    expected = nibblas.pack(codes, scales, scheme="int4", group_size=None)
    found = nibblas.pack(codes.astype(ml_dtypes.int4), scales, scheme="int4", group_size=None)
    assert same_planes(found, expected)


@pytest.mark.parametrize("group", [None, 32])
def test_input_order(group, rng):
    codes = make_codes("int4", rng)
    groups = 1 if group is None else 4
    scales = rng.standard_normal((20, groups), dtype=np.float32)
    order = rng.permutation(100)
    w = nibblas.pack(codes, scales, scheme="int4", group_size=group, input_order=order)
    parts = w.unpack()
    assert np.array_equal(parts["codes"], codes)
    assert np.array_equal(parts["input_order"], order)
    assert parts["input_order"].dtype == np.int32
    group_of = np.empty(100, int)
    group_of[order] = np.arange(100) // (group or 100)
    expected = codes * scales[:, group_of]
    assert np.array_equal(w.dequantize(), expected)
    assert np.array_equal(w.take([3, 17]), expected[[3, 17]])
    assert np.array_equal(numerics.dequantize(w._raw_parts()), expected)
    assert same_planes(nibblas.pack(**parts), w)
    assert same_planes(w.copy(), w)


def test_input_order_of_nothing_is_left_out(rng):
    codes, scales = make_codes("int4", rng), np.ones((20, 4), np.float32)
    for given in ({"input_order": np.arange(100)}, {"group_index": np.arange(100) // 32}):
        w = nibblas.pack(codes, scales, scheme="int4", group_size=32, **given)
        assert "input_order" not in w.planes


@pytest.mark.parametrize(("depth", "size"), [(96, 32), (100, 32), (96, 48)])
def test_group_index(depth, size, rng):
    codes = make_codes("int4", rng, 20, depth)
    groups = -(-depth // size)
    scales = rng.standard_normal((20, groups), dtype=np.float32)
    index = rng.permutation(np.arange(depth) // size)
    w = nibblas.pack(codes, scales, scheme="int4", group_size=size, group_index=index)
    assert np.array_equal(w.planes["input_order"], np.argsort(index, kind="stable"))
    assert np.array_equal(w.dequantize(), codes * scales[:, index])


ONES = np.ones((20, 4), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scheme": "int9"}, ValueError, "unknown scheme"),
        ({"codes": np.zeros((20, 100), np.float32)}, TypeError, "must be integers, got float32"),
        ({"codes": np.zeros(100, np.int8)}, ValueError, r"matrix \(N, K\)"),
        ({"codes": [[1]]}, TypeError, "codes must be a NumPy array"),
        ({"codes": np.full((20, 100), 8, np.int8)}, ValueError, "from -8 to 7, got 8 to 8"),
        ({"codes": np.full((20, 100), -9, np.int8)}, ValueError, "from -8 to 7, got -9"),
        ({"codes": np.full((20, 100), 264, np.int64)}, ValueError, "got 264"),
        ({"scales": ONES.astype(np.float64)}, TypeError, r"scales must be .*float64.*astype"),
        ({"scales": np.ones((20, 4), np.int32)}, TypeError, "scales must be"),
        ({"scales": ONES[:, :3]}, ValueError, r"scales must have shape \(20, 4\), got \(20, 3\)"),
        ({"scales": ONES[0]}, ValueError, r"\(20, 4\), got \(4,\)"),
        ({"scales": 2.0}, TypeError, "scales must be a NumPy array"),
        ({"scales": np.full((20, 4), np.inf, np.float32)}, ValueError, "scales must be finite"),
        ({"scales": np.full((20, 4), np.nan, np.float16)}, ValueError, "scales must be finite"),
        ({"zero_points": 3}, ValueError, "int4 has no zero points: use uint4"),
        ({"mins": ONES}, ValueError, "int4 has no mins: use uint4"),
        ({"zero_points": 0, "mins": ONES}, ValueError, "zero_points or mins, not both"),
        ({"zero_points": 1, "zero": 1}, ValueError, "zero or zero_points, not both"),
        ({"group_size": 31}, ValueError, "multiple of 16"),
        ({"group_size": "auto"}, None, ""),
        ({"group_size": "large"}, TypeError, "int or None, got 'large'"),
        ({"codebook": np.zeros(16, np.float32)}, ValueError, "int4 has no codebook"),
        ({"super_scales": np.ones((20, 1), np.float16)}, ValueError, "int4 has no super_scales"),
        ({"tensor_scale": 1.0}, ValueError, "int4 has no tensor_scale"),
        ({"input_order": np.zeros(100, np.int32)}, ValueError, "every number from 0 to 99 once"),
        ({"input_order": np.arange(1, 101)}, ValueError, "every number from 0 to 99 once"),
        ({"input_order": np.arange(99)}, ValueError, r"shape \(100,\), got \(99,\)"),
        ({"input_order": np.arange(100.0)}, TypeError, "input_order must be integers"),
        ({"group_index": np.zeros(100, int)}, ValueError, "32 inputs in each group"),
        ({"group_index": np.arange(100) // 32 + 1}, ValueError, "from 0 up"),
        ({"group_index": np.arange(100)[::-1] // 32}, None, ""),
        (
            {"group_index": np.arange(100) // 32, "input_order": np.arange(100)},
            ValueError,
            "not both",
        ),
    ],
)
def test_pack_refuses(changes, error, message):
    arguments = {
        "codes": np.zeros((20, 100), np.int8),
        "scales": ONES,
        "scheme": "int4",
        "group_size": 32,
    }
    if error is None:
        nibblas.pack(**{**arguments, **changes})
        return
    with pytest.raises(error, match=message):
        nibblas.pack(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("zero_points", "error", "message"),
    [
        (256, ValueError, "from 0 to 255, got 256"),
        (-1, ValueError, "from 0 to 255, got -1"),
        (ONES.astype(np.float64), TypeError, "must be integers, got float64"),
        (ONES * np.float32(np.nan), ValueError, "zero_points must be finite"),
        (np.ones((20, 3), np.uint8), ValueError, r"\(20, 4\), got \(20, 3\)"),
        (np.arange(200, 280).reshape(20, 4), ValueError, "from 0 to 255, got 200 to 279"),
        (True, TypeError, "got bool"),
        (1.0, TypeError, "got float"),
        (np.zeros((20, 4), bool), TypeError, "must be integers, got bool"),
    ],
)
def test_pack_refuses_zero_points(zero_points, error, message):
    codes = np.zeros((20, 100), np.uint8)
    with pytest.raises(error, match=message):
        nibblas.pack(codes, ONES, zero_points, scheme="uint4", group_size=32)


def k_quant(**changes) -> dict:
    """Arguments of `pack` for a q4_k weight (3, 300)."""
    return {
        "codes": np.zeros((3, 300), np.uint8),
        "scales": np.ones((3, 10), np.uint8),
        "mins": np.ones((3, 10), np.uint8),
        "super_scales": np.ones((3, 2), np.float16),
        "super_mins": np.ones((3, 2), np.float16),
        "scheme": "q4_k",
        "group_size": 32,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, None, ""),
        ({"group_size": "auto"}, None, ""),
        ({"group_size": 16}, ValueError, "group_size of q4_k must be 32, got 16"),
        ({"group_size": None}, ValueError, "group_size of q4_k must be 32, got None"),
        ({"scales": np.ones((3, 10), np.int8)}, TypeError, "scales of q4_k must be uint8"),
        ({"scales": np.ones((3, 9), np.uint8)}, ValueError, r"scales must have shape \(3, 10\)"),
        ({"mins": None}, ValueError, "q4_k needs mins"),
        ({"mins": np.ones((3, 10), np.float16)}, TypeError, "mins of q4_k must be uint8"),
        ({"super_mins": None}, ValueError, "q4_k needs super_mins"),
        ({"super_scales": None}, ValueError, "q4_k needs super_scales"),
        ({"super_scales": np.ones((3, 1), np.float16)}, ValueError, r"\(3, 2\), got \(3, 1\)"),
        ({"super_scales": np.ones((3, 2), np.float32)}, TypeError, "super_scales must be float16"),
        ({"super_mins": np.full((3, 2), np.inf, np.float16)}, ValueError, "must be finite"),
        ({"super_mins": np.full((3, 2), np.inf, np.float16), "allow_non_finite": True}, None, ""),
        ({"zero_points": 3}, ValueError, "zero_points or mins, not both"),
        ({"codes": np.full((3, 300), 16, np.uint8)}, ValueError, "from 0 to 15, got 16"),
        ({"scheme": "q2_k", "group_size": 16}, ValueError, r"scales must have shape \(3, 19\)"),
    ],
)
def test_pack_two_level(changes, error, message):
    arguments = k_quant(**changes)
    if error is None:
        assert nibblas.pack(**arguments).scheme == "q4_k"
        return
    with pytest.raises(error, match=message):
        nibblas.pack(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs one of tensor_scale and tensor_divisor"),
        ({"tensor_scale": 1.0, "tensor_divisor": 1.0}, "needs one of"),
        ({"tensor_divisor": 0.0}, "not 0"),
        ({"tensor_scale": np.inf}, "finite float32"),
        ({"tensor_scale": 0.1}, "finite float32"),
        ({"tensor_scale": 1.0, "codebook": np.zeros(16, np.float32)}, "no codebook"),
    ],
)
def test_pack_nvfp4_refuses(changes, message):
    codes, scales = np.zeros((3, 32), np.uint8), np.zeros((3, 2), np.uint8)
    with pytest.raises(ValueError, match=message):
        nibblas.pack(codes, scales, scheme="nvfp4", group_size=16, **changes)


@pytest.mark.parametrize(
    ("book", "error", "message"),
    [
        (np.zeros(16), TypeError, "codebook must be float32"),
        (np.zeros(15, np.float32), ValueError, r"shape \(16,\), got \(15,\)"),
        (np.full(16, 1.5, np.float32), ValueError, "from -1 to 1"),
        (np.full(16, np.nan, np.float32), ValueError, "from -1 to 1"),
    ],
)
def test_pack_refuses_codebooks(book, error, message):
    codes, scales = np.zeros((3, 64), np.uint8), np.ones((3, 1), np.float32)
    with pytest.raises(error, match=message):
        nibblas.pack(codes, scales, scheme="nf4", group_size=64, codebook=book)


def test_float_zero_points_are_exact(rng):
    codes = make_codes("uint4", rng)
    scales = rng.standard_normal((20, 4)).astype(np.float16)
    zeros = rng.uniform(0, 15, (20, 4)).astype(np.float16)
    w = nibblas.pack(codes, scales, zeros, scheme="uint4", group_size=32)
    assert w.offset == "zero_point"
    assert w.planes["zero_points"].dtype == np.float16
    of_k = np.arange(100) // 32
    exact = (codes - zeros.astype(np.float64)[:, of_k]) * scales.astype(np.float64)[:, of_k]
    assert np.array_equal(w.dequantize(), exact.astype(np.float32))
