# SPDX-License-Identifier: Apache-2.0
"""How float weights become codes of a codebook, and scales of any type.

As in `weights`, everything is float32 with round to nearest even, and each line is one rounding.
The native ``quantize`` gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .groups import (
    FLOAT_SCALES,
    by_groups,
    check_choice,
    check_overflow,
    checked_weight,
    extreme,
    least_error,
    store,
    stored,
    take,
)
from .layout import e4m3_to_float32, e8m0_to_float32, normalize_group_size
from .parts import Parts


def quantize_codebook(
    weight: np.ndarray,
    codebook: np.ndarray,
    divisors: Sequence[float],
    *,
    group_size: int | None,
    scale_dtype: str | None = None,
) -> Parts:
    """Quantize a weight matrix with a codebook, bit for bit as the native library does.

    Per group, m is the weight of largest magnitude (the first such). For each divisor d there is a
    candidate ``raw = |m| / d``, or ``m / d`` if the codebook's greatest and least entries differ
    in magnitude. Its scale s is

    - float16, float32, bfloat16: raw, rounded to that type; -0 is stored as +0.
    - e8m0: the exponent bits of raw, which are raw rounded down to a power of two, and s is half
      of that, because the codebook holds doubled values. A group of zeros has e = 0.
    - e4m3: raw / t rounded to e4m3 (nearest even, at most 448), and ``s = (e4m3 / 2) * t``, with t
      the tensor scale: the greatest magnitude of the whole matrix / 2688, or 1 where that is 0.
      2688 = 448 * 6: the largest scale times the largest element.

    The code is that of the entry nearest to ``w / s`` (of 0, where s is 0). Of equal entries only
    the first has a code. A quotient is nearer to the upper of two neighbours if it is greater than
    their mean ``(a + b) * 0.5``; if it is the mean itself, it goes to the one with an even code (to
    the lower one, if both are odd): round to nearest even, where codes are floats.

    The error of a candidate is that of :func:`quantize`, with the entry in place of q; the least
    wins, the first among equals.

    Parameters
    ----------
    weight : ndarray (N, K)
        float32, float16 or bfloat16, finite.
    codebook : ndarray (16,)
        float32, or int8 for exact integers.
    divisors : sequence of float
        See :func:`candidates`; the first one is the rule "absmax".
    group_size : int or None
        A power of two from 16 to 4096; None or one that is at least K: per channel.
    scale_dtype : {"float16", "float32", "bfloat16", "e8m0", "e4m3"}, optional
        Stored type of scales; float16 for groups and float32 per channel if not given.

    Returns
    -------
    Parts
        ``codes`` (N, K), ``scales`` (N, G), ``codebook``, ``bits``, ``group_size``, and for e4m3
        ``tensor_scale`` and ``scale_type``.

    Raises
    ------
    ValueError
        If a weight is NaN or infinite, or the first candidate's scale overflows its type.

    Examples
    --------
    >>> w = np.array([[-12, -1, 0, 3.5, 5]], np.float32)
    >>> book = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
    >>> quantize_codebook(w, book, [12], group_size=None)["codes"]
    array([[15,  9,  0,  4,  4]], dtype=uint8)
    """
    w = checked_weight(weight)
    group = normalize_group_size(w.shape[1], group_size)
    if scale_dtype is None:
        scale_dtype = "float32" if group is None else "float16"
    check_choice("scale_dtype", scale_dtype, (*FLOAT_SCALES, "e8m0", "e4m3"))
    tensor_scale = _tensor_scale(w) if scale_dtype == "e4m3" else np.float32(1)
    code_group = functools.partial(
        _code_group,
        nearest=_Nearest(codebook),
        divisors=divisors,
        scale_dtype=scale_dtype,
        tensor_scale=tensor_scale,
    )
    codes, columns = by_groups(w, group, code_group)
    if scale_dtype in FLOAT_SCALES:
        scales = store(columns[0], scale_dtype)
    else:
        scales = columns[1].astype(np.uint8)
    parts: Parts = {
        "codes": codes,
        "scales": scales,
        "codebook": np.asarray(codebook),
        "bits": 4,
        "group_size": group,
    }
    if scale_dtype == "e4m3":
        parts["tensor_scale"] = float(tensor_scale)
        parts["scale_type"] = "e4m3"
    return parts


def _tensor_scale(w: np.ndarray) -> np.float32:
    with np.errstate(all="ignore"):
        scale = np.float32(np.abs(w).max(initial=0)) / np.float32(2688)
    return np.float32(scale) if scale else np.float32(1)


class _Nearest:
    """The distinct entries of a codebook in ascending order, and where one becomes the next."""

    def __init__(self, codebook: np.ndarray) -> None:
        self.values, self.codes = np.unique(
            np.asarray(codebook, np.float32) + np.float32(0),  # -0 is 0
            return_index=True,
        )
        mean = (self.values[:-1] + self.values[1:]) * np.float32(0.5)
        # Greater than the float below the mean: the mean itself included.
        upper_is_even = self.codes[1:] % 2 == 0
        self.above = np.where(upper_is_even, np.nextafter(mean, np.float32(-np.inf)), mean)
        self.is_lopsided = bool(self.values[0] != -self.values[-1])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Number of the entry nearest to each x: of how many steps it is above."""
        return np.searchsorted(self.above, x.ravel(), side="left").reshape(x.shape)


def _code_group(
    w: np.ndarray,
    nearest: _Nearest,
    divisors: Sequence[float],
    scale_dtype: str,
    tensor_scale: np.float32,
) -> tuple[np.ndarray, ...]:
    """Codes (R, g), then (R,) scales and the bytes that stand for them, where there are any."""
    m = extreme(w)
    raw = [(m if nearest.is_lopsided else np.abs(m)) / np.float32(d) for d in divisors]
    scale_bytes = [np.zeros(len(w), np.uint8)] * len(raw)
    if scale_dtype == "e8m0":
        scale_bytes = [(r.view(np.uint32) >> 23).astype(np.uint8) for r in raw]
        scales = [e8m0_to_float32(e) for e in scale_bytes]
    elif scale_dtype == "e4m3":
        scale_bytes = [float32_to_e4m3(r / tensor_scale) for r in raw]
        scales = [e4m3_to_float32(e) * tensor_scale for e in scale_bytes]
    else:
        scales = [stored(r, scale_dtype) for r in raw]
    check_overflow(scales[0], "scale", scale_dtype)

    def numbers(s: np.ndarray) -> np.ndarray:
        zero = s[:, None] == 0
        return nearest(np.where(zero, np.float32(0), w / s[:, None]))

    best = least_error(w, scales, lambda i: nearest.values[numbers(scales[i])])
    s = take(scales, best)
    codes = nearest.codes[numbers(s)].astype(np.uint8)
    return codes, s + np.float32(0), take(scale_bytes, best).astype(np.float32)  # not -0


def float32_to_e4m3(values: np.ndarray) -> np.ndarray:
    """Round float32 that is not negative to e4m3 (uint8): nearest even, at most 448.

    Examples
    --------
    >>> float32_to_e4m3(np.array([0, 1, 1.0625, 500, 0.001], np.float32))
    array([  0,  56,  56, 126,   1], dtype=uint8)
    """
    v = np.minimum(np.asarray(values, np.float32), np.float32(448))
    bits = v.view(np.uint32)
    odd = (bits >> np.uint32(20)) & np.uint32(1)
    normal = ((bits + odd + np.uint32(0x7FFFF)) >> np.uint32(20)).astype(np.int64) - (120 << 3)
    # Below 2^-6 a multiple of 2^-9; eight of them are the least normal number, byte 8, too.
    subnormal = np.rint(v * np.float32(512))
    return np.where(v < np.float32(2.0**-6), subnormal, normal).astype(np.uint8)
