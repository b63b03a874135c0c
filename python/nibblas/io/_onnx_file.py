# SPDX-License-Identifier: Apache-2.0
"""Reading ONNX files without holding their weights: initializers stay in the mapped file.

The package `onnx` parses a file as a whole, weights included. So the file is first taken apart by
the rules of protobuf: a message is a row of fields, each a key (a number and a wire type) and a
value, and fields left out leave a valid message. What remains without the weights is parsed by
`onnx`.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nibblas._arrays import Array, bfloat16
from nibblas.io._mapping import map_file, release_pages
from nibblas.io.safetensors import TensorSpec, spec_of

# Numbers of fields in onnx.proto.
GRAPH_OF_MODEL = 7
INITIALIZER_OF_GRAPH = 5
RAW_DATA_OF_TENSOR = 9

DTYPES = {
    "FLOAT": "<f4",
    "UINT8": "<u1",
    "INT8": "<i1",
    "UINT16": "<u2",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "BOOL": "?",
    "FLOAT16": "<f2",
    "DOUBLE": "<f8",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "BFLOAT16": "<u2",
}
"""NumPy types, and for bfloat16 that of its bits, of what is read."""


class Initializer(NamedTuple):
    """A constant tensor of a graph, without its data if that is bytes."""

    proto: Any
    type: str
    shape: tuple[int, ...]
    raw: Array | None
    """The bytes in the file itself."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements; 0 for types that are not read."""
        dtype = DTYPES.get(self.type)
        return math.prod(self.shape) * np.dtype(dtype).itemsize if dtype else 0


class OnnxReader:
    """An ONNX file, mapped into memory.

    Attributes
    ----------
    path : str
        The file.
    model : onnx.ModelProto
        The model without the initializers of its graph.
    initializers : dict
        These, by name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import onnx
            from google.protobuf.message import DecodeError
        except ImportError:
            raise ImportError(
                "ONNX files need the package onnx: pip install nibblas[onnx]"
            ) from None
        self._onnx = onnx
        self.path = os.fsdecode(path)
        self._maps: dict[str, mmap.mmap] = {}
        data = self._map(self.path)
        try:
            rest, graphs = _split(data, [(0, data.size)], GRAPH_OF_MODEL)
            graph, tensors = _split(data, graphs, INITIALIZER_OF_GRAPH)
            self.model = onnx.ModelProto.FromString(rest)
            self.model.graph.MergeFromString(graph)
            if not graphs:
                raise ValueError("there is no graph")
            self.initializers = self._read_initializers(data, tensors)
        except (DecodeError, ValueError) as error:
            raise self.error(f"no ONNX model as expected: {error}") from None

    def error(self, message: str) -> ValueError:
        """A ValueError that names this file."""
        return ValueError(f"{self.path}: {message}")

    def release(self) -> None:
        """Give up the memory of what was read of the mapped files so far."""
        for mapped in self._maps.values():
            release_pages(mapped)

    def _map(self, path: str) -> Array:
        """The bytes of a file, which is mapped once."""
        if path not in self._maps:
            # Not to wait for a pipe that a model might name.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError(f"{path} is no regular file")
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not size:
                    return np.empty(0, np.uint8)
                self._maps[path] = map_file(file, size)
        return np.frombuffer(self._maps[path], np.uint8)

    def _read_initializers(
        self, data: Array, spans: list[tuple[int, int]]
    ) -> dict[str, Initializer]:
        found: dict[str, Initializer] = {}
        for span in spans:
            header, raws = _split(data, [span], RAW_DATA_OF_TENSOR)
            proto = self._onnx.TensorProto.FromString(header)
            shape = tuple(proto.dims)
            if not proto.name or proto.name in found:
                raise ValueError(f"initializer {proto.name!r}: expected a name of its own")
            if len(shape) > 64 or any(not 0 <= size < 1 << 62 for size in shape):
                raise ValueError(f"initializer {proto.name!r}: dims: expected sizes, got {shape}")
            try:
                name = self._onnx.TensorProto.DataType.Name(proto.data_type)
            except ValueError:
                name = str(proto.data_type)
            # Of a field that is there twice the last one holds.
            raw = data[slice(*raws[-1])] if raws else None
            found[proto.name] = Initializer(proto, name, shape, raw)
        return found

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """An initializer's entry in a safetensors file, and its bytes as they lie in the file."""
        array = self._unaligned(name)
        spec = spec_of(array)
        if self.initializers[name].type == "BFLOAT16":
            spec = spec._replace(dtype="BF16")
        return spec, np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def _unaligned(self, name: str) -> Array:
        """An initializer, of bfloat16 the bits, at whatever address the file has it."""
        try:
            return self._array(self.initializers[name])
        except (OverflowError, TypeError, ValueError) as error:
            raise self.error(f"tensor {name!r}: {error}") from None

    def array(self, name: str) -> Array:
        """An initializer as a read-only array, a view of the file where that can be."""
        tensor = self.initializers[name]
        array = self._unaligned(name)
        array = array if array.flags.aligned else array.copy()
        if tensor.type == "BFLOAT16":
            array = array.view(bfloat16())
        array.flags.writeable = False
        return array

    def _array(self, tensor: Initializer) -> Array:
        if tensor.type not in DTYPES:
            raise ValueError(f"data_type: cannot read {tensor.type}, only {', '.join(DTYPES)}")
        dtype = np.dtype(DTYPES[tensor.type])
        raw = tensor.raw
        if tensor.proto.data_location == self._onnx.TensorProto.EXTERNAL:
            raw = self._external(tensor)
        if raw is None:
            if tensor.type == "BFLOAT16":  # of which older releases of the package make float32
                return (
                    np.array(tensor.proto.int32_data, np.int64).astype(dtype).reshape(tensor.shape)
                )
            return np.array(self._onnx.numpy_helper.to_array(tensor.proto))
        if raw.size != tensor.nbytes:
            raise ValueError(
                f"expected {tensor.nbytes} bytes for {tensor.type} {tensor.shape}, got {raw.size}"
            )
        return raw.view(dtype).reshape(tensor.shape)

    def _external(self, tensor: Initializer) -> Array:
        fields = {entry.key: entry.value for entry in tensor.proto.external_data}
        path = self._external_path(fields.get("location", ""))
        data = self._map(path)
        offset = _number(fields, "offset", 0)
        length = _number(fields, "length", tensor.nbytes)
        if offset + length > data.size:
            raise ValueError(
                f"external_data: {length} bytes from {offset} on, in a file of {data.size} bytes"
            )
        return data[offset : offset + length]

    def _external_path(self, location: str) -> str:
        if not location or os.path.isabs(location) or "\0" in location:
            raise ValueError(f"external_data: expected a relative location, got {location!r:.80}")
        folder = os.path.dirname(self.path)
        path = os.path.realpath(os.path.join(folder, location))
        # Caches have links to the model and its data, which lie side by side somewhere else.
        for home in (os.path.realpath(folder), os.path.dirname(os.path.realpath(self.path))):
            if os.path.commonpath((home, path)) == home:
                return path
        raise ValueError(f"external_data: location {location!r:.80} is outside the model's folder")


def _number(fields: dict[str, str], key: str, default: int) -> int:
    text = fields.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"external_data: {key}: expected a number, got {text!r:.80}")
    return int(text)


def _split(
    data: Array, spans: list[tuple[int, int]], number: int
) -> tuple[bytes, list[tuple[int, int]]]:
    """A message without the fields of this number, and where their values are."""
    view = data.data
    rest: list[memoryview] = []
    values = []
    for begin, end in spans:
        kept = begin
        for start, found, value, stop in _fields(view, begin, end):
            if found == number:
                rest.append(view[kept:start])
                values.append((value, stop))
                kept = stop
        rest.append(view[kept:end])
    return b"".join(rest), values


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, number, begin of the value, end) of each field of a message.

    Numbers of fields that are no messages or bytes are given as 0, which is none.
    """
    while position < end:
        begin = position
        key, position = _varint(view, position, end)
        wire_type, number, value = key & 7, 0, position
        if wire_type == 0:
            _, position = _varint(view, position, end)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            size, value = _varint(view, position, end)
            position, number = value + size, key >> 3
        elif wire_type == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {begin}")
        if position > end:
            raise ValueError(f"the field at byte {begin} ends behind its message")
        yield begin, number, value, position


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the low ones first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"no number ends at byte {position}")
