# SPDX-License-Identifier: Apache-2.0
"""GGUF: the files of llama.cpp, and the blocks in them.

`load` opens a file, `from_blocks` packs the blocks of one matrix, and `dequantize` and `quantize`
stand in for the functions of the same names in the package ``gguf``. None needs that package.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from nibblas._arrays import Array, bfloat16
from nibblas.io._gguf_blocks import (
    BLOCK_SHAPES,
    dequantize,
    from_bfloat16,
    from_blocks,
    quantize,
)
from nibblas.io._gguf_file import GgufReader
from nibblas.io._source import Entry, Source, Value
from nibblas.io.safetensors import TensorSpec
from nibblas.weights import PackedWeight

__all__ = ["GgufFile", "dequantize", "from_blocks", "load", "quantize"]

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


class GgufFile(Source):
    """The tensors of a GGUF file by name, made when they are asked for; see `load`.

    Attributes
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._reader = GgufReader(path)
        self.path = self._reader.path

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's numbers, bools, strings and arrays, of numbers as ndarrays; a copy."""
        return dict(self._reader.metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.tensors)

    def __len__(self) -> int:
        return len(self._reader.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._reader.tensors

    def describe(self, name: str) -> Entry:
        """Return kind, type, shape and size of a tensor, without reading it."""
        tensor = self._reader.tensors[name]
        is_weight = tensor.type in BLOCK_SHAPES and len(tensor.shape) > 1
        size = tensor.end - tensor.begin
        return Entry("weight" if is_weight else "array", tensor.type, tensor.shape, size)

    def raw(self, name: str) -> Array:
        """Return the bytes of a tensor, uint8, as a read-only view of the file."""
        return self._reader.raw(name)

    def __getitem__(self, name: str) -> Value:
        tensor = self._reader.tensors[name]
        try:
            return _make(self.raw(name), tensor.type, tensor.shape)
        except ValueError as error:
            raise self._reader.error(f"tensor {name!r}: {error}") from None

    def rows(self, name: str, start: int, stop: int) -> PackedWeight:
        """Return the outputs from `start`, a multiple of 16, to `stop` of a matrix of blocks."""
        self.check_rows(name, start, stop)
        tensor = self._reader.tensors[name]
        blocks = _in_rows(self.raw(name), tensor.type, tensor.shape)
        try:
            return from_blocks(blocks[start:stop], tensor.type)
        except ValueError as error:
            raise self._reader.error(f"tensor {name!r}: {error}") from None

    def experts(self, name: str) -> Iterator[PackedWeight]:
        """Return the matrices of a tensor of blocks with more than two dimensions, one by one."""
        tensor = self._reader.tensors[name]
        if tensor.type not in BLOCK_SHAPES or len(tensor.shape) < 3:
            raise TypeError(f"tensor {name!r} is no list of matrices")
        try:
            yield from _experts(self.raw(name), tensor.type, tensor.shape)
        except ValueError as error:
            raise self._reader.error(f"tensor {name!r}: {error}") from None

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """Return an array's entry in a safetensors file, and its bytes."""
        tensor = self._reader.tensors[name]
        if tensor.type == "BF16" or tensor.type in _NUMPY_TYPES:  # called the same there
            return TensorSpec(tensor.type, tensor.shape), self.raw(name)
        return super().stored(name)

    def release(self) -> None:
        """Give up the memory of what was read of the mapped file so far."""
        self._reader.release()


def _in_rows(raw: Array, kind: str, shape: tuple[int, ...]) -> Array:
    """Blocks with all of a tensor's dimensions, the last in bytes."""
    elements, size, _ = BLOCK_SHAPES[kind]
    return raw.reshape(*shape[:-1], shape[-1] // elements * size)


def _make(raw: Array, kind: str, shape: tuple[int, ...]) -> Value:
    if kind in _NUMPY_TYPES:
        array = raw.view(_NUMPY_TYPES[kind]).reshape(shape)
        return array if array.flags.aligned else array.copy()
    if kind == "BF16":
        bits = raw.view(np.uint16).reshape(shape)
        try:
            brain: Array = bits.view(bfloat16())
        except ImportError:
            return from_bfloat16(bits)
        return brain
    if kind not in BLOCK_SHAPES:
        raise ValueError(f"type: {kind} cannot be read, only {', '.join(BLOCK_SHAPES)}")
    blocks = _in_rows(raw, kind, shape)
    if len(shape) < 2:
        return dequantize(blocks, kind)
    if len(shape) == 2:
        return from_blocks(blocks, kind)
    return list(_experts(raw, kind, shape))


def _experts(raw: Array, kind: str, shape: tuple[int, ...]) -> Iterator[PackedWeight]:
    blocks = _in_rows(raw, kind, shape)
    for part in blocks.reshape(math.prod(shape[:-2]), *blocks.shape[-2:]):
        yield from_blocks(part, kind)


def load(path: str | os.PathLike[str]) -> GgufFile:
    """Open a GGUF file.

    Parameters
    ----------
    path : str or path
        A file of version 2 or 3, little-endian, that is not split.

    Returns
    -------
    GgufFile
        A mapping from names to tensors. The file is mapped into memory and its header is checked
        as a whole; each tensor is made anew whenever it is asked for:

        - a matrix of blocks becomes a PackedWeight (N, K), see `from_blocks`;
        - with more dimensions, as of experts, a list of these;
        - with one dimension float32 values;
        - F32, F16, F64 and integers become read-only arrays that are views of the file, BF16 too
          with ml_dtypes, else float32.

    Raises
    ------
    ValueError
        The file is damaged or of a kind that is not read; the message names file, tensor and field.
        A tensor of a type that nibblas does not have raises it when it is asked for.
    OSError
        It cannot be opened.

    Examples
    --------
    >>> from nibblas.io import gguf
    >>> model = gguf.load("model.gguf")  # doctest: +SKIP
    >>> y = x @ model["blk.0.attn_q.weight"].T  # doctest: +SKIP
    """
    return GgufFile(path)
