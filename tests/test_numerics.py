# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of the products against exact rational arithmetic, and by hand.

`exact_linear` repeats the contract one scalar at a time in rational numbers, rounding where the
contract rounds. The reference must have the same bits. Float64 products check both.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from nibblas import numerics

F32 = np.float32
NF4 = np.array(
    [
        *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
    ],
    F32,
)
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def bits(values: np.ndarray) -> np.ndarray:
    return values.view({2: np.uint16, 4: np.uint32}[values.dtype.itemsize])


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(bits(actual), bits(expected))


# --- the contract in rational numbers


def round32(value: Fraction) -> Fraction:
    """The float32 nearest to `value`, ties to even. Too large is an error: no case here is."""
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(value / unit) * unit  # round() of a Fraction takes ties to even
    assert abs(rounded) < 2**128
    return rounded


def exact(value: float) -> Fraction:
    return Fraction(float(value))


def exact_activations(row, group):
    """codes, and the scale of each group."""
    codes, scales = [], []
    for start in range(0, len(row), group):
        part = [exact(v) for v in row[start : start + group]]
        amax = max(abs(v) for v in part)
        overflows = amax * (2**128 - 2**103) <= 127  # from there on 127 / amax rounds to infinity
        r = None if overflows else round32(127 / amax)
        scales.append(round32(amax / 127) if r else Fraction(0))
        codes += [round(round32(v * r)) if r else 0 for v in part]
    return codes, scales


def exact_linear(x, parts, compute):
    codes, depth = parts["codes"].astype(int), parts["codes"].shape[1]
    group = parts["group_size"] or depth
    table = parts.get("codebook")
    two = parts.get("super_scales") is not None
    y = np.zeros((len(x), len(codes)), F32)

    def scale(name, n, g):
        array = parts.get(name)
        if array is None:
            return None
        e8m0 = array.dtype == np.uint8 and not two
        return Fraction(2) ** (int(array[n, g]) - 128) if e8m0 else exact(array[n, g])

    for (m, row), n in itertools.product(enumerate(x), range(len(codes))):
        acc = Fraction(0)
        xq, a = exact_activations(row, 256 if two else group)
        if table is not None and table.dtype == F32:
            a = [round32(v / 127) for v in a]
        large, large_min = Fraction(0), Fraction(0)
        for g, start in enumerate(range(0, depth, group)):
            ks = range(start, min(start + group, depth))
            points = parts.get("zero_points")
            zero = parts.get("zero", 0) if points is None else int(points[n, g])
            value = {k: exact(codes[n, k] if table is None else table[codes[n, k]]) for k in ks}
            s, mn = scale("scales", n, g), scale("mins", n, g)
            block = start // 256
            if compute == "float32":
                if two:
                    s *= scale("super_scales", n, block)
                    mn = None if mn is None else mn * scale("super_mins", n, block)
                p = q = Fraction(0)
                for k in ks:
                    p = round32(exact(row[k]) * (value[k] - zero) + p)
                    q = round32(q + exact(row[k]))
                acc = round32(p * s + acc)
                if mn is not None:
                    acc = round32(q * mn + acc)
                continue
            if table is not None and table.dtype == F32:
                value = {k: Fraction(round(round32(127 * v))) for k, v in value.items()}
            c = sum(xq[k] * (value[k] - zero) for k in ks)
            total = sum(xq[k] for k in ks)
            if not two:
                acc = round32(round32(c) * round32(a[g] * s) + acc)
                if mn is not None:
                    acc = round32(round32(a[g] * total) * mn + acc)
                continue
            large += s * c
            large_min += 0 if mn is None else mn * total
            if start + group >= min(256 * (block + 1), depth):
                t = round32(a[block] * scale("super_scales", n, block))
                acc = round32(round32(large) * t + acc)
                if mn is not None:
                    u = round32(a[block] * round32(large_min))
                    acc = round32(u * scale("super_mins", n, block) + acc)
                large, large_min = Fraction(0), Fraction(0)
        y[m, n] = float(acc)
    return y


def random_parts(rng, kind, cols, depth, group):
    """A weight of that kind, with scales of both signs over many binades."""
    groups, supers = -(-depth // (group or depth)), -(-depth // 256)

    def floats(columns, dtype, low=-9, high=4):
        sign = rng.choice([-1, 1], (cols, columns))
        return (sign * 2.0 ** rng.uniform(low, high, (cols, columns))).astype(dtype)

    top = 256 if "8" in kind else 16
    parts = {
        "codes": rng.integers(0, top, (cols, depth)).astype(np.uint8),
        "scales": floats(groups, np.float16 if group else F32),
        "group_size": group,
    }
    if kind in ("int4", "int8"):
        parts["zero"] = top // 2
    elif kind.endswith("points"):
        parts["zero_points"] = rng.integers(0, top, (cols, groups)).astype(np.uint8)
    elif kind.endswith("mins"):
        parts["mins"] = floats(groups, F32)
    elif kind == "nf4":
        parts["codebook"] = NF4
    elif kind in ("iq4_nl", "iq4_xs"):
        parts["codebook"] = IQ4
    elif kind == "e8m0":
        parts["zero"] = 3
        parts["scales"] = rng.integers(0, 140, (cols, groups)).astype(np.uint8)
    if kind in ("q4_k", "iq4_xs"):
        parts["super_scales"] = floats(supers, np.float16)
        parts["scales"] = rng.integers(0, 256, (cols, groups)).astype(np.uint8)
        if kind == "q4_k":
            parts["super_mins"] = floats(supers, np.float16)
            parts["mins"] = rng.integers(0, 256, (cols, groups)).astype(np.uint8)
        else:
            parts["scales"] = parts["scales"].view(np.int8)
    return parts


CASES = [
    *[("int4", 40, 16), ("int8", 37, None), ("uint4 points", 33, 32), ("uint8 points", 50, 16)],
    *[("uint8 points", 20, None), ("uint4 mins", 40, 16), ("uint8 mins", 21, None)],
    *[("nf4", 40, 16), ("nf4", 30, None), ("iq4_nl", 40, 32), ("e8m0", 70, 32)],
    *[("q4_k", 300, 32), ("q4_k", 256, 16), ("iq4_xs", 270, 32)],
]


@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize(("kind", "depth", "group"), CASES)
def test_linear_is_the_contract_in_rational_numbers(kind, depth, group, compute, rng):
    for spread in (0, 8, 40):  # with 40 binades of x, terms cancel, vanish and underflow
        parts = random_parts(rng, kind, 3, depth, group)
        x = rng.standard_normal((3, depth)) * 2.0 ** rng.uniform(-spread, 0, (3, depth))
        x[1] *= 2.0**-110  # a * s is subnormal for many scales, r still finite
        x = x.astype(F32)
        x[2, :16] = 0
        y = numerics.linear(x, parts, compute=compute)
        assert_same_bits(y, exact_linear(x, parts, compute))


@pytest.mark.parametrize(("kind", "depth", "group"), CASES)
def test_linear_is_near_float64(kind, depth, group, rng):
    depth *= 7
    parts = random_parts(rng, kind, 35, depth, group)
    x = rng.standard_normal((18, depth)).astype(F32)
    groups = -(-depth // (group or depth))
    bare = parts | {"mins": None, "super_mins": None}
    size = np.abs(numerics.dequantize(bare).astype(float))  # |w| without the mins
    size += np.abs(numerics.dequantize(parts).astype(float)) * 2  # and |min| <= |w| + |w - min|
    y64 = x.astype(float) @ numerics.dequantize(parts).astype(float).T
    # A term sees at most this many roundings: of the dense weight (1), those of p (a group), of q
    # (a group), and two per group of acc; 1.01 for the higher orders.
    roundings = 1 + (group or depth) + 2 * groups
    bound = 1.01 * roundings * 2.0**-24 * (np.abs(x.astype(float)) @ size.T)
    assert (np.abs(numerics.linear(x, parts, compute="float32") - y64) <= bound).all()

    # Under int8 each x is off by half a step, or a little more because r and x * r are rounded, and
    # a float codebook by half a step of 1/127.
    _, a = numerics.quantize_activations(x, 256 if "super_scales" in parts else group)
    step = np.repeat(a, 256 if "super_scales" in parts else group or depth, axis=1)[:, :depth]
    off = 0.501 * step.astype(float) @ size.T
    if kind == "nf4":
        s = np.abs(parts["scales"].astype(float)).repeat(group or depth, axis=1)[:, :depth]
        off += (np.abs(x) + step).astype(float) @ s.T * (0.501 / 127)
    assert (np.abs(numerics.linear(x, parts, compute="int8") - y64) <= off + bound).all()


def test_activation_codes_of_exact_and_near_ties(rng):
    """Halves of a step, and the floats around them: x * r is rounded, then to an integer."""
    quotients_differ = False
    for _ in range(20):
        amax = F32(rng.uniform(1, 2))
        halves = (rng.integers(-127, 127, 30) + 0.5).astype(F32) * (amax / F32(127))
        x = np.concatenate([halves, np.nextafter(halves, F32(9)), np.nextafter(halves, F32(-9))])
        x = np.append(x, amax)
        codes, a = numerics.quantize_activations(x)
        expected, scales = exact_activations(x, len(x))
        assert codes.tolist() == expected
        assert a.tolist() == [float(scales[0])]
        quotients_differ |= bool((codes != np.rint(x / a[0])).any())
    assert quotients_differ  # so a division by a would be seen


# --- by hand


def channel(codes, scale=1.0, **more):
    """One output, per channel."""
    parts = {"codes": np.array([codes], np.uint8), "group_size": None}
    return parts | {"scales": np.array([[scale]], F32)} | more


def test_float32_compute_is_fused_and_in_order():
    big, one = F32(1 + 2**-23), F32(1)
    # 3 big = 3 + 1.5 ulp is a tie: rounded first it would leave 2^-21 of 3 big - 3 = 3 * 2^-23.
    first = numerics.linear(np.array([[one, big]]), channel([5, 11], zero=8), compute="float32")
    assert first == F32(3 * 2**-23)
    second = numerics.linear(np.array([[big, one]]), channel([11, 5], zero=8), compute="float32")
    assert second == F32(2**-21)


def test_no_output_is_negative_zero():
    zero = np.zeros((1, 1), np.uint32)
    one = np.array([[1]], F32)
    for compute in ("int8", "float32"):
        for scale, sign in itertools.product((0.0, -0.0), (1, -1)):
            y = numerics.linear(sign * one, channel([3], scale), compute=compute)
            assert (bits(y) == zero).all()
    tiny = -np.array([[2.0**-149]], F32)  # p = -2^-149, p * s underflows to -0
    y = numerics.linear(tiny, channel([1], 2.0**-10), compute="float32")
    assert (bits(y) == zero).all()
    y = numerics.linear(tiny, channel([1], 2.0**-10), np.array([-0.0], F32), compute="float32")
    assert (bits(y) == zero).all()


def test_dequantize_keeps_the_sign_of_zero():
    dense = numerics.dequantize(channel([8, 9], -0.5, zero=8))
    assert_same_bits(dense, np.array([[-0.0, -0.5]], F32))
    with_min = numerics.dequantize(channel([0, 3], -1.0, mins=np.array([[0.25]], F32)))
    assert_same_bits(with_min, np.array([[0.25, -2.75]], F32))


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_input_order_is_that_of_groups_and_sums(compute, rng):
    """Sorted inputs with sorted columns are the packed weight; columns stay with their inputs."""
    packed = random_parts(rng, "uint4 points", 5, 40, 16)
    order = rng.permutation(40).astype(np.int32)
    given = packed | {"codes": np.empty_like(packed["codes"]), "input_order": order}
    given["codes"][:, order] = packed["codes"]
    x = rng.standard_normal((3, 40)).astype(F32)
    y = numerics.linear(x, given, compute=compute)
    assert_same_bits(y, numerics.linear(x[:, order], packed, compute=compute))
    dense = numerics.dequantize(given)
    assert_same_bits(dense[:, order], numerics.dequantize(packed))
    for wrong in (order[:-1], np.zeros(40, np.int32)):
        with pytest.raises(ValueError, match="once"):
            numerics.linear(x, packed | {"input_order": wrong})


def test_signed_codes_are_the_integers(rng):
    parts = random_parts(rng, "int8", 5, 40, 16)
    signed = parts | {"codes": (parts["codes"] ^ 128).view(np.int8), "zero": 0}
    x = rng.standard_normal((3, 40)).astype(F32)
    for compute in ("int8", "float32"):
        y = numerics.linear(x, parts, compute=compute)
        assert_same_bits(y, numerics.linear(x, signed, compute=compute))


def test_dequantize_fuses_the_min():
    # 3 s = 3 + 1.5 ulp as above: rounded before the addition, 2^-21 would be left.
    parts = channel([3], 1 + 2**-23, mins=np.array([[-3]], F32))
    assert numerics.dequantize(parts) == F32(3 * 2**-23)


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_nan_stays_in_its_row_and_is_canonical(compute, rng):
    parts = random_parts(rng, "int4", 20, 48, 16)
    x = rng.standard_normal((4, 48)).astype(F32)
    clean = numerics.linear(x, parts, compute=compute)
    x.view(np.uint32)[1, 40] = 0xFFA00001  # a negative, signaling NaN
    x[3, 2] = -np.inf
    for dtype, nan in (("float32", 0x7FC00000), ("float16", 0x7E00), ("bfloat16", 0x7FC0)):
        y = numerics.linear(x, parts, compute=compute, dtype=dtype)
        assert (bits(y)[1] == nan).all()
        if compute == "int8":
            assert (bits(y)[3] == nan).all()
        rest = numerics.linear(x[[0, 2]], parts, compute=compute, dtype=dtype)
        np.testing.assert_array_equal(bits(y)[[0, 2]], bits(rest))
    y = numerics.linear(x, parts, compute=compute)
    assert_same_bits(y[[0, 2]], clean[[0, 2]])
    if compute == "float32":  # -inf times (code - 8) times s
        w = numerics.dequantize(parts)[:, 2]
        expected = np.where(w > 0, -np.inf, np.inf)
        np.testing.assert_array_equal(y[3], np.where(w == 0, np.nan, expected))


@pytest.mark.parametrize("depth", [65_536, 65_537, 70_001, 100_001])
def test_per_channel_segments_are_combined_one_by_one(depth):
    """Past 66,308 inputs these dot products would leave int32; sooner, their floats would round."""
    s, low, a = exact(F32(0.7)), exact(F32(0.77)), round32(Fraction(1, 127))

    def combined(segment):
        acc = Fraction(0)
        for start in range(0, depth, segment):
            count = min(segment, depth - start)
            acc = round32(round32(Fraction(127 * 255 * count)) * round32(a * s) + acc)
            acc = round32(round32(a * 127 * count) * low + acc)
        return float(acc)

    parts = channel(np.full(depth, 255), 0.7, mins=np.array([[0.77]], F32))
    y = numerics.linear(np.ones((1, depth), F32), parts)
    assert y[0, 0] == combined(65_536)
    assert combined(65_536) != combined(32_768)  # so other segments would be seen
    assert (combined(65_536) == combined(depth)) == (depth == 65_536)


@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize("kind", ["int4", "uint4 points", "uint4 mins", "nf4"])
def test_padding_is_neutral(kind, compute, rng):
    parts = random_parts(rng, kind, 5, 40, 16)
    x = rng.standard_normal((3, 40)).astype(F32) * F32(2.0**-120)
    padded = parts | {"codes": np.pad(parts["codes"], ((0, 0), (0, 24)))}
    for name in ("scales", "zero_points", "mins"):
        if name in parts:
            padded[name] = np.pad(parts[name], ((0, 0), (0, 1)))
    wide = np.pad(x, ((0, 0), (0, 24)))
    y = numerics.linear(x, parts, compute=compute)
    assert_same_bits(y, numerics.linear(wide, padded, compute=compute))
    more = parts | {"scales": padded["scales"]}  # a plane's padding is not looked at
    assert_same_bits(y, numerics.linear(x, more, compute=compute))


def test_group_of_the_whole_row_is_per_channel(rng):
    parts = random_parts(rng, "int4", 5, 32, None)
    x = rng.standard_normal((3, 32)).astype(F32)
    for group in (32, 64, 4096):
        y = numerics.linear(x, parts | {"group_size": group})
        assert_same_bits(y, numerics.linear(x, parts))


def test_epilogue(rng):
    parts = random_parts(rng, "int8", 9, 30, None)
    x, bias = rng.standard_normal((4, 30)).astype(F32), rng.standard_normal(9).astype(F32)
    plain = numerics.linear(x, parts)
    assert_same_bits(numerics.linear(x, parts, bias), plain + bias)
    for name, function in numerics.ACTIVATIONS.items():
        y = numerics.linear(x, parts, bias, activation=name)
        assert_same_bits(y, function(plain + bias))
        assert not np.array_equal(y, plain + bias)


def test_sixteen_bit_floats_go_through_float32(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    parts = random_parts(rng, "int4", 9, 30, 16)
    parts["scales"] = parts["scales"].astype(ml_dtypes.bfloat16)
    as_bits = parts | {"scales": parts["scales"].view(np.uint16)}
    as_float = parts | {"scales": parts["scales"].astype(F32)}
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = rng.standard_normal((4, 30)).astype(dtype)
        y = numerics.linear(x.astype(F32), as_float)
        assert_same_bits(numerics.linear(x, parts), y)
        assert_same_bits(numerics.linear(x, as_bits), y)
        assert_same_bits(numerics.linear(x, parts, dtype=dtype), y.astype(dtype))
    for wrong in (np.float64, np.int8):
        with pytest.raises(TypeError, match="astype"):
            numerics.linear(np.zeros((4, 30), wrong), parts)
