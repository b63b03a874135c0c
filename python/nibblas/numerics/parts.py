# SPDX-License-Identifier: Apache-2.0
"""A weight taken apart: its arrays as stored, and the numbers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from .layout import SUPER_BLOCK, normalize_group_size, scales_to_float32, to_float32


class Parts(TypedDict, total=False):
    """A weight of N outputs and K inputs taken apart, as ``PackedWeight.unpack()`` gives it.

    ``codes``, ``scales`` and ``group_size`` are required; an absent field and None mean the same.
    G is ``group_count(K, group_size)``, S is ``ceil(K / 256)``. Arrays per group may have more
    columns (the padding of a plane), which are not looked at.
    """

    codes: np.ndarray
    """(N, K), a column per input: the stored uint8, or int8 that are the integers themselves."""

    scales: np.ndarray
    """(N, G) float16, float32, bfloat16 (of ml_dtypes, or its bits in uint16), or e8m0 or e4m3 in
    uint8. In a two-level scheme the sub-scales, uint8 or int8."""

    scale_type: str
    """"e4m3" where scales of uint8 are that; they are e8m0 otherwise."""

    group_size: int | None
    """None: one group, the whole row."""

    zero: int
    """Subtracted from all codes; 0 if absent. Not used where there are zero_points."""

    zero_points: np.ndarray | None
    """(N, G) uint8, or float16, float32 or bfloat16: then m = -(z * s), rounded once, is what is
    added to code * s, as mins are."""

    mins: np.ndarray | None
    """(N, G) float16, float32 or bfloat16, added to the value. Two-level: uint8 sub-mins."""

    super_scales: np.ndarray | None
    """float16 (N, S); makes the scheme a two-level one."""

    super_mins: np.ndarray | None
    """float16 (N, S), where a two-level scheme has mins."""

    codebook: np.ndarray | None
    """(16,) float32, or int8 values that are integers with exact meaning."""

    input_order: np.ndarray | None
    """int32 (K,): the input at each position of the packed order, in which position j belongs to
    group ``j // group_size`` and in which sums run."""

    tensor_scale: float | None
    """float32 that multiplies every scale, rounded once."""

    tensor_divisor: float | None
    """float32 that divides every scale, rounded once."""

    bits: int
    """Width of a code. Nothing here needs it."""


@dataclass(frozen=True)
class TwoLevel:
    """The factors of a two-level scheme's scales and mins."""

    scales: tuple[np.ndarray, np.ndarray]
    """Sub-scales int64 (N, G), super-scales float32 (N, S)."""

    mins: tuple[np.ndarray, np.ndarray] | None
    """Likewise."""


@dataclass(frozen=True)
class Decoded:
    """The numbers of a weight, in packed order of k."""

    values: np.ndarray
    """float32 (N, K): value(code) - zero, exact."""

    integers: np.ndarray
    """int64 (N, K): the same; of a float codebook rint(127 * value)."""

    float_codebook: bool
    group: int
    """Columns that share a scale; at least 1."""

    scales: np.ndarray
    """float32 (N, G). Two-level: super * sub, exact (11 and 8 bits)."""

    mins: np.ndarray | None
    """Likewise."""

    input_order: np.ndarray
    """int64 (K,)."""

    two_level: TwoLevel | None = None


def decode(parts: Parts) -> Decoded:
    """Check parts and turn them into numbers.

    Raises
    ------
    TypeError, ValueError
        If an array has not the type or shape that :class:`Parts` says.
    """
    codes = np.asarray(parts["codes"])
    if codes.dtype not in (np.dtype(np.uint8), np.dtype(np.int8)):
        raise TypeError(f"codes must be uint8 or int8, not {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have shape (N, K), not {codes.shape}")
    cols, depth = codes.shape
    two_level = parts.get("super_scales") is not None
    group_size = parts["group_size"]
    if not two_level:
        group = normalize_group_size(depth, group_size) or max(depth, 1)
    elif group_size in (16, 32, 64, 128, 256):
        group = int(group_size)
    else:
        raise ValueError(f"group_size of a two-level scheme must divide 256, not {group_size}")

    def columns(name: str, count: int) -> np.ndarray | None:
        if parts.get(name) is None:
            return None
        array = np.asarray(parts.get(name))
        if array.ndim != 2 or array.shape[0] != cols or array.shape[1] < count:
            raise ValueError(f"{name} must have shape ({cols}, {count}), not {array.shape}")
        return array[:, :count]

    order = _permutation(parts.get("input_order"), depth)
    codes = codes[:, order]
    groups = -(-depth // group)
    group_of = np.arange(depth) // group
    zero = np.asarray(parts.get("zero", 0), np.int64)
    zero_points = columns("zero_points", groups)
    float_zeros = zero_points is not None and zero_points.dtype != np.uint8
    if float_zeros:
        zero = np.asarray(0, np.int64)
    elif zero_points is not None:
        zero = zero_points[:, group_of].astype(np.int64)

    codebook = parts.get("codebook")
    values = codes if codebook is None else _look_up(codes, codebook)
    float_codebook = values.dtype == np.float32
    if float_codebook:
        if not np.isfinite(values).all():
            raise ValueError("codebook must be finite")
        if zero.any():
            raise ValueError("a float codebook has no zero point")
        integers = np.rint(np.float32(127) * values).astype(np.int64)
    else:
        integers = values.astype(np.int64) - zero
        values = integers.astype(np.float32)

    def decoded(
        scales: np.ndarray, mins: np.ndarray | None, two_level: TwoLevel | None = None
    ) -> Decoded:
        return Decoded(
            values, integers, bool(float_codebook), group, scales, mins, order, two_level
        )

    scales, mins = columns("scales", groups), columns("mins", groups)
    if scales is None:
        raise ValueError("a weight needs scales")
    if not two_level:
        s = scales_to_float32(scales, scale_type=parts.get("scale_type", "e8m0"))
        with np.errstate(all="ignore"):
            if parts.get("tensor_scale") is not None:
                s = s * np.float32(parts["tensor_scale"])
            if parts.get("tensor_divisor") is not None:
                s = s / np.float32(parts["tensor_divisor"])
            if float_zeros:
                return decoded(s, -(scales_to_float32(zero_points, "zero_points") * s))
        return decoded(s, None if mins is None else scales_to_float32(mins, "mins"))

    supers = -(-depth // SUPER_BLOCK)
    super_of = np.arange(groups) * group // SUPER_BLOCK

    def factors(name: str, sub: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        large = columns(f"super_{name}", supers)
        if large is None:
            raise ValueError(f"a two-level scheme with {name} needs super_{name}")
        return _small_integers(sub, name), to_float32(large, f"super_{name}")

    def product(sub: np.ndarray, large: np.ndarray) -> np.ndarray:
        return large[:, super_of] * sub.astype(np.float32)

    scale_factors = factors("scales", scales)
    if mins is None:
        return decoded(product(*scale_factors), None, TwoLevel(scale_factors, None))
    min_factors = factors("mins", mins)
    return decoded(
        product(*scale_factors), product(*min_factors), TwoLevel(scale_factors, min_factors)
    )


def _look_up(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    table = np.asarray(codebook)
    if table.dtype not in (np.dtype(np.int8), np.dtype(np.float32)):
        raise TypeError(f"codebook must be int8 or float32, not {table.dtype}")
    if table.shape != (16,):
        raise ValueError(f"codebook must have shape (16,), not {table.shape}")
    if codes.size and not 0 <= codes.min() <= codes.max() < 16:
        raise ValueError(f"codes of a codebook must be 0 to 15, not {codes.min()} to {codes.max()}")
    return table[codes]


def _permutation(order: np.ndarray | None, depth: int) -> np.ndarray:
    if order is None:
        return np.arange(depth)
    order = np.asarray(order)
    if order.shape != (depth,) or not np.array_equal(np.sort(order), np.arange(depth)):
        raise ValueError(f"input_order must have every number from 0 to {depth - 1} once")
    return order.astype(np.int64)


def _small_integers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype not in (np.dtype(np.uint8), np.dtype(np.int8)):
        raise TypeError(f"{name} of a two-level scheme must be uint8 or int8, not {array.dtype}")
    return array.astype(np.int64)
