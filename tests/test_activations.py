# SPDX-License-Identifier: Apache-2.0
"""The activations and fma: against exact arithmetic, and every target against the numerics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from scipy import special

import nibblas
from nibblas import _nibblas as native
from nibblas import numerics

NAMES = tuple(numerics.ACTIVATIONS)
SMOOTH = tuple(name for name in NAMES if name != "relu")
SIGN = 0x80000000
SPECIALS = np.array(
    [
        *(0x00000000, 0x00000001, 0x00000002, 0x00000003, 0x007FFFFF),  # 0 and subnormals
        *(0x00800000, 0x00800001, 0x00FFFFFF, 0x01000000, 0x01000001),  # the smallest normals
        *(0x33800000, 0x3F7FFFFF, 0x3F800000, 0x3F800001),  # 2^-24 and around 1
        *(0x412FFFFF, 0x41300000, 0x41300001),  # where gelu_tanh is clamped: 11
        *(0x4167FFFF, 0x41680000, 0x41680001),  # gelu: 14.5
        *(0x42DFFFFF, 0x42E00000, 0x42E00001),  # silu: 112
        *(0x4B7FFFFF, 0x4B800000, 0x7F7FFFFF, 0x7F800000),  # 2^24, the largest, infinity
        *(0x7F800001, 0x7FC00000, 0x7FFFFFFF),  # NaN: signaling, quiet, all ones
    ],
    np.uint32,
)
SPECIALS = np.concatenate([SPECIALS, SPECIALS | np.uint32(SIGN)]).view(np.float32)


def chunks(start: int, stop: int, step: int, size: int = 1 << 16) -> Iterator[np.ndarray]:
    """Floats with the bits start, start + step, ..., in arrays small enough for the cache."""
    for first in range(start, stop, size * step):
        bits = np.arange(first, min(stop, first + size * step), step, np.int64)
        yield bits.astype(np.uint32).view(np.float32)


def oracle(name: str, x: np.ndarray) -> np.ndarray:
    """The activation in float64. Its relative error is below 1e-13, which is 2e-6 ulp of float32.

    In the forms here nothing cancels: erfc and exp give tails to full precision, and what is left
    is the rounding of their arguments, 120 * 2**-53 at most.
    """
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "relu":
            return np.where(x < 0, 0.0, x)
        if name == "gelu":
            return 0.5 * x * special.erfc(-x * math.sqrt(0.5))
        inner = math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x) if name == "gelu_tanh" else x
        return x / (1 + np.exp(-inner))


def ulp_errors(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|y - exact| in ulps of exact rounded to float32; subnormals have an ulp of 2**-149."""
    _, exponent = np.frexp(exact.astype(np.float32))
    return np.abs(y.astype(np.float64) - exact) * np.ldexp(1.0, np.minimum(24 - exponent, 149))


def assert_faithful(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """Finite x: less than one ulp from the exact value, and of the sign of x."""
    errors = ulp_errors(y, oracle(name, x))
    bad = ~(errors < 1)
    if bad.any():
        i = int(np.argmax(bad))
        pytest.fail(f"{name}({x[i]!r}) = {y[i]!r} is off by {errors[i]} ulp")
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    """Bit equality, except that any NaN equals any NaN."""
    assert actual.dtype == expected.dtype == np.float32
    same = (actual.view(np.uint32) == expected.view(np.uint32)) | (
        np.isnan(actual) & np.isnan(expected)
    )
    if not same.all():
        i = int(np.argmin(same))
        pytest.fail(f"x = {x[i]!r}: {actual[i]!r} is not {expected[i]!r}")


# Values to 20 digits from 60-digit arithmetic.
@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("gelu", -13, -7.952313719414843587e-38),
        ("gelu", -5.5, -1.0444259356238245661e-7),
        ("gelu", -0.75, -0.1699705142826511495),
        ("gelu", 2, 1.9544997361036415856),
        ("gelu_tanh", -10, -1.2040923482098059937e-37),
        ("gelu_tanh", -4.25, -0.000020142035844940148914),
        ("gelu_tanh", -0.75, -0.17003944483437969582),
        ("gelu_tanh", 2, 1.9545976940877750188),
        ("silu", -100, -3.720075976020835963e-42),
        ("silu", -20.5, -2.5628133728889139052e-8),
        ("silu", -0.75, -0.24061597561845527013),
        ("silu", 2, 1.7615941559557648881),
    ],
)
def test_oracle(name, x, value):
    assert oracle(name, np.float32([x]))[0] == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name):
    activation = numerics.ACTIVATIONS[name]
    zero = np.float32(0)
    minus = zero if name == "relu" else -zero
    x = np.float32([np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38])
    assert_same_bits(activation(x), np.float32([np.inf, minus, zero, -zero, 3e38, minus]), x)
    assert np.isnan(activation(SPECIALS[np.isnan(SPECIALS)])).all()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types(name):
    activation = numerics.ACTIVATIONS[name]
    x = np.linspace(-9, 9, 24, dtype=np.float32).reshape(2, 3, 4)
    y = activation(x.transpose(2, 0, 1))
    np.testing.assert_array_equal(y, activation(x).transpose(2, 0, 1))
    assert activation(x[:0]).shape == (0, 3, 4)
    assert activation(x[0, 0, 0]) == activation(x)[0, 0, 0]
    with pytest.raises(TypeError, match="float64"):
        activation(x.astype(np.float64))


@pytest.mark.parametrize("name", SMOOTH)
def test_numerics_are_faithful(name):
    finite = SPECIALS[np.isfinite(SPECIALS)]
    assert_faithful(name, finite, numerics.ACTIVATIONS[name](finite))
    for x in itertools.chain(
        chunks(0, 0x7F800000, 5003),
        chunks(SIGN, SIGN + 0x7F800000, 5003),
        # the negative tails down to subnormal results: -16 .. -2^-4 and silu's -112 .. -80
        chunks(SIGN + 0x3D800000, SIGN + 0x41800000, 211),
        chunks(SIGN + 0x42A00000, SIGN + 0x42E00000, 211),
    ):
        assert_faithful(name, x, numerics.ACTIVATIONS[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_targets_agree(name, target):
    for x in itertools.chain([SPECIALS], chunks(0, 1 << 32, 4001)):
        assert_same_bits(native.activate(x, name), numerics.ACTIVATIONS[name](x), x)


@pytest.mark.parametrize("name", NAMES)
def test_lane_and_length_do_not_matter(name, target):
    x = np.linspace(-20, 9, 53, dtype=np.float32)
    whole = native.activate(x, name)
    for n in range(len(x)):
        assert_same_bits(native.activate(x[:n], name), whole[:n], x[:n])
        assert_same_bits(native.activate(x[n:], name), whole[n:], x[n:])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_every_float_that_matters(name):
    """All floats from 2^-8 to 16 (silu: 128) in magnitude, a stride of the others.

    Below 2^-8 a function is x/2 + O(x^2) and above the limit x or -0.
    """
    small, large = 0x3B800000, 0x43000000 if name == "silu" else 0x41800000
    for sign in (0, SIGN):
        for x in itertools.chain(
            chunks(sign, sign + small, 101),
            chunks(sign + small, sign + large, 1),
            chunks(sign + large, sign + 0x7F800000, 101),
        ):
            assert_faithful(name, x, native.activate(x, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_targets_agree_densely(name):
    best, *others = nibblas.available_targets()
    for x in chunks(0, 1 << 32, 31):
        with nibblas.use_target(best):
            expected = native.activate(x, name)
        for other in others:
            with nibblas.use_target(other):
                assert_same_bits(native.activate(x, name), expected, x)


# fma


def rounded(value: Fraction) -> float:
    """A nonzero rational rounded to float32, to even at ties."""
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1  # now 2^exponent <= magnitude < 2^(exponent + 1)
    ulp = Fraction(2) ** max(exponent - 23, -149)
    result = round(magnitude / ulp) * ulp
    return math.copysign(math.inf if result >= 2**128 else float(result), value)


def exact_fma(a: float, b: float, c: float) -> float:
    """IEEE 754 fusedMultiplyAdd of three float32 values."""
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c  # float64 keeps infinities and NaN, and no finite product overflows it
    value = Fraction(a) * Fraction(b) + Fraction(c)
    return rounded(value) if value else a * b + c  # the signs of zero: float64 has them right


def assert_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    actual = numerics.fma(a, b, c)
    expected = [exact_fma(*case) for case in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert_same_bits(actual, np.array(expected, np.float32), np.stack([a, b, c], 1))


def any_floats(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 1 << 32, n, np.uint32).view(np.float32)


def near_ones(rng: np.random.Generator, n: int, bits: int = 23) -> np.ndarray:
    """+-(1 + k 2^-23) with a small k of either sign."""
    k = rng.integers(-(1 << bits // 2), 1 << bits // 2, n)
    return (rng.choice([-1.0, 1.0], n) * (1 + k * 2.0**-23)).astype(np.float32)


@pytest.fixture
def false_ties(rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c between 1 and 2, or minus that, plus almost half its ulp.

    The product is (1 - k^2 2^-46) 2^-24: what it lacks of half an ulp is below 2^-53, so that the
    sum in float64 is a tie.
    """
    n = 20_000
    k = rng.integers(1, 300, n) * 2.0**-23
    a = (1 + k).astype(np.float32)
    b = ((1 - k) * 2.0**-24 * rng.choice([-1, 1], n)).astype(np.float32)
    c = (1 + rng.integers(0, 1 << 23, n) * 2.0**-23) * rng.choice([-1, 1], n)
    return a, b, c.astype(np.float32)


def test_fma_at_false_ties(false_ties):
    a, b, c = false_ties
    assert_fma(a, b, c)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    wrong = np.count_nonzero(twice != numerics.fma(a, b, c))
    assert wrong > len(a) // 4, "these cases do not show what rounding twice does"


def test_fma_at_false_ties_of_subnormals(false_ties):
    a, b, c = false_ties
    for shift in (-126, -127, -130, -140):
        scale = np.float32(2.0**-100)
        small = (c.astype(np.float64) * 2.0**shift).astype(np.float32)  # an ulp of 2^-149
        half_ulp = np.float32(2.0 ** (-150 + 100 + 24))
        assert_fma(a * half_ulp, b * scale, small)


def test_fma_with_cancellation(rng):
    n = 20_000
    a, b = near_ones(rng, n), near_ones(rng, n)
    exponents = rng.integers(-80, 60, n)
    a = np.ldexp(a, exponents).astype(np.float32)
    product = a * b
    step = rng.integers(-2, 3, n).astype(np.int32)
    c = -(product.view(np.int32) + step).view(np.float32)
    assert_fma(a, b, c)


def test_fma_near_overflow(rng):
    n = 10_000
    largest = np.finfo(np.float32).max
    a = near_ones(rng, n) * np.float32(2.0**64)
    b = near_ones(rng, n) * np.float32(2.0**63)
    c = (1 - rng.integers(0, 1 << 12, n) * 2.0**-24) * rng.choice([-1, 1], n)
    assert_fma(a, b, (c * 2.0**127).astype(np.float32))
    assert_fma(a, b * np.float32(2), (c * 2.0**104).astype(np.float32))
    assert_fma(a, b * np.float32(2.0**-23), (c * float(largest)).astype(np.float32))
    # the largest float plus exactly half an ulp is a tie that rounds to infinity; less does not
    half = np.float32(2.0**51)
    less = np.nextafter(half, np.float32(0))
    assert numerics.fma(np.float32(2.0**52), half, largest) == np.inf
    assert numerics.fma(np.float32(2.0**52), less, largest) == largest


def test_fma_of_any_bits(rng):
    assert_fma(*(any_floats(rng, 30_000) for _ in range(3)))


def test_fma_of_special_values():
    values = np.float32([0, 1, 2, 3, 2**-149, 2**-126, 3e38, np.inf, np.nan])
    cases = np.array(list(itertools.product([*values, *-values], repeat=3)), np.float32)
    assert_fma(*cases.T)


def test_fma_operands():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = numerics.fma(x, 2, x[0])
    assert y.shape == (2, 3)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x * 2 + x[0])
    with pytest.raises(TypeError, match="b must be float32, not float64"):
        numerics.fma(x, np.float64(2), x)
