# SPDX-License-Identifier: Apache-2.0
"""HQQ: integers with float zero points, packed along the rows of a matrix of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nibblas._arrays import Array, as_array
from nibblas.io._words import check_bits, float_array, words_array
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BITS = (1, 2, 3, 4, 8)
IN_WORD = 10
"""Codes of 3 bits in an int32; its two highest bits are unused."""


def from_arrays(
    W_q: Array,
    scale: Array,
    zero: Array,
    *,
    bits: int,
    shape: Sequence[int],
    group_size: int | None,
    axis: int = 1,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a weight of an HQQ checkpoint; no value changes.

    A value is ``(code - zero) * scale`` with a float zero.

    Parameters
    ----------
    W_q : ndarray
        The codes of the matrix (N * K / group_size, group_size), whose rows are groups: packed
        along its rows, uint8 with the first rows in the highest bits; 3 bits in int32, ten a word,
        the first rows in bits 29 to 27.
    scale, zero : ndarray
        One float16, bfloat16 or float32 per group.
    bits : int
        1, 2, 3, 4 or 8.
    shape : (int, int)
        (N, K).
    group_size : int or None
        Inputs of a group; None is per channel.
    axis : int
        1. With axis=0 each input of an output has a scale of its own, which no layout of groups
        along the inputs can hold.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K) of scheme "uint1" to "uint8", with float zero points.

    Raises
    ------
    TypeError
        An argument is of a wrong type; scales and zeros that are quantized themselves are.
    ValueError
        Shapes do not fit together, or axis=0.

    Examples
    --------
    >>> w = nibblas.io.hqq.from_arrays(
    ...     np.full((1, 16), 0x31, np.uint8),
    ...     np.full((2, 1), 2, np.float16),
    ...     np.full((2, 1), 0.5, np.float16),
    ...     bits=4,
    ...     shape=(2, 16),
    ...     group_size=16,
    ... )
    >>> w.dequantize()[:, 0]
    array([5., 1.], dtype=float32)
    """
    bits = check_bits(bits, BITS)
    cols, depth = _shape(shape)
    if axis != 1:
        if axis != 0:
            raise ValueError(f"axis must be 0 or 1, got {axis!r}")
        raise ValueError(
            "axis=0 has a scale for each input of an output, which groups along the inputs "
            "cannot hold: quantize with axis=1"
        )
    if group_size is not None and (
        isinstance(group_size, bool) or not hasattr(group_size, "__index__")
    ):
        raise TypeError(f"group_size must be an int or None, got {type(group_size).__name__}")
    size = depth if group_size is None else int(group_size)
    if size < 1 or depth % size:
        raise ValueError(f"group_size must divide the {depth} inputs, got {size}")
    groups = cols * (depth // size)
    codes = _codes(W_q, bits, groups, size)
    values = {}
    for name, given in (("scale", scale), ("zero", zero)):
        array = as_array(given, name)
        if array.dtype.kind in "iu":
            raise TypeError(f"{name} is {array.dtype}: dequantize quantized scales and zeros first")
        array = float_array(array, name)
        if array.size != groups:
            raise ValueError(f"{name} must have {groups} elements, got shape {array.shape}")
        values[name] = array.reshape(cols, depth // size)
    return pack(
        codes.reshape(cols, depth),
        values["scale"],
        values["zero"],
        scheme=f"uint{bits}",
        group_size=group_size,
        num_threads=num_threads,
    )


def _codes(packed: Any, bits: int, groups: int, size: int) -> Array:
    """(groups, size) codes, one a byte."""
    if bits == 3:
        words, in_word, top = words_array(packed, "W_q"), IN_WORD, 27
    else:
        words, in_word, top = as_array(packed, "W_q"), 8 // bits, 8 - bits
        if words.dtype != np.uint8:
            raise TypeError(f"W_q of {bits} bits must be uint8, got {words.dtype}")
    rows = -(-groups // in_word)
    if words.size != rows * size:
        raise ValueError(
            f"W_q of {bits} bits must have shape {(rows, size)} for {groups} groups of {size}, "
            f"got {words.shape}"
        )
    words = words.reshape(rows, size)
    codes = np.empty((in_word, rows, size), np.uint8)
    for i in range(in_word):
        codes[i] = words >> words.dtype.type(top - bits * i) & words.dtype.type((1 << bits) - 1)
    return codes.reshape(in_word * rows, size)[:groups]


def _shape(shape: Any) -> tuple[int, int]:
    sizes = tuple(shape)
    good = len(sizes) == 2 and all(
        hasattr(size, "__index__") and not isinstance(size, bool) and int(size) >= 1
        for size in sizes
    )
    if not good:
        raise ValueError(f"shape must be (N, K), two sizes, got {sizes}")
    return int(sizes[0]), int(sizes[1])
