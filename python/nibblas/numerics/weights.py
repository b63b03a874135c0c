# SPDX-License-Identifier: Apache-2.0
"""How float weights become codes, scales, zero points and mins.

Everything is float32 with round to nearest even; each line below is one rounding unless it says
otherwise. A group is the codes of one output that share a scale; padding does not take part. The
native ``quantize`` gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .fma import fma
from .layout import (
    bfloat16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    normalize_group_size,
    to_float32,
)
from .parts import Parts

# The candidate scales of the "mse" rule for int4 are m / d, m the weight of largest magnitude with
# its sign, so that m itself lands on d: on the code -8 for d = -8, beyond it (clipped) for the
# larger |d|, on 7 for d near 7. Chosen from a grid of 150 by least mean log error over Gaussian,
# Laplace and Student t (5 and 3 degrees) weights, groups of 16 to 256 and rows of 4096, float16
# scales. Mean squared error on fresh weights, relative to the absmax scale alone:
#
#                        group 16   32     64     128    256    4096
#   Gaussian               .683   .702   .701   .678   .647   .469
#   Laplace                .707   .718   .704   .674   .627   .378
#   Student t, 5 degrees   .700   .712   .698   .664   .605   .267
#   Student t, 3 degrees   .733   .738   .730   .700   .646   .363
#   d = -8 alone, Gaussian .746   .768   .777   .771   .771   .765
#   all 150, Gaussian      .680   .702   .700   .677   .643   .461
INT4_DIVISORS = (
    *(-8.0, -8.25, -8.5, -8.75, -9.0, -9.25, -9.75, -10.5),
    *(-11.5, -13.5, -17.0, -25.0, -7.75, 7.25, 6.25),
)
"""Candidates d of the int4 "mse" rule, in order, after the absmax scale."""

# The same for uint4, where both ends of the range shrink by c. Here zero must be a code and both
# ends are already met, so small groups gain little:
#
#                        group 16   32     64     128    256    4096
#   Gaussian               .943   .937   .919   .897   .855   .612
#   Laplace                .954   .948   .935   .905   .858   .534
#   Student t, 3 degrees   .956   .956   .946   .919   .870   .497
#   all 57, Gaussian       .940   .934   .916   .892   .847   .597
UINT4_SHRINK = tuple(n / 64 for n in (64, 63, 62, 60, 58, 55, 44, 32))
"""Candidates c of the uint4 "mse" rule, in order; all exact in float32."""

_WEIGHTS_AT_ONCE = 1 << 18  # weights handled together: 16 candidates of them are 16 MB


def quantize(
    weight: np.ndarray,
    *,
    bits: int,
    offset: str,
    group_size: int | None,
    rule: str = "mse",
    scale_dtype: str | None = None,
) -> Parts:
    """Quantize a weight matrix, bit for bit as the native library does.

    With w the weights of a group and b = `bits`, "stored" meaning rounded to the scale's type:

    - `offset` "symmetric": m is the w of largest magnitude (the first such), ``zero = 2**(b-1)``.
      The absmax scale is ``s = stored(|m| / (2**(b-1) - 1))``. Under rule "mse" and 4 bits,
      ``s = stored(m / d)`` for d in INT4_DIVISORS are candidates after it.
      ``q = clamp(rint(w / s), -2**(b-1), 2**(b-1) - 1)``, ``code = zero + q``.
    - "zero_point": ``lo = min(0, min w)``, ``hi = max(0, max w)``, ``s = stored((hi - lo) / qmax)``
      with ``qmax = 2**b - 1``, ``zp = clamp(rint(-lo / s), 0, qmax)``,
      ``code = clamp(rint(w / s) + zp, 0, qmax)``, ``q = code - zp``. Under "mse" and 4 bits the
      candidates have ``lo * c`` and ``hi * c`` in place of lo and hi, for c in UINT4_SHRINK.
    - "min": lo is the least w and hi the greatest (the first such), ``m = stored(lo)``,
      ``s = stored((hi - lo) / qmax)``, ``code = clamp(rint((w - m) / s), 0, qmax)``. There are no
      candidates.

    The error of a candidate is e from ``e = 0``, then ``r = fma(-q, s, w); e = fma(r, r, e)`` for k
    ascending, but infinity if its stored scale is 0 or infinite. The least wins, the first among
    equals. If the winner's scale is 0, q is 0 everywhere: the codes are `zero` or, of the other
    offsets, 0, as is the zero point.

    Parameters
    ----------
    weight : ndarray (N, K)
        float32, float16 or bfloat16, finite.
    bits : int
        4 or 8.
    offset : {"symmetric", "zero_point", "min"}
    group_size : int or None
        A power of two from 16 to 4096; None or one that is at least K: per channel.
    rule : {"mse", "absmax"}
        With 8 bits, and with "min", both are the same.
    scale_dtype : {"float16", "float32", "bfloat16"}, optional
        Stored type of scales and mins; float16 for groups and float32 per channel if not given.

    Returns
    -------
    Parts
        ``codes`` (N, K), ``scales`` (N, G), ``bits``, ``group_size``, and one of ``zero``,
        ``zero_points`` and ``mins``. bfloat16 is given as its bits, in uint16.

    Raises
    ------
    ValueError
        If a weight is NaN or infinite, or a scale or min overflows its type.

    Examples
    --------
    >>> w = np.array([[-8, -1, 0, 3]], np.float32)
    >>> parts = quantize(w, bits=4, offset="symmetric", group_size=None)
    >>> parts["codes"], parts["scales"], parts["zero"]
    (array([[ 0,  7,  8, 11]], dtype=uint8), array([[1.]], dtype=float32), 8)
    """
    w = to_float32(weight, "weight")
    if w.ndim != 2:
        raise ValueError(f"weight must have shape (N, K), not {w.shape}")
    _check_choice("bits", bits, (4, 8))
    _check_choice("offset", offset, ("symmetric", "zero_point", "min"))
    _check_choice("rule", rule, ("mse", "absmax"))
    if not np.isfinite(w).all():
        raise ValueError("weight has NaN or infinite values")
    cols, depth = w.shape
    group = normalize_group_size(depth, group_size)
    if scale_dtype is None:
        scale_dtype = "float32" if group is None else "float16"
    _check_choice("scale_dtype", scale_dtype, ("float16", "float32", "bfloat16"))

    code_group = {"symmetric": _symmetric, "zero_point": _zero_point, "min": _min}[offset]
    search = rule == "mse" and bits == 4
    codes = np.zeros((cols, depth), np.uint8)
    columns: list[list[np.ndarray]] = []  # per run of groups: scales, then zero points or mins
    for start, stop, count in _runs(depth, group):
        run = w[:, start:stop].reshape(cols * count, (stop - start) // count)
        pieces = []
        step = max(1, _WEIGHTS_AT_ONCE // max(run.shape[1], 1))
        for row in range(0, len(run), step):
            with np.errstate(all="ignore"):
                pieces.append(code_group(run[row : row + step], bits, search, scale_dtype))
        if pieces:
            run_codes, *values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
            codes[:, start:stop] = run_codes.reshape(cols, stop - start)
            columns.append([v.reshape(cols, count) for v in values])

    merged = [np.concatenate(arrays, axis=1) for arrays in zip(*columns, strict=True)]
    if not merged:  # N = 0
        merged = [np.zeros((0, -(-depth // group) if group else 1), np.float32)] * 2
    parts: Parts = {
        "codes": codes,
        "scales": _store(merged[0], scale_dtype),
        "bits": bits,
        "group_size": group,
    }
    if offset == "symmetric":
        parts["zero"] = 1 << (bits - 1)
    elif offset == "zero_point":
        parts["zero_points"] = merged[1].astype(np.uint8)
    else:
        parts["mins"] = _store(merged[1], _min_dtype(scale_dtype))
    return parts


def _runs(depth: int, group: int | None) -> Iterator[tuple[int, int, int]]:
    """Cut K into the whole groups and the short last one: start, stop, number of groups."""
    if group is None:
        yield 0, depth, 1
        return
    count = depth // group  # at least 1: a group is shorter than K
    yield 0, count * group, count
    if count * group < depth:
        yield count * group, depth, 1


# Each of these takes rows that are groups, float32 (R, g), and returns codes (R, g), then float32
# (R,) scales as stored and, if there are any, zero points or mins.


def _symmetric(w: np.ndarray, bits: int, search: bool, scale_dtype: str) -> tuple[np.ndarray, ...]:
    qmax = np.float32((1 << (bits - 1)) - 1)
    qmin = -qmax - np.float32(1)
    extreme = _pick(w, np.abs(w), np.argmax)
    raw = [np.abs(extreme) / qmax]
    if search:
        raw += [extreme / np.float32(d) for d in INT4_DIVISORS]
    scales = [_round(s, scale_dtype) for s in raw]

    def coded(s: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(w / s[:, None]), qmin, qmax)

    s, _ = _least_error(w, scales, lambda i: coded(scales[i]), scale_dtype)
    q = np.where(s[:, None] == 0, np.float32(0), coded(s))
    return (q + np.float32(1 << (bits - 1))).astype(np.uint8), s


def _zero_point(w: np.ndarray, bits: int, search: bool, scale_dtype: str) -> tuple[np.ndarray, ...]:
    qmax = np.float32((1 << bits) - 1)
    lo, hi = _pick(w, w, np.argmin), _pick(w, w, np.argmax)
    lo, hi = np.where(lo < 0, lo, np.float32(0)), np.where(hi > 0, hi, np.float32(0))
    shrink = [np.float32(c) for c in (UINT4_SHRINK if search else (1.0,))]
    scales = [_round((hi * c - lo * c) / qmax, scale_dtype) for c in shrink]
    points = [np.clip(np.rint(-(lo * c) / s), 0, qmax) for c, s in zip(shrink, scales, strict=True)]

    def coded(s: np.ndarray, zp: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(w / s[:, None]) + zp[:, None], 0, qmax)

    def integers(i: int) -> np.ndarray:
        return coded(scales[i], points[i]) - points[i][:, None]

    s, best = _least_error(w, scales, integers, scale_dtype)
    zp = np.where(s == 0, np.float32(0), np.stack(points)[best, np.arange(len(w))])
    codes = np.where(s[:, None] == 0, np.float32(0), coded(s, zp))
    return codes.astype(np.uint8), s, zp


def _min(w: np.ndarray, bits: int, search: bool, scale_dtype: str) -> tuple[np.ndarray, ...]:
    qmax = np.float32((1 << bits) - 1)
    lo, hi = _pick(w, w, np.argmin), _pick(w, w, np.argmax)
    s, _ = _least_error(w, [_round((hi - lo) / qmax, scale_dtype)], lambda i: w, scale_dtype)
    m = _round(lo, _min_dtype(scale_dtype))
    _check_overflow(m, "min", _min_dtype(scale_dtype))
    codes = np.clip(np.rint((w - m[:, None]) / s[:, None]), 0, qmax)
    return np.where(s[:, None] == 0, np.float32(0), codes).astype(np.uint8), s, m


def _least_error(
    w: np.ndarray, scales: list[np.ndarray], coded: Callable[[int], np.ndarray], scale_dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's winning scale (R,) and the number of its candidate (R,).

    `coded(i)` gives q (R, g) of candidate i, and is not asked when there is only one.
    """
    stacked = np.stack(scales)
    # The first is the plain rule's: where it overflows, clipping to a smaller one is no remedy.
    _check_overflow(stacked[0], "scale", scale_dtype)
    best = np.zeros(len(w), np.int64)
    if len(scales) > 1:
        r = np.stack([fma(-coded(i), s[:, None], w) for i, s in enumerate(scales)])
        e = np.zeros(stacked.shape, np.float32)
        for k in range(w.shape[1]):
            e = fma(r[:, :, k], r[:, :, k], e)
        usable = (stacked != 0) & np.isfinite(stacked)
        best = np.where(usable, e, np.float32(np.inf)).argmin(axis=0)  # the first of the least
    return stacked[best, np.arange(len(w))], best


def _pick(w: np.ndarray, key: np.ndarray, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """Return of each row the weight with the first greatest or least key; 0 if it has none."""
    if not w.shape[1]:
        return np.zeros(len(w), np.float32)
    return w[np.arange(len(w)), choose(key, axis=1)]


def _store(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to a stored type; bfloat16 as its bits."""
    if dtype == "bfloat16":
        return float32_to_bfloat16(values)
    return float32_to_float16(values) if dtype == "float16" else values.astype(np.float32)


def _min_dtype(scale_dtype: str) -> str:
    """Mins have the range of weights, not of their steps: 8 bits would be too coarse for them."""
    return "float32" if scale_dtype == "bfloat16" else scale_dtype


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to a stored type and back."""
    stored = _store(values, dtype)
    return bfloat16_to_float32(stored) if dtype == "bfloat16" else stored.astype(np.float32)


def _check_overflow(values: np.ndarray, what: str, dtype: str) -> None:
    if not np.isfinite(values).all():
        hint = "" if dtype == "float32" else ': pass scale_dtype="float32"'
        raise ValueError(f"a {what} overflows {dtype}{hint}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, not {value!r}")
