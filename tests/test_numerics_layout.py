# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference: planes, small floats, activation codes and integer products."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nibblas import numerics

F32 = np.float32


def test_reference_needs_numpy_only():
    """Imported without the package around it, in a Python that has no other one to offer."""
    package = Path(numerics.__file__).parents[1]
    code = (
        "import sys, types, numpy\n"
        "before = set(sys.modules)\n"
        "parent = sys.modules['nibblas'] = types.ModuleType('nibblas')\n"
        f"parent.__path__ = [{str(package)!r}]\n"
        "import nibblas.numerics\n"
        "print(*(set(sys.modules) - before))"
    )
    run = [sys.executable, "-c", code]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert "nibblas.numerics.products" in loaded
    others = {name.split(".")[0] for name in loaded if not name.startswith("nibblas.numerics")}
    assert others - sys.stdlib_module_names <= {"nibblas", "numpy"}
    assert "nibblas._nibblas" not in loaded


# --- planes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("cols", "depth", "group"), [(1, 1, None), (18, 70, 32), (16, 130, 128)])
def test_planes_are_the_written_formula(bits, cols, depth, group, rng):
    codes = rng.integers(0, 1 << bits, (cols, depth)).astype(np.uint8)
    planes = numerics.pack_planes(codes, bits, group)
    widths = numerics.slice_widths(bits)
    assert sum(widths) == bits
    assert len(planes) == len(widths)
    kp = {(1, None): 64, (70, 32): 128, (130, 128): 256}[depth, group]
    assert kp == numerics.padded_depth(depth, group)
    low = 0
    for b, plane in zip(widths, planes, strict=True):
        expected = np.zeros((-(-cols // 16), kp * b // 32, 16, 4), np.uint8)
        for p, j, c, i in np.ndindex(expected.shape):
            for t in range(8 // b):
                n, k = 16 * p + c, (8 // b) * 4 * j + 4 * t + i
                if n < cols and k < depth:
                    part = (int(codes[n, k]) >> low) & ((1 << b) - 1)
                    expected[p, j, c, i] |= part << (b * t)
        np.testing.assert_array_equal(plane, expected)
        assert plane.flags.c_contiguous
        low += b
    np.testing.assert_array_equal(numerics.unpack_planes(planes, bits, codes.shape), codes)


def test_slices_are_those_of_the_format():
    slices = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
    assert {b: numerics.slice_widths(b) for b in range(1, 9)} == slices
    for wrong in (0, 9):
        with pytest.raises(ValueError, match="1 to 8"):
            numerics.slice_widths(wrong)


def test_four_bit_nibbles_and_eight_bit_rows():
    codes = np.zeros((17, 64), np.uint8)
    codes[16, 8 * 3 + 4 + 2] = 13
    codes[16, 8 * 3 + 2] = 5
    assert numerics.pack_planes(codes, 4, None)[0][1, 3, 0, 2] == 13 * 16 + 5
    codes[3, 4 * 5 + 1] = 200
    assert numerics.pack_planes(codes, 8, None)[0][0, 5, 3, 1] == 200


@pytest.mark.parametrize(
    ("depth", "group", "two_level", "kp"),
    [
        *[(0, None, False, 0), (1, None, False, 64), (64, None, False, 64)],
        *[(65, 16, False, 128), (129, 128, False, 256), (128, 128, False, 128)],
        *[(100, 4096, False, 128), (5000, 4096, False, 8192), (1, 32, True, 256)],
    ],
)
def test_padded_depth(depth, group, two_level, kp):
    assert numerics.padded_depth(depth, group, two_level=two_level) == kp


def test_group_sizes():
    for group, depth in ((16, 17), (4096, 4097)):
        assert numerics.normalize_group_size(depth, group) == group
        assert numerics.group_count(depth, group) == 2
    for group, depth in ((None, 32), (32, 32), (100, 32), (16, 0)):
        assert numerics.normalize_group_size(depth, group) is None
        assert numerics.group_count(depth, group) == 1
    for group, depth in ((24, 32), (8, 32), (8192, 10_000), (0, 32), (-16, 32), (0, 0)):
        with pytest.raises(ValueError, match="power of two"):
            numerics.normalize_group_size(depth, group)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="below 16, one is 16"):
        numerics.pack_planes(np.full((1, 4), 16, np.uint8), 4, None)
    with pytest.raises(TypeError, match="uint8"):
        numerics.pack_planes(np.zeros((1, 4), np.int8), 4, None)
    plane = numerics.pack_planes(np.zeros((17, 64), np.uint8), 4, None)
    for shape in ((33, 64), (16, 64), (17, 65)):
        with pytest.raises(ValueError, match="cannot hold"):
            numerics.unpack_planes(plane, 4, shape)


@pytest.mark.parametrize("dtype", [np.float16, F32, np.uint16, np.uint8])
def test_groups_of_a_plane(dtype, rng):
    values = rng.integers(1, 200, (19, 3)).astype(dtype)
    plane = numerics.pack_groups(values, 2, 4)
    assert plane.dtype == dtype
    assert plane.shape == (2, 4, 16)
    for p, g, c in np.ndindex(plane.shape):
        n = 16 * p + c
        assert plane[p, g, c] == (values[n, g] if n < 19 and g < 3 else 0)
    np.testing.assert_array_equal(numerics.unpack_groups(plane, (19, 3)), values)
    assert numerics.pack_groups(values, 2).shape == (2, 3, 16)
    with pytest.raises(ValueError, match="do not fit"):
        numerics.pack_groups(values, 1)


# --- small floats


def test_e8m0():
    e = np.arange(256, dtype=np.uint8)
    values = numerics.e8m0_to_float32(e)
    np.testing.assert_array_equal(values[:255].astype(float), 2.0 ** (np.arange(255) - 128.0))
    assert [hex(v) for v in values.view(np.uint32)[[0, 1, 2, 255]]] == [
        *("0x200000", "0x400000", "0x800000", "0x7fc00000")
    ]


def half_bits(values: np.ndarray) -> np.ndarray:
    return numerics.float32_to_float16(values).view(np.uint16)


@pytest.mark.parametrize(
    ("encode", "decode", "infinity", "next_power"),
    [
        (half_bits, lambda b: b.view(np.float16).astype(F32), 0x7C00, 2.0**16),
        (numerics.float32_to_bfloat16, numerics.bfloat16_to_float32, 0x7F80, 2.0**128),
    ],
    ids=["float16", "bfloat16"],
)
def test_rounding_to_sixteen_bits(encode, decode, infinity, next_power):
    """At every value, every midpoint, and the float32 on both sides of each."""
    codes = np.arange(infinity + 1, dtype=np.uint16)
    finite = codes[:-1]
    values = decode(finite)
    np.testing.assert_array_equal(encode(values), finite)
    above = np.append(values[1:].astype(float), next_power)
    middle = ((values.astype(float) + above) / 2).astype(F32)  # exact: one bit more
    even = finite + (finite & 1)
    for sign, bit in ((1, 0), (-1, 0x8000)):
        np.testing.assert_array_equal(encode(sign * middle), even | bit)
        below = np.nextafter(middle, F32(0))
        np.testing.assert_array_equal(encode(sign * below), finite | bit)
        beyond = np.nextafter(middle, F32(np.inf))
        np.testing.assert_array_equal(encode(sign * beyond), codes[1:] | bit)
    assert encode(np.array([np.inf, -np.inf], F32)).tolist() == [infinity, infinity | 0x8000]


def test_every_nan_becomes_the_canonical_one():
    nan = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)
    values = nan.view(F32)
    assert (numerics.canonical_nan(values).view(np.uint32) == 0x7FC00000).all()
    assert (half_bits(values) == 0x7E00).all()
    assert (numerics.float32_to_bfloat16(values) == 0x7FC0).all()
    for dtype in (np.float64, np.int32, np.uint16):
        with pytest.raises(TypeError):
            numerics.round_to(values, dtype)


# --- activations


def codes_of(row, group_size=None):
    codes, a = numerics.quantize_activations(np.array([row], F32), group_size)
    assert codes.dtype == np.int8
    assert a.dtype == F32
    return codes[0].tolist(), a[0].tolist()


def test_activation_codes_round_to_even():
    assert codes_of([127, 0.5, 1.5, -2.5, -126.5]) == ([127, 0, 2, -2, -126], [1])
    assert codes_of([-254, 1, 3]) == ([-127, 0, 2], [2])


def test_activations_too_small_for_r_are_zero():
    edge = F32(127 / (2.0**128 - 2.0**103))  # 127 / x rounds to infinity up to about here
    above, below = np.nextafter(edge, F32(1)), np.nextafter(edge, F32(0))
    codes, a = codes_of([above, -above / 2])
    assert codes == [127, -64]
    assert a == [above / F32(127)]
    assert a[0] > 0
    for small in (below, F32(2.0**-149), F32(0)):
        assert codes_of([small, -small]) == ([0, 0], [0])


@pytest.mark.parametrize("bad", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000])
def test_not_finite_activations(bad):
    x = np.ones((3, 40), F32)
    x.view(np.uint32)[1, 20] = bad
    codes, a = numerics.quantize_activations(x, 16)
    expected = np.full((3, 3), F32(1) / F32(127)).view(np.uint32)
    expected[1, 1] = 0x7FC00000
    np.testing.assert_array_equal(a.view(np.uint32), expected)
    wanted = np.full((3, 40), 127)
    wanted[1, 16:32] = 0
    np.testing.assert_array_equal(codes, wanted)


@given(
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=40),
    st.sampled_from([None, 16]),
)
def test_activation_codes_are_the_nearest(row, group_size):
    x = np.array(row, F32)
    codes, a = numerics.quantize_activations(x, group_size)
    group = 16 if group_size and len(row) > 16 else len(row)
    for g, start in enumerate(range(0, len(row), group)):
        part, part_codes = x[start : start + group].astype(float), codes[start : start + group]
        amax = np.abs(part).max()
        if amax < 2.0**-100:
            continue  # below, a is subnormal and so coarse; the tests above look there
        assert np.abs(part_codes.astype(int)).max() == 127
        # r, x * r and a are off by 2^-24 each: 127 * 3 * 2^-24 < 1e-4 steps.
        off = np.abs(part - part_codes * float(a[g]))
        assert (off <= float(a[g]) * 0.5001).all()


def test_leading_dimensions_and_empty_rows(rng):
    x = rng.standard_normal((2, 3, 40)).astype(F32)
    codes, a = numerics.quantize_activations(x, 16)
    assert codes.shape == (2, 3, 40)
    assert a.shape == (2, 3, 3)
    alone = numerics.quantize_activations(x[1, 2], 16)
    np.testing.assert_array_equal(codes[1, 2], alone[0])
    np.testing.assert_array_equal(a[1, 2], alone[1])
    codes, a = numerics.quantize_activations(np.zeros((2, 0), F32))
    assert codes.shape == (2, 0)
    assert a.tolist() == [[0], [0]]


# --- products without rows, outputs or inputs


def test_empty_shapes_give_the_bias():
    parts = {"codes": np.zeros((3, 0), np.uint8), "scales": np.ones((3, 1), F32)}
    parts["group_size"] = None
    bias = np.array([1, -0.0, np.inf], F32)
    for compute in ("int8", "float32"):
        y = numerics.linear(np.zeros((2, 0), F32), parts, bias, compute)
        np.testing.assert_array_equal(y, [[1, 0, np.inf]] * 2)
        assert not np.signbit(y).any()
        for cols, lead in itertools.product((0, 3), ((), (0,), (2, 3), (2, 0, 3))):
            codes, scales = np.ones((cols, 4), np.uint8), np.ones((cols, 1), F32)
            small = {"codes": codes, "scales": scales, "group_size": None}
            y = numerics.linear(np.ones((*lead, 4), F32), small, compute=compute)
            assert y.shape == (*lead, cols)
            np.testing.assert_allclose(y, 4, rtol=2**-22)  # 508 / 127 in three roundings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 39), F32)}, r"40 input features, x has shape \(2, 39\)"),
        ({"bias": np.ones(4, F32)}, r"5 outputs, bias has shape \(4,\)"),
        ({"activation": "tanh"}, "activation must be one of .*not 'tanh'"),
        ({"compute": "int4"}, "compute must be .*not 'int4'"),
        ({"codes": np.ones(40, np.uint8)}, r"codes must have shape \(N, K\), not \(40,\)"),
        ({"scales": np.ones((5, 2), F32)}, r"scales must have shape \(5, 3\), not \(5, 2\)"),
        ({"zero_points": np.ones((4, 3), np.uint8)}, r"zero_points must have shape \(5, 3\)"),
        ({"scales": None}, "needs scales"),
        ({"group_size": 24}, "power of two"),
        ({"codebook": np.ones(8, F32)}, r"codebook must have shape \(16,\)"),
        ({"codebook": np.full(16, np.inf, F32)}, "codebook must be finite"),
        ({"codebook": np.full(16, 1.1, F32), "zero": 0}, r"codebook within \[-1, 1\]"),
        ({"codebook": np.ones(16, F32)}, "no zero point"),
        ({"codebook": np.ones(16, np.int8), "codes": np.full((5, 40), 16, np.uint8)}, "0 to 15"),
        ({"super_scales": np.ones((5, 1), np.float16), "group_size": None}, "divide 256"),
    ],
)
def test_products_that_do_not_fit_are_refused(change, message):
    parts = {"codes": np.ones((5, 40), np.uint8), "scales": np.ones((5, 3), F32), "zero": 8}
    parts["group_size"] = 16
    good = {"x": np.ones((2, 40), F32), "parts": parts}
    assert numerics.linear(**good).shape == (2, 5)
    if change.keys() & {"x", "bias", "activation", "compute"}:
        bad = good | change
    else:
        bad = good | {"parts": parts | change}
    with pytest.raises(ValueError, match=message):
        numerics.linear(**bad)


# --- integer products


def wrapped(value: int) -> int:
    """The int32 that is equal modulo 2**32."""
    return (value + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize(
    ("a_type", "b_type"), list(itertools.product([np.int8, np.uint8], repeat=2))
)
def test_matmul_integer_is_that_of_python(a_type, b_type, rng):
    def draw(dtype, shape):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)

    a, b = draw(a_type, (2, 3, 11)), draw(b_type, (11, 4))
    for za, zb in itertools.product(
        (None, int(draw(a_type, ())), draw(a_type, 3)),
        (None, int(draw(b_type, ())), draw(b_type, 4)),
    ):
        c = numerics.matmul_integer(a, b, za, zb)
        rows = np.broadcast_to(0 if za is None else za, 3).tolist()
        cols = np.broadcast_to(0 if zb is None else zb, 4).tolist()
        for i, m, n in np.ndindex(c.shape):
            exact = sum(
                (x - rows[m]) * (y - cols[n])
                for x, y in zip(a[i, m].tolist(), b[:, n].tolist(), strict=True)
            )
            assert c[i, m, n] == exact
        assert c.dtype == np.int32


@pytest.mark.parametrize("depth", [33_025, 33_026, 70_000, 140_000])
def test_matmul_integer_wraps(depth):
    a, b = np.full((1, depth), 255, np.uint8), np.full((depth, 1), 255, np.uint8)
    assert numerics.matmul_integer(a, b)[0, 0] == wrapped(255 * 255 * depth)
    low = np.full((depth, 1), -128, np.int8)
    assert numerics.matmul_integer(a, low, 0, 127)[0, 0] == wrapped(-255 * 255 * depth)


def test_matmul_integer_refuses(rng):
    a, b = np.zeros((2, 3), np.int8), np.zeros((3, 4), np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(4, 4\)"):
        numerics.matmul_integer(a, np.zeros((4, 4), np.uint8))
    with pytest.raises(TypeError, match="int16"):
        numerics.matmul_integer(a.astype(np.int16), b)
    with pytest.raises(ValueError, match="-128 to 127"):
        numerics.matmul_integer(a, b, 128)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        numerics.matmul_integer(a, b, None, np.zeros(3, np.uint8))
    with pytest.raises(TypeError, match="float"):
        numerics.matmul_integer(a, b, 1.0)
