# SPDX-License-Identifier: Apache-2.0
"""What all rules of weight quantization share: groups, stored scales, and the least error."""

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

FLOAT_SCALES = ("float16", "float32", "bfloat16")

_WEIGHTS_AT_ONCE = 1 << 18  # weights handled together: 16 candidates of them are 16 MB

GroupRule = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Takes rows that are groups, float32 (R, g); gives codes (R, g), then float32 (R,) columns."""


def checked_weight(weight: np.ndarray) -> np.ndarray:
    """The weight in float32.

    Raises
    ------
    TypeError, ValueError
        If it is not a finite (N, K) of one of the three float types.
    """
    w = to_float32(weight, "weight")
    if w.ndim != 2:
        raise ValueError(f"weight must have shape (N, K), not {w.shape}")
    if not np.isfinite(w).all():
        raise ValueError("weight has NaN or infinite values")
    return w


def by_groups(
    w: np.ndarray, group_size: int | None, rule: GroupRule
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Apply a rule to every group: codes (N, K), and its columns as float32 (N, G) each."""
    cols, depth = w.shape
    group = normalize_group_size(depth, group_size)
    codes = np.zeros((cols, depth), np.uint8)
    columns: list[list[np.ndarray]] = []  # per run of groups
    for start, stop, count in _runs(depth, group):
        run = w[:, start:stop].reshape(cols * count, (stop - start) // count)
        pieces = []
        step = max(1, _WEIGHTS_AT_ONCE // max(run.shape[1], 1))
        for row in range(0, len(run), step):
            with np.errstate(all="ignore"):
                pieces.append(rule(run[row : row + step]))
        if pieces:
            run_codes, *values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
            codes[:, start:stop] = run_codes.reshape(cols, stop - start)
            columns.append([v.reshape(cols, count) for v in values])
    merged = [np.concatenate(arrays, axis=1) for arrays in zip(*columns, strict=True)]
    if not merged:  # N = 0
        merged = [np.zeros((0, -(-depth // group) if group else 1), np.float32)] * 2
    return codes, merged


def _runs(depth: int, group: int | None) -> Iterator[tuple[int, int, int]]:
    """Cut K into the whole groups and the short last one: start, stop, number of groups."""
    if group is None:
        yield 0, depth, 1
        return
    count = depth // group  # at least 1: a group is shorter than K
    yield 0, count * group, count
    if count * group < depth:
        yield count * group, depth, 1


def least_error(
    w: np.ndarray,
    scales: list[np.ndarray],
    coded: Callable[[int], np.ndarray],
    shifts: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Return each row's winning candidate (R,).

    `coded(i)` gives q (R, g) of candidate i, which stands for ``q * scales[i] + shifts[i]``; it is
    not asked when there is only one.
    """
    stacked = np.stack(scales)
    if len(scales) == 1:
        return np.zeros(len(w), np.int64)
    off = [w if shifts is None else w - shifts[i][:, None] for i in range(len(scales))]
    r = np.stack([fma(-coded(i), s[:, None], off[i]) for i, s in enumerate(scales)])
    e = np.zeros(stacked.shape, np.float32)
    for k in range(w.shape[1]):
        e = fma(r[:, :, k], r[:, :, k], e)
    usable = (stacked != 0) & np.isfinite(stacked)
    return np.where(usable, e, np.float32(np.inf)).argmin(axis=0)  # the first of the least


def take(candidates: list[np.ndarray], best: np.ndarray) -> np.ndarray:
    """Return of each row the value (R,) of its winning candidate."""
    return np.stack(candidates)[best, np.arange(len(best))]


def extreme(w: np.ndarray) -> np.ndarray:
    """Return of each row the weight of largest magnitude, the first such."""
    return pick(w, np.abs(w), np.argmax)


def pick(w: np.ndarray, key: np.ndarray, choose: Callable[..., np.ndarray]) -> np.ndarray:
    """Return of each row the weight with the first greatest or least key; 0 if it has none."""
    if not w.shape[1]:
        return np.zeros(len(w), np.float32)
    return w[np.arange(len(w)), choose(key, axis=1)]


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to a stored type; bfloat16 as its bits."""
    if dtype == "bfloat16":
        return float32_to_bfloat16(values)
    return float32_to_float16(values) if dtype == "float16" else values.astype(np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to a stored type and back."""
    there = store(values, dtype)
    return bfloat16_to_float32(there) if dtype == "bfloat16" else there.astype(np.float32)


def check_overflow(values: np.ndarray, what: str, dtype: str) -> None:
    """ValueError where a stored value is infinite."""
    if not np.isfinite(values).all():
        hint = "" if dtype == "float32" else ': pass scale_dtype="float32"'
        raise ValueError(f"a {what} overflows {dtype}{hint}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """ValueError where `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, not {value!r}")
