# SPDX-License-Identifier: Apache-2.0
"""How floats become the two-level blocks of GGUF files: K-quants, IQ4_XS and IQ4_NL.

The formats say what a block means and leave the choice of its scales to the writer. This is the
choice of nibblas, one operation per rounding; `docs/numerics.md` has it in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .fma import fma

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""The values of the codes of IQ4_NL and IQ4_XS."""

RANGE_STEPS = (0.0, -0.5, -1.0, 0.5, -1.5)
"""With mins: the range of a group becomes this many levels more than there are."""

END_STEPS = (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, 4.0)
"""Without: the extreme value of a group lies this many units beyond the end of the codes."""

NEAR = (0.0, -1.0, 1.0)
"""What is added to the rounded sub-scales and sub-mins."""

_ZERO, _ONE = np.float32(0), np.float32(1)


@dataclass(frozen=True)
class KQuant:
    """A block type: bits of a code, elements of a group and of a block, range of sub-scales."""

    bits: int
    group: int
    elements: int = 256
    zero: int = 0
    table: bool = False
    has_mins: bool = False
    sub_low: int | None = 0
    sub_high: int = 63


K_QUANTS = {
    "Q2_K": KQuant(2, 16, has_mins=True, sub_high=15),
    "Q3_K": KQuant(3, 16, zero=4, sub_low=-32, sub_high=31),
    "Q4_K": KQuant(4, 32, has_mins=True),
    "Q5_K": KQuant(5, 32, has_mins=True),
    "Q6_K": KQuant(6, 16, zero=32, sub_low=-128, sub_high=127),
    "IQ4_NL": KQuant(4, 32, elements=32, table=True, sub_low=None),
    "IQ4_XS": KQuant(4, 32, table=True, sub_low=-32, sub_high=31),
}


def quantize_blocks(x: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Return the codes and scales of the blocks that x becomes.

    Parameters
    ----------
    x : float32 (N, K)
        K a multiple of the elements of a block.
    name : str
        A key of `K_QUANTS`.

    Returns
    -------
    dict of arrays
        ``codes`` uint8 (N, K) as stored; ``d`` float16 (N, blocks), and ``dmin`` where there are
        mins; ``scales`` (N, groups) where there are sub-scales, integers as float32, and ``mins``.

    Raises
    ------
    ValueError
        If x is not finite, or a scale is too large for float16.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 256, dtype=np.float32)[None]
    >>> parts = quantize_blocks(x, "Q4_K")
    >>> parts["codes"].max(), parts["scales"].shape, parts["d"].shape
    (np.uint8(15), (1, 8), (1, 1))
    """
    kind = K_QUANTS[name]
    rows = x.shape[0]
    if not np.isfinite(x).all():
        raise ValueError("data has NaN or infinite values, which cannot be quantized")
    if (np.abs(x) > 2.0**30).any():
        raise ValueError(f"data is too large for the float16 scales of {name}")
    groups = np.ascontiguousarray(x.reshape(-1, kind.elements // kind.group, kind.group))
    with np.errstate(all="ignore"):
        parts = _with_mins(groups, kind) if kind.has_mins else _without_mins(groups, kind)
    if not all(np.isfinite(parts[key]).all() for key in ("d", "dmin") if key in parts):
        raise ValueError(f"data is too large for the float16 scales of {name}")
    parts["codes"] = parts["codes"].astype(np.uint8)
    return {key: part.reshape(rows, -1) for key, part in parts.items()}


def _ascending(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The elements of each group, k ascending."""
    for k in range(arrays[0].shape[-1]):
        yield tuple(array[..., k] for array in arrays)


def _inverse(a: np.ndarray) -> np.ndarray:
    return np.where(a == 0, _ZERO, _ONE / a)


def _clamp(a: np.ndarray, low: float, high: float) -> np.ndarray:
    """NaN stays NaN."""
    low, high = np.float32(low), np.float32(high)
    raised = np.where(a < low, low, a)
    return np.where(high < raised, high, raised)


def _stored(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float16).astype(np.float32)


def _extreme(a: np.ndarray) -> np.ndarray:
    """The value of largest magnitude along the last axis, the first such."""
    index = np.abs(a).argmax(-1)[..., None]
    return np.take_along_axis(a, index, -1)[..., 0]


def _squares(residuals: Iterator[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(shape, np.float32)
    for r in residuals:
        total = fma(r, r, total)
    return total


def _fit(
    y: np.ndarray, q: np.ndarray, sum_y: np.ndarray, lo: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The line s q + t of least squares through y with t + lo <= 0, and its error."""
    n = np.float32(y.shape[-1])
    sum_q = np.zeros_like(lo)
    sum_qq, sum_qy = sum_q, sum_q
    for q_k, y_k in _ascending(q, y):
        sum_q = sum_q + q_k
        sum_qq = fma(q_k, q_k, sum_qq)
        sum_qy = fma(q_k, y_k, sum_qy)
    determinant = n * sum_qq - sum_q * sum_q
    s = fma(n, sum_qy, -(sum_q * sum_y)) / determinant
    t = fma(-s, sum_q, sum_y) * (_ONE / n)
    free = (determinant != 0) & (t + lo <= 0)  # else the min is 0, and only s is to be chosen
    t = np.where(free, t, -lo)
    s = np.where(free, s, fma(lo, sum_q, sum_qy) / sum_qq)
    error = _squares((fma(q_k, s, t - y_k) for q_k, y_k in _ascending(q, y)), lo.shape)
    return s, t, error


def _with_mins(x: np.ndarray, kind: KQuant) -> dict[str, np.ndarray]:
    top = 2**kind.bits - 1
    lo = np.minimum(x.min(-1), _ZERO)
    y = x - lo[..., None]
    sum_y = np.zeros_like(lo)
    for (y_k,) in _ascending(y):
        sum_y = sum_y + y_k
    best_s, best_t = np.zeros_like(lo), np.zeros_like(lo)
    least = _squares((y_k for (y_k,) in _ascending(y)), lo.shape)
    per_range = _inverse(x.max(-1) - lo)
    for step in RANGE_STEPS:
        levels = top + (step / 2 if kind.bits == 2 else step)
        inverse, t = np.float32(levels) * per_range, np.zeros_like(lo)
        for _ in range(2):
            q = _clamp(np.rint((y - t[..., None]) * inverse[..., None]), 0, top)
            s, t, error = _fit(y, q, sum_y, lo)
            inverse = _inverse(s)
        better = error < least
        best_s, best_t = np.where(better, s, best_s), np.where(better, t, best_t)
        least = np.where(better, error, least)

    low_m = -(best_t + lo)
    last = np.float32(kind.sub_high)
    d = _stored(np.maximum(best_s.max(-1, keepdims=True), _ZERO) / last)
    dmin = _stored(np.maximum(low_m.max(-1, keepdims=True), _ZERO) / last)

    def code(sub: np.ndarray, sub_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, m = d * sub, dmin * sub_m
        q = _clamp(np.rint((x + m[..., None]) * _inverse(s)[..., None]), 0, top)
        residuals = (x_k - fma(q_k, s, -m) for x_k, q_k in _ascending(x, q))
        return q, _squares(residuals, s.shape)

    sub0, sub_m0 = np.rint(best_s * _inverse(d)), np.rint(low_m * _inverse(dmin))
    sub, sub_m = np.zeros_like(lo), np.zeros_like(lo)
    least = np.full_like(lo, np.inf)
    for a in NEAR:
        for b in NEAR:
            try_sub = _clamp(sub0 + np.float32(a), 0, kind.sub_high)
            try_sub_m = _clamp(sub_m0 + np.float32(b), 0, kind.sub_high)
            better = (error := code(try_sub, try_sub_m)[1]) < least
            sub, sub_m = np.where(better, try_sub, sub), np.where(better, try_sub_m, sub_m)
            least = np.where(better, error, least)
    codes, _ = code(sub, sub_m)
    half_d, half_m = d.astype(np.float16), dmin.astype(np.float16)
    return {"codes": codes, "scales": sub, "mins": sub_m, "d": half_d, "dmin": half_m}


def _nearest(r: np.ndarray, kind: KQuant) -> tuple[np.ndarray, np.ndarray]:
    """The nearest value that a code has, and the code. Ties go up in a table, else to even."""
    if kind.table:
        borders = (IQ4_VALUES[:-1] + IQ4_VALUES[1:]) / 2
        code = np.searchsorted(borders, r, side="right")  # NaN after all
        return IQ4_VALUES[code], code
    value = _clamp(np.rint(r), -kind.zero, 2**kind.bits - 1 - kind.zero)
    return value, value + np.float32(kind.zero)


def _without_mins(x: np.ndarray, kind: KQuant) -> dict[str, np.ndarray]:
    first, last, unit = -kind.zero, 2**kind.bits - 1 - kind.zero, 0.5
    if kind.table:
        first, last, unit = -127, 113, 6
    per_extreme = _inverse(_extreme(x))
    best, most = np.zeros_like(per_extreme), np.zeros_like(per_extreme)
    ends = [first - step * unit for step in END_STEPS] + [last + step * unit for step in END_STEPS]
    for end in ends:
        q, _ = _nearest(x * (np.float32(end) * per_extreme)[..., None], kind)
        sum_qx, sum_qq = np.zeros_like(best), np.zeros_like(best)
        for q_k, x_k in _ascending(q, x):
            sum_qx = fma(q_k, x_k, sum_qx)
            sum_qq = fma(q_k, q_k, sum_qq)
        s = sum_qx / sum_qq
        better = (gain := s * sum_qx) > most
        best, most = np.where(better, s, best), np.where(better, gain, most)

    def code(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q, codes = _nearest(x * _inverse(s)[..., None], kind)
        return codes, _squares((fma(-q_k, s, x_k) for q_k, x_k in _ascending(q, x)), s.shape)

    if kind.sub_low is None:
        d = _stored(best)
        return {"codes": code(d)[0], "d": d.astype(np.float16)}
    d = _stored(_extreme(best)[..., None] / np.float32(kind.sub_low))
    sub0 = np.rint(best * _inverse(d))
    sub, least = np.zeros_like(best), np.full_like(best, np.inf)
    for a in NEAR:
        try_sub = _clamp(sub0 + np.float32(a), kind.sub_low, kind.sub_high)
        better = (error := code(d * try_sub)[1]) < least
        sub, least = np.where(better, try_sub, sub), np.where(better, error, least)
    return {"codes": code(d * sub)[0], "scales": sub, "d": d.astype(np.float16)}
