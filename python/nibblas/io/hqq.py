# SPDX-License-Identifier: Apache-2.0
"""HQQ (half-quadratic quantization): integer codes, scales and float zero points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nibblas._arrays import FLOAT_TYPES, Array, as_array
from nibblas.io._fields import size_argument
from nibblas.io._words import check_bits, float_array
from nibblas.packing import pack
from nibblas.schemes import MIN_GROUP, get_scheme
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BITS = (1, 2, 3, 4, 5, 6, 8)
IN_WORD = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}
"""Codes in a byte; those of 3 bits in an int32. Of 5 and 6 bits there are no narrower files."""


def from_arrays(
    W_q: Array,
    scale: Array,
    zero: Array,
    *,
    bits: int,
    shape: tuple[int, int],
    group_size: int | None,
    axis: int = 1,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack an HQQ weight; no value changes.

    A value is ``(code - zero) * scale``. The matrix is cut, row after row, into groups: they are
    the rows of a matrix (N * K / group_size, group_size), or with axis 0 the columns of one
    (group_size, N * K / group_size). That one is stored with parts of its rows above each other:
    of 4 bits the upper half of the rows is in the high, the lower half in the low nibbles.

    Parameters
    ----------
    W_q : ndarray
        uint8: as above for 1, 2 and 4 bits, with the first part in the highest bits; plain codes
        for 5, 6 and 8 bits. Of 3 bits int32, ten codes in each, the first one in the bits 27 to
        29. The same bytes as float16, bfloat16 or float32 ("view_as_float") are taken, too.
    scale, zero : ndarray
        float16, float32 or bfloat16: one for each group, or one element for all.
    bits : int
        1, 2, 3, 4, 5, 6 or 8; 2 for what HQQ calls 1.58.
    shape : tuple of int
        (N, K).
    group_size : int or None
        Elements that share a scale. None: the rows of the matrix; with axis 0 its columns.
    axis : int
        0 or 1, see above.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        Of scheme "uint1" to "uint8", with float zero points as they are; if all of them are
        integers of 0 or more, they are stored as such.

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        The shapes do not fit together; scale or zero are themselves quantized; or groups are
        not along K, as most are with axis 0.

    Examples
    --------
    >>> w = nibblas.io.hqq.from_arrays(
    ...     np.full((2, 64), 0x21, np.uint8),
    ...     np.full((4, 1), 2, np.float16),
    ...     np.full((4, 1), 0.5, np.float16),
    ...     bits=4,
    ...     shape=(4, 64),
    ...     group_size=64,
    ... )
    >>> w.dequantize()[:, 0]
    array([3., 3., 1., 1.], dtype=float32)
    """
    bits = check_bits(bits, BITS)
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape must be a tuple (N, K), got {type(shape).__name__}")
    if len(shape) != 2:
        raise ValueError(f"shape must be (N, K), got {tuple(shape)}")
    cols, depth = (size_argument(shape[i], "NK"[i], 1) for i in (0, 1))
    axis = size_argument(axis, "axis")
    if axis > 1:
        raise ValueError(f"axis must be 0 or 1, got {axis}")
    if group_size is None:
        group_size = depth if axis else cols
    size = size_argument(group_size, "group_size", 1)
    if cols * depth % size:
        raise ValueError(f"group_size must divide the {cols * depth} elements, got {size}")
    groups = cols * depth // size
    stored = (groups, size) if axis else (size, groups)
    codes = _codes(W_q, bits, stored).reshape(cols, depth)

    number = np.arange(cols)[:, np.newaxis] * depth  # of the first element of a row
    index = None
    if axis:
        # Borders of groups are at multiples of the size, a row's start at one of K.
        length = math.gcd(depth, size)
        if length < depth and length % MIN_GROUP:
            raise ValueError(
                f"groups of {size} straddle rows of {depth}: what divides both is {length}, but "
                f"groups must be multiples of {MIN_GROUP}"
            )
        of_group = (number + np.arange(0, depth, length)) // size
    elif depth % groups or (groups > 1 and depth // groups % MIN_GROUP):
        raise ValueError(
            f"axis 0 with {groups} groups for shape {(cols, depth)}: each input of an output has "
            "a scale of its own, which no group along K can express; quantize with axis=1"
        )
    else:
        # Whole rows of scales fit into K: inputs share those of k modulo their number.
        length = depth // groups
        of_group = np.broadcast_to(np.arange(groups), (cols, groups))
        index = np.arange(depth) % groups
    scheme = f"uint{bits}"
    factors = _per_group(scale, "scale", stored, axis)
    zeros = _whole(_per_group(zero, "zero", stored, axis), get_scheme(scheme).top_zero)
    return pack(
        codes,
        factors[of_group],
        zeros[of_group],
        scheme=scheme,
        group_size=length,
        group_index=index,
        num_threads=num_threads,
    )


def _codes(value: Any, bits: int, shape: tuple[int, int]) -> Array:
    """The codes as a matrix of this shape."""
    dtype = np.dtype(np.int32 if bits == 3 else np.uint8)
    words = as_array(value, "W_q")
    if words.dtype.name in FLOAT_TYPES and words.ndim == 2:
        words = np.ascontiguousarray(words).view(np.uint8)
        if words.shape[1] % dtype.itemsize == 0:
            words = words.view(dtype)
    if words.dtype != dtype:
        raise TypeError(f"W_q of {bits} bits must be {dtype}, got {words.dtype}")
    parts = IN_WORD[bits]
    expected = (-(-shape[0] // parts), shape[1])
    # Only those of 3 bits are filled up.
    if words.shape != expected or (bits != 3 and shape[0] % parts):
        raise ValueError(
            f"W_q must have {shape[0]} rows of {shape[1]} codes, {parts} of them in each {dtype} "
            f"of {expected}; got shape {words.shape}"
        )
    codes = np.empty((parts, *expected), np.uint8)
    mask = dtype.type((1 << bits) - 1)
    for i in range(parts):
        codes[i] = (words >> dtype.type(bits * (parts - 1 - i))) & mask
    return codes.reshape(-1, shape[1])[: shape[0]]


def _per_group(value: Any, name: str, shape: tuple[int, int], axis: int) -> Array:
    """A vector with an element for each group."""
    if as_array(value, name).dtype == np.uint8:
        raise ValueError(
            f"{name} is itself quantized (uint8): dequantize it first, with its own scale and zero"
        )
    array = float_array(value, name)
    groups = shape[1 - axis]
    if array.size == 1:
        return np.broadcast_to(array.reshape(1), (groups,))
    expected = (groups, 1) if axis else (1, groups)
    if array.shape not in (expected, (groups,)):
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    return array.reshape(groups)


def _whole(zeros: Array, most: int) -> Array:
    """Zeros that are all integers from 0 to `most` as uint8, which take less space and time."""
    with np.errstate(invalid="ignore"):  # signalling NaNs: NumPy warns of them on some CPUs
        numbers = zeros.astype(np.float32)
        whole = ((numbers >= 0) & (numbers <= most) & (numbers == np.floor(numbers))).all()
    return numbers.astype(np.uint8) if whole else zeros
