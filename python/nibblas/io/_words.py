# SPDX-License-Identifier: Apache-2.0
"""Codes in 32-bit words, and the checks that the formats which have them share."""

from __future__ import annotations

from typing import Any

import numpy as np

from nibblas._arrays import FLOAT_TYPES, Array, as_array

WORD = 32


def unpack_words(words: Array, bits: int, count: int, *, dense: bool = True) -> Array:
    """The first `count` codes along the last axis of uint32 words, one a byte, low bits first.

    A width that does not divide 32 is a dense stream, in which a code may begin in one word and
    end in the next (32 codes in `bits` words), or has 32 // bits codes a word and unused bits.
    """
    if dense and WORD % bits:
        period, places = bits, [divmod(bits * j, WORD) for j in range(WORD)]
    else:
        period, places = 1, [(0, bits * j) for j in range(WORD // bits)]
    *lead, width = words.shape
    missing = -width % period
    if missing:
        words = np.concatenate([words, np.zeros((*lead, missing), np.uint32)], axis=-1)
    words = words.reshape(*lead, (width + missing) // period, period)
    codes = np.empty((*words.shape[:-1], len(places)), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for j, (word, shift) in enumerate(places):
        field = words[..., word] >> np.uint32(shift)
        if shift + bits > WORD:
            field |= words[..., word + 1] << np.uint32(WORD - shift)
        codes[..., j] = field & mask
    return codes.reshape(*lead, -1)[..., :count]


def words_array(value: Any, name: str) -> Array:
    """A matrix of int32 or uint32 as uint32."""
    array = as_array(value, name)
    if array.dtype not in (np.dtype(np.int32), np.dtype(np.uint32)):
        raise TypeError(f"{name} must be int32, got {array.dtype}")
    return matrix(array, name).view(np.uint32)


def float_array(value: Any, name: str) -> Array:
    """An array of one of the three float types."""
    array = as_array(value, name)
    if array.dtype.name not in FLOAT_TYPES or not array.dtype.isnative:
        raise TypeError(f"{name} must be {' or '.join(FLOAT_TYPES)}, got {array.dtype}")
    return array


def matrix(array: Array, name: str) -> Array:
    """`array` if it has two dimensions."""
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {array.shape}")
    return array


def check_shape(array: Array, name: str, expected: tuple[int, ...]) -> None:
    """ValueError unless the array has this shape."""
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")


def check_bits(bits: Any, known: tuple[int, ...]) -> int:
    """`bits` if it is one of these widths."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise TypeError(f"bits must be an int, got {type(bits).__name__}")
    if bits not in known:
        raise ValueError(f"bits must be one of {', '.join(map(str, known))}, got {bits}")
    return int(bits)


def group_index_array(value: Any, name: str, depth: int) -> Array | None:
    """The group of each input (K,), or None where there is none (also: all are -1)."""
    if value is None:
        return None
    index = as_array(value, name)
    if index.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {index.dtype}")
    if not index.size:
        return None
    check_shape(index, name, (depth,))
    if index.dtype.kind == "i" and (index == -1).all():
        return None
    return index


def group_size_of(
    depth: int, groups: int, index: Array | None = None, group_size: int | None = None
) -> int | None:
    """Inputs of a group: as said, else from the group of each input, else an even share.

    None is per channel: one group.
    """
    if group_size is not None:
        if isinstance(group_size, bool) or not isinstance(group_size, int | np.integer):
            raise TypeError(f"group_size must be an int or None, got {type(group_size).__name__}")
        if group_size < 1 or -(-depth // int(group_size)) != groups:
            raise ValueError(
                f"group_size {group_size} does not cut {depth} inputs into {groups} groups"
            )
        return int(group_size)
    if groups == 1:
        return None
    if index is not None:
        if index.size and (int(index.min()) < 0 or int(index.max()) >= groups):
            raise ValueError(
                f"groups of inputs must be from 0 to {groups - 1}, "
                f"got {index.min()} to {index.max()}"
            )
        size = int(np.bincount(index.astype(np.int64), minlength=1).max())
        if -(-depth // max(size, 1)) != groups:
            raise ValueError(
                f"{groups} groups of {depth} inputs must be of one size (the last one may have "
                f"fewer), but one has {size}"
            )
        return size
    if groups < 1 or depth % groups:
        raise ValueError(
            f"{groups} groups do not divide {depth} inputs evenly: give group_size, "
            "which the arrays do not tell"
        )
    return depth // groups
