# SPDX-License-Identifier: Apache-2.0
"""The 4-bit weights of bitsandbytes: NF4 and FP4, with plain or quantized absmax."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nibblas._arrays import FLOAT_TYPES, Array, as_array
from nibblas.io._fields import unpack_fields
from nibblas.packing import pack
from nibblas.schemes import CODEBOOK, MIN_GROUP
from nibblas.weights import PackedWeight

__all__ = ["from_state_dict"]

TYPES = ("nf4", "fp4")
MAX_STATE = 1 << 16
"""Bytes of JSON; real ones have about 200."""


class State(NamedTuple):
    """A weight's entries of a state dict, checked."""

    name: str
    scheme: str
    shape: tuple[int, int]
    blocksize: int
    data: Array
    """uint8, two codes a byte."""
    absmax: Array
    codebook: Array

    @property
    def group_size(self) -> int:
        """Inputs after which a row can enter another block.

        Blocks run on from row to row. Their borders are multiples of the block size, a row's start
        is one of K, so inside a row borders are at multiples of what divides both.
        """
        rows, depth = self.shape
        if rows * depth <= self.blocksize:
            return depth  # one block is all there is
        return self.blocksize if rows == 1 else math.gcd(depth, self.blocksize)


def from_state_dict(
    tensors: Mapping[str, Array], prefix: str, *, num_threads: int | None = None
) -> PackedWeight:
    """Pack a 4-bit weight of a state dict; no value changes.

    A value is ``quant_map[code] * absmax[block]``, blocks being `blocksize` elements of the
    flattened matrix.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        The state dict. Used are ``<prefix>weight``, ``<prefix>weight.absmax``, ``.quant_map``,
        ``.quant_state.bitsandbytes__nf4`` or ``__fp4`` and, where absmax itself is quantized,
        ``.nested_absmax`` and ``.nested_quant_map``.
    prefix : str
        The layer's name, such as "model.layers.0.mlp.up_proj", with or without a dot at its end;
        "" if the weight is called "weight".
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        Of scheme "nf4" or "fp4" with float32 scales (a quantized absmax is expanded) and the
        quant_map as codebook. Where K is no multiple of the block size, blocks straddle rows, and
        groups are what divides both, with the absmax of a block for each of its groups.

    Raises
    ------
    TypeError
        An entry is of a wrong type.
    ValueError
        An entry is missing, does not fit the others or is damaged; or blocks straddle rows in a
        way that groups of a multiple of 16 cannot express.

    Examples
    --------
    >>> state = {"shape": [4, 64], "blocksize": 64, "quant_type": "nf4", "dtype": "float32"}
    >>> tensors = {
    ...     "up.weight": np.full((128, 1), 0xF7, np.uint8),
    ...     "up.weight.absmax": np.full(4, 2, np.float32),
    ...     "up.weight.quant_map": np.array(nibblas.schemes.NF4, np.float32),
    ...     "up.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
    ...         json.dumps(state).encode(), np.uint8
    ...     ),
    ... }
    >>> nibblas.io.bitsandbytes.from_state_dict(tensors, "up").dequantize()[0, :2]
    array([2., 0.], dtype=float32)
    """
    state = read_state(tensors, prefix)
    return pack_rows(state, 0, state.shape[0], num_threads=num_threads)


def read_state(tensors: Mapping[str, Array], prefix: str) -> State:
    """The entries of a weight; TypeError or ValueError unless they are as they must be."""
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping from names, got {type(tensors).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, got {type(prefix).__name__}")
    name = f"{prefix}{'.' if prefix and not prefix.endswith('.') else ''}weight"

    def entry(key: str) -> Array:
        if key not in tensors:
            raise ValueError(f"tensors has no {key!r}")
        return np.ascontiguousarray(as_array(tensors[key], repr(key)))

    def flat(key: str, types: tuple[str, ...], size: int) -> Array:
        array = entry(key)
        if array.dtype.name not in types:
            raise TypeError(f"{key!r} must be {' or '.join(types)}, got {array.dtype}")
        if array.size != size:
            raise ValueError(f"{key!r} must have {size} elements, got shape {array.shape}")
        return array.reshape(-1)

    keys = {kind: f"{name}.quant_state.bitsandbytes__{kind}" for kind in TYPES}
    found = [kind for kind in TYPES if keys[kind] in tensors]
    if len(found) != 1:
        raise ValueError(
            f"expected one of {' and '.join(map(repr, keys.values()))}, got {len(found)} of them"
        )
    key = keys[found[0]]
    state = _Json(key, entry(key))
    state.check_type(found[0])
    rows, depth = state.shape()
    blocksize = state.size("blocksize")
    blocks = -(-rows * depth // blocksize)

    # Written as another type (quant_storage), the bytes are the same ones.
    data = entry(name).reshape(-1).view(np.uint8)
    if data.size != -(-rows * depth // 2):
        raise ValueError(
            f"{name!r} must have {-(-rows * depth // 2)} bytes for shape {(rows, depth)}, "
            f"got {data.size}"
        )
    if f"{name}.nested_absmax" in tensors:
        nested_blocksize = state.size("nested_blocksize")
        codes = flat(f"{name}.absmax", ("uint8",), blocks)
        nested = flat(f"{name}.nested_absmax", ("float32",), -(-blocks // nested_blocksize))
        table = flat(f"{name}.nested_quant_map", ("float32",), 256)
        # Two roundings, in float32.
        with np.errstate(all="ignore"):
            absmax = table[codes] * nested[np.arange(blocks) // nested_blocksize]
            absmax += state.float32("nested_offset")
    else:
        absmax = flat(f"{name}.absmax", FLOAT_TYPES, blocks)
    codebook = flat(f"{name}.quant_map", ("float32",), CODEBOOK)
    return State(name, found[0], (rows, depth), blocksize, data, absmax, codebook)


def read_shape(key: str, data: Array) -> tuple[int, int]:
    """(N, K), from the JSON of a quant_state called `key` alone."""
    return _Json(key, data).shape()


def pack_rows(
    state: State, start: int, stop: int, *, num_threads: int | None = None
) -> PackedWeight:
    """The outputs from `start`, an even number, to `stop` as a packed weight."""
    depth, group = state.shape[1], state.group_size
    if group < depth and (group & -group) < MIN_GROUP:
        raise ValueError(
            f"{state.name!r}: blocks of {state.blocksize} straddle rows of {depth}: what divides "
            f"both is {group}, but groups must be multiples of {MIN_GROUP}"
        )
    first, last = start * depth, stop * depth  # the first of an even row begins a byte
    data = state.data[first // 2 : -(-last // 2)]
    codes = unpack_fields(data, 4, last - first, high_first=True).reshape(stop - start, depth)
    firsts = np.arange(start, stop)[:, np.newaxis] * depth + np.arange(0, depth, group)
    try:
        return pack(
            codes,
            state.absmax[firsts // state.blocksize],
            scheme=state.scheme,
            group_size=group,
            codebook=state.codebook,
            num_threads=num_threads,
        )
    except ValueError as error:
        raise ValueError(f"{state.name!r}: {error}") from None


class _Json:
    """The JSON of a quant_state. It comes from a file, so every field is checked when read."""

    def __init__(self, key: str, data: Array) -> None:
        self._key = key
        if data.dtype != np.uint8:
            raise TypeError(f"{key!r} must be uint8, got {data.dtype}")
        if data.size > MAX_STATE:
            raise ValueError(f"{key!r} must have at most {MAX_STATE} bytes, got {data.size}")
        try:
            self._fields = json.loads(data.tobytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{key!r} is not JSON: {error}") from None
        if not isinstance(self._fields, dict):
            raise ValueError(f"{key!r}: expected an object of JSON")

    def _error(self, field: str, expected: str) -> ValueError:
        found = f"{self._fields.get(field)!r:.80}"
        return ValueError(f"{self._key!r}: {field}: expected {expected}, got {found}")

    def check_type(self, kind: str) -> None:
        if self._fields.get("quant_type") != kind:
            raise self._error("quant_type", repr(kind))

    def shape(self) -> tuple[int, int]:
        shape = self._fields.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(size) is int and 1 <= size < 1 << 40 for size in shape)
        ):
            raise self._error("shape", "two sizes above 0")
        return shape[0], shape[1]

    def size(self, field: str) -> int:
        value = self._fields.get(field)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise self._error(field, "a size")
        return value

    def float32(self, field: str) -> np.float32:
        value = self._fields.get(field)
        # The test by comparison is for integers of any length, and fails for NaN.
        if type(value) not in (int, float) or not abs(value) <= 3.4028234663852886e38:
            raise self._error(field, "a finite float32")
        return np.float32(value)
