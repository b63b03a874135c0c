# SPDX-License-Identifier: Apache-2.0
"""Codes of 2, 4 or 8 bits in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nibblas._arrays import Array, as_array


def unpack_fields(data: Array, bits: int, count: int, *, high_first: bool = False) -> Array:
    """The first `count` codes along the last axis of uint8 `data`, one a byte.

    Of the codes in a byte the first is in the lowest bits, or in the highest.
    """
    in_byte = 8 // bits
    codes = np.empty((*data.shape, in_byte), np.uint8)
    for i in range(in_byte):
        place = in_byte - 1 - i if high_first else i
        np.right_shift(data, np.uint8(bits * place), out=codes[..., i])
    if in_byte > 1:
        codes &= np.uint8((1 << bits) - 1)
    return codes.reshape(*data.shape[:-1], data.shape[-1] * in_byte)[..., :count]


def byte_array(value: Any, name: str, *others: str) -> Array:
    """`value` as a uint8 array; arrays of one-byte types called `others` as their bytes."""
    array = as_array(value, name)
    if array.dtype.name in others:
        array = array.view(np.uint8)
    if array.dtype != np.uint8:
        expected = " or ".join(("uint8", *others))
        raise TypeError(f"{name} must be {expected}, got {array.dtype}")
    return array


def size_argument(value: Any, name: str, least: int = 0) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    size = int(value.__index__())
    if size < least:
        raise ValueError(f"{name} must be at least {least}, got {size}")
    return size
