# SPDX-License-Identifier: Apache-2.0
"""How float weights become integer codes, scales, zero points and mins.

Everything is float32 with round to nearest even; each line below is one rounding unless it says
otherwise. A group is the codes of one output that share a scale; padding does not take part. The
native ``quantize`` gives the same bits. `codebooks` has the schemes whose codes are no integers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from nibblas._candidates import candidates

from .groups import (
    FLOAT_SCALES,
    by_groups,
    check_choice,
    check_overflow,
    checked_weight,
    extreme,
    least_error,
    pick,
    store,
    stored,
    take,
)
from .layout import normalize_group_size
from .parts import Parts


def quantize(
    weight: np.ndarray,
    *,
    bits: int,
    offset: str,
    group_size: int | None,
    rule: str = "mse",
    scale_dtype: str | None = None,
    ternary: bool = False,
) -> Parts:
    """Quantize a weight matrix, bit for bit as the native library does.

    With w the weights of a group and b = `bits`, "stored" meaning rounded to the scale's type:

    - `offset` "symmetric": m is the w of largest magnitude (the first such), ``zero = 2**(b-1)``,
      ``qmin = -2**(b-1)``, ``qmax = 2**(b-1) - 1``; for `ternary` 1, -1 and 1. The absmax scale is
      ``s = stored(|m| / qmax)``, and ``q = clamp(rint(w / s), qmin, qmax)``, ``code = zero + q``.
      Under rule "mse" ``s = stored(m / d)`` (ternary: ``|m| / d``) are candidates after it, for
      the divisors d of `candidates`.
    - "zero_point": ``lo = min(0, min w)``, ``hi = max(0, max w)``, ``s = stored((hi - lo) / qmax)``
      with ``qmax = 2**b - 1``, ``zp = clamp(rint(-lo / s), 0, qmax)``,
      ``code = clamp(rint(w / s) + zp, 0, qmax)``, ``q = code - zp``. The candidates of "mse" have
      ``lo * c`` and ``hi * c`` in place of lo and hi, for the factors c of `candidates`.
    - "min": lo is the least w and hi the greatest (the first such), ``m = stored(lo)``,
      ``s = stored((hi - lo) / qmax)``, ``code = clamp(rint((w - m) / s), 0, qmax)``. With
      ``r = hi - lo``, the candidates of "mse" have ``m = stored(lo + r * start)`` and
      ``s = stored(r * width / qmax)``, for the pairs (start, width) of `candidates`.

    The error of a candidate is e from ``e = 0``, then ``r = fma(-q, s, w); e = fma(r, r, e)`` for k
    ascending (with minima, ``w - m`` in place of w and q the code), but infinity if its stored
    scale is 0 or infinite. The least wins, the first among equals. If the winner's scale is 0, q is
    0 everywhere: the codes are `zero` or, of the other offsets, 0, as is the zero point.

    Parameters
    ----------
    weight : ndarray (N, K)
        float32, float16 or bfloat16, finite.
    bits : int
        1 to 8, and at least 2 for "symmetric".
    offset : {"symmetric", "zero_point", "min"}
    group_size : int or None
        A power of two from 16 to 4096; None or one that is at least K: per channel.
    rule : {"mse", "absmax"}
        With 8 bits, and with "min" from 4 bits on, both are the same.
    scale_dtype : {"float16", "float32", "bfloat16"}, optional
        Stored type of scales and mins; float16 for groups and float32 per channel if not given.
    ternary : bool
        Only the values -s, 0 and s, as codes 0, 1 and 2 of 2 bits.

    Returns
    -------
    Parts
        ``codes`` (N, K), ``scales`` (N, G), ``bits``, ``group_size``, and one of ``zero``,
        ``zero_points`` and ``mins``. bfloat16 is given as its bits, in uint16.

    Raises
    ------
    ValueError
        If a weight is NaN or infinite, or the plain rule's scale or min overflows its type.

    Examples
    --------
    >>> w = np.array([[-8, -1, 0, 3]], np.float32)
    >>> parts = quantize(w, bits=4, offset="symmetric", group_size=None)
    >>> parts["codes"], parts["scales"], parts["zero"]
    (array([[ 0,  7,  8, 11]], dtype=uint8), array([[1.]], dtype=float32), 8)
    """
    check_choice("offset", offset, ("symmetric", "zero_point", "min"))
    check_choice("bits", bits, tuple(range(2 if offset == "symmetric" else 1, 9)))
    check_choice("rule", rule, ("mse", "absmax"))
    if ternary and (bits, offset) != (2, "symmetric"):
        raise ValueError('ternary codes have 2 bits and offset "symmetric"')
    w = checked_weight(weight)
    group = normalize_group_size(w.shape[1], group_size)
    if scale_dtype is None:
        scale_dtype = "float32" if group is None else "float16"
    check_choice("scale_dtype", scale_dtype, FLOAT_SCALES)

    name = "ternary" if ternary else f"{'int' if offset == 'symmetric' else 'uint'}{bits}"
    code_group = functools.partial(
        {"symmetric": _symmetric, "zero_point": _zero_point, "min": _min}[offset],
        top=2 if ternary else (1 << bits) - 1,
        tried=candidates(name, offset, rule),
        scale_dtype=scale_dtype,
    )
    codes, columns = by_groups(w, group, code_group)
    parts: Parts = {
        "codes": codes,
        "scales": store(columns[0], scale_dtype),
        "bits": bits,
        "group_size": group,
    }
    if offset == "symmetric":
        parts["zero"] = 1 if ternary else 1 << (bits - 1)
    elif offset == "zero_point":
        parts["zero_points"] = columns[1].astype(np.uint8)
    else:
        parts["mins"] = store(columns[1], _min_dtype(scale_dtype))
    return parts


# Each of these takes rows that are groups, float32 (R, g), and returns codes (R, g) up to `top`,
# then float32 (R,) scales as stored and, if there are any, zero points or mins.


def _symmetric(w: np.ndarray, top: int, tried: Any, scale_dtype: str) -> tuple[np.ndarray, ...]:
    zero = (top + 1) // 2
    qmin, qmax = np.float32(-zero), np.float32(top - zero)
    m = extreme(w)
    raw = [np.abs(m) / qmax]
    raw += [(np.abs(m) if top == 2 else m) / np.float32(d) for d in tried]
    scales = [stored(s, scale_dtype) for s in raw]
    # Where the plain rule's own scale overflows, clipping to a smaller one is no remedy.
    check_overflow(scales[0], "scale", scale_dtype)

    def coded(s: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(w / s[:, None]), qmin, qmax)

    s = take(scales, least_error(w, scales, lambda i: coded(scales[i])))
    q = np.where(s[:, None] == 0, np.float32(0), coded(s))
    return (q + np.float32(zero)).astype(np.uint8), s


def _zero_point(w: np.ndarray, top: int, tried: Any, scale_dtype: str) -> tuple[np.ndarray, ...]:
    qmax = np.float32(top)
    lo, hi = pick(w, w, np.argmin), pick(w, w, np.argmax)
    lo, hi = np.where(lo < 0, lo, np.float32(0)), np.where(hi > 0, hi, np.float32(0))
    shrink = [np.float32(c) for c in (1.0, *tried)]
    scales = [stored((hi * c - lo * c) / qmax, scale_dtype) for c in shrink]
    check_overflow(scales[0], "scale", scale_dtype)
    points = [np.clip(np.rint(-(lo * c) / s), 0, qmax) for c, s in zip(shrink, scales, strict=True)]

    def coded(s: np.ndarray, zp: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(w / s[:, None]) + zp[:, None], 0, qmax)

    def integers(i: int) -> np.ndarray:
        return coded(scales[i], points[i]) - points[i][:, None]

    best = least_error(w, scales, integers)
    s = take(scales, best)
    zp = np.where(s == 0, np.float32(0), take(points, best))
    codes = np.where(s[:, None] == 0, np.float32(0), coded(s, zp))
    return codes.astype(np.uint8), s, zp


def _min(w: np.ndarray, top: int, tried: Any, scale_dtype: str) -> tuple[np.ndarray, ...]:
    qmax = np.float32(top)
    lo, hi = pick(w, w, np.argmin), pick(w, w, np.argmax)
    r = hi - lo
    starts = [lo, *(lo + r * np.float32(start) for start, _ in tried)]
    widths = [r, *(r * np.float32(width) for _, width in tried)]
    scales = [stored(width / qmax, scale_dtype) for width in widths]
    mins = [stored(start, _min_dtype(scale_dtype)) for start in starts]
    check_overflow(scales[0], "scale", scale_dtype)
    check_overflow(mins[0], "min", _min_dtype(scale_dtype))

    def coded(s: np.ndarray, m: np.ndarray) -> np.ndarray:
        return np.clip(np.rint((w - m[:, None]) / s[:, None]), 0, qmax)

    best = least_error(w, scales, lambda i: coded(scales[i], mins[i]), mins)
    s, m = take(scales, best), take(mins, best)
    return np.where(s[:, None] == 0, np.float32(0), coded(s, m)).astype(np.uint8), s, m


def _min_dtype(scale_dtype: str) -> str:
    """Mins have the range of weights, not of their steps: 8 bits would be too coarse for them."""
    return "float32" if scale_dtype == "bfloat16" else scale_dtype
