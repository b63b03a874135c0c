# SPDX-License-Identifier: Apache-2.0
"""The activations, operation by operation as `csrc/kernels/activation.h` does them.

They use only + - * / and fma in float32, comparisons, and the bits of the exponent, so that NumPy,
and every kernel on every CPU, give the same bits. The header explains the construction; what each
polynomial approximates is repeated here. docs/activations.md has the measured errors (all below
1 ulp) and how they are tested.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .fma import fma


def _f32(value: float) -> np.ndarray:
    return np.array(value, np.float32)


_ZERO, _ONE = _f32(0), _f32(1)


class _Pair(NamedTuple):
    """The unevaluated sum hi + lo of two float32 arrays, lo being within an ulp of hi."""

    hi: np.ndarray
    lo: np.ndarray


class _Exponential(NamedTuple):
    """mantissa * 2**exponent, the mantissa between about sqrt(1/2) and sqrt(2)."""

    mantissa: _Pair
    exponent: np.ndarray


def relu(x: np.ndarray) -> np.ndarray:
    """Return ``0 where x < 0, else x``; so -0 and NaN pass.

    Parameters
    ----------
    x : float32 ndarray

    Returns
    -------
    float32 ndarray of the same shape
    """
    x = _checked(x)
    return np.where(x < _ZERO, _ZERO, x)


def gelu(x: np.ndarray) -> np.ndarray:
    """Return ``x * (1 + erf(x / sqrt(2))) / 2`` with an error below 1 ulp.

    The error holds for every float32, subnormal results included. ``gelu(inf)`` is inf,
    ``gelu(-inf)`` is -0, every result has the sign of x, NaN gives NaN.

    Parameters
    ----------
    x : float32 ndarray

    Returns
    -------
    float32 ndarray of the same shape

    Examples
    --------
    >>> gelu(np.array([1, -13, -np.inf], np.float32))
    array([ 8.413447e-01, -7.952314e-38, -0.000000e+00], dtype=float32)
    """
    x = _checked(x)
    with np.errstate(all="ignore"):
        t = _clamped_magnitude(x, 14.5)  # the tail is 0 from 14.36
        e = _exp(_exact_product(_f32(-0.5) * t, t))

        # P(u) = (t + b) erfcx(t / sqrt 2) / 2, b = 633/512, u = (t - 4) / (t + 4), t in [0, 14.5]:
        # relative error 2^-29.1.
        u = (t - _f32(4)) / (t + _f32(4))
        q = _horner(
            u,
            *(-7.05423881e-5, -7.51337648e-5, 0.000651728478, -0.000149086307, -0.00488467747),
            *(0.015932126, -0.024903167, 0.0116536487, 0.0433939323, -0.136973247),
        )
        c0 = _f32(0.494365096)
        p_hi = fma(q, u, c0)
        p = _Pair(p_hi, fma(q, u, c0 - p_hi))

        numerator = _product(_scaled(e.mantissa, _enlarged(t)), p)
        denominator = _exact_sum(t, _f32(1.236328125))
        return _without_tail(x, _reduced(_quotient(numerator, denominator), e.exponent))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return ``x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))) / 2``, error below 1 ulp.

    Special values are as for :func:`gelu`.

    Parameters
    ----------
    x : float32 ndarray

    Returns
    -------
    float32 ndarray of the same shape

    Examples
    --------
    >>> gelu_tanh(np.array([1, -10, -np.inf], np.float32))
    array([ 8.4119201e-01, -1.2040924e-37, -0.0000000e+00], dtype=float32)
    """
    x = _checked(x)
    with np.errstate(all="ignore"):
        t = _clamped_magnitude(x, 11)  # the tail is 0 from 10.78
        # s = -t (c1 + c3 t^2), c1 = 2 sqrt(2/pi), c3 = 0.044715 c1, both as two floats
        c1 = _Pair(_f32(1.59576917), _f32(-4.53406805e-8))
        c3 = _Pair(_f32(0.0713548139), _f32(2.39883247e-9))
        cubic = _product(c3, _exact_product(t, t))
        slope = _exact_sum(c1.hi, cubic.hi)
        slope = _Pair(slope.hi, slope.lo + (c1.lo + cubic.lo))
        return _without_tail(x, _logistic_tail(t, _scaled(slope, -t)))


def silu(x: np.ndarray) -> np.ndarray:
    """Return ``x / (1 + exp(-x))`` with an error below 1 ulp.

    Special values are as for :func:`gelu`.

    Parameters
    ----------
    x : float32 ndarray

    Returns
    -------
    float32 ndarray of the same shape

    Examples
    --------
    >>> silu(np.array([1, -100, -np.inf], np.float32))
    array([ 7.310586e-01, -3.720447e-42, -0.000000e+00], dtype=float32)
    """
    x = _checked(x)
    with np.errstate(all="ignore"):
        t = _clamped_magnitude(x, 112)  # the tail is 0 from 108.7
        return _without_tail(x, _logistic_tail(t, _Pair(-t, np.zeros_like(t))))


def _checked(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype != np.float32:
        raise TypeError(f"x must be float32, not {x.dtype}: use astype(np.float32)")
    return x


def _horner(x: np.ndarray, highest: float, *others: float) -> np.ndarray:
    """The polynomial with these coefficients, the one of the highest power first."""
    q = _f32(highest)
    for coefficient in others:
        q = fma(q, x, _f32(coefficient))
    return q


def _ordered_sum(a: np.ndarray, b: np.ndarray) -> _Pair:
    """a + b exactly, if |a| >= |b| (Dekker)."""
    hi = a + b
    return _Pair(hi, (a - hi) + b)


def _exact_sum(a: np.ndarray, b: np.ndarray) -> _Pair:
    """a + b exactly (Knuth)."""
    hi = a + b
    b_in_hi = hi - a
    a_in_hi = hi - b_in_hi
    return _Pair(hi, (a - a_in_hi) + (b - b_in_hi))


def _exact_product(a: np.ndarray, b: np.ndarray) -> _Pair:
    """a * b exactly, as long as the low part does not underflow."""
    hi = a * b
    return _Pair(hi, fma(a, b, -hi))


def _scaled(a: _Pair, b: np.ndarray) -> _Pair:
    """The pair a times the number b, relative error about 2^-47."""
    p = _exact_product(a.hi, b)
    return _Pair(p.hi, fma(a.lo, b, p.lo))


def _product(a: _Pair, b: _Pair) -> _Pair:
    p = _scaled(a, b.hi)
    return _Pair(p.hi, fma(a.hi, b.lo, p.lo))


def _quotient(a: _Pair, b: _Pair) -> np.ndarray:
    """a / b rounded to one float, 0.5 ulp: a first quotient, then what it leaves of a."""
    reciprocal = _ONE / b.hi
    q = a.hi * reciprocal
    rest = fma(-q, b.hi, a.hi) + a.lo
    return fma(fma(-q, b.lo, rest), reciprocal, q)


def _power_of_two(n: np.ndarray) -> np.ndarray:
    """2**n for -126 <= n <= 127."""
    return ((n + np.int32(127)) << np.int32(23)).view(np.float32)


def _enlarged(t: np.ndarray) -> np.ndarray:
    """2**64 times t, so that no low part of a small t underflows."""
    return t * _f32(2.0**64)


def _reduced(a: np.ndarray, n: np.ndarray) -> np.ndarray:
    """a * 2**(n - 64) rounded once: in two halves, of which the first is exact."""
    whole = n - np.int32(64)
    half = whole >> np.int32(1)
    return (a * _power_of_two(half)) * _power_of_two(whole - half)


def _exp(x: _Pair) -> _Exponential:
    """exp(x) for x.hi in [-120, 0]. Relative error of the mantissa: 2^-27."""
    # n = rint(x / ln 2): at 1.5 * 2^23 an ulp is 1.
    shifter = _f32(12582912)
    shifted = fma(x.hi, _f32(1.44269502), shifter)
    n = shifted - shifter
    exponent = shifted.view(np.int32) - shifter.view(np.int32)

    # r = x - n ln 2, ln 2 as two floats
    r_hi = fma(n, _f32(-0.693147182), x.hi)
    r = _ordered_sum(r_hi, fma(n, _f32(1.90465421e-9), x.lo))

    # (exp(r) - 1 - r) / r^2 on [-0.3466, 0.3466]: the error, times r^2 / exp(r), is 2^-28.2.
    h = r.hi
    q = _horner(h, 0.00138388446, 0.00836919062, 0.0416681021, 0.166665167, 0.49999994)

    # exp(r) = (1 + h + h^2 q)(1 + r.lo)
    linear = _ordered_sum(_ONE, h)
    m = _ordered_sum(linear.hi, fma(h * h, q, linear.lo))
    return _Exponential(_Pair(m.hi, fma(m.hi, r.lo, m.lo)), exponent)


def _clamped_magnitude(x: np.ndarray, limit: float) -> np.ndarray:
    """min(|x|, limit); NaN stays NaN."""
    t = np.abs(x)
    return np.where(_f32(limit) < t, _f32(limit), t)


def _without_tail(x: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """x - tail for x >= 0, else -tail: -0 - 0 is -0, so every result has the sign of x."""
    return np.where(x < _ZERO, _f32(-0.0), x) - tail


def _logistic_tail(t: np.ndarray, s: _Pair) -> np.ndarray:
    """t * exp(s) / (1 + exp(s)) for s <= 0."""
    e = _exp(s)
    # Below 2^-32 it matters no more to 1 + e, and 2^n stays normal.
    power = _power_of_two(np.maximum(e.exponent, np.int32(-32)))
    total = _ordered_sum(_ONE, e.mantissa.hi * power)
    denominator = _Pair(total.hi, fma(e.mantissa.lo, power, total.lo))
    return _reduced(_quotient(_scaled(e.mantissa, _enlarged(t)), denominator), e.exponent)
