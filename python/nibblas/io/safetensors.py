# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the safetensors container with NumPy alone.

A file is an 8-byte little-endian length, a JSON header of that many bytes, and the tensors' bytes.
The header maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, counted from the end
of the header; "__metadata__" maps strings to strings. Tensors follow each other without holes.

So that a mapped file can be computed with as it stands, the writer starts every tensor at a
multiple of 64 bytes: spaces fill the header, and where a tensor's size is no multiple of 64, a
small tensor of zeros named "__padding__N" follows it. Other programs see that one as a tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from nibblas._arrays import ALIGNMENT, Array, aligned_copy
from nibblas.io._mapping import map_file, release_pages

PADDING = "__padding__"
"""What the names of the writer's padding tensors begin with."""

METADATA = "__metadata__"

MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""

# Bits of an element. Those of less than a byte must fill whole bytes together.
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

NUMPY_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

# Of the package ml_dtypes.
EXTENSION_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
}


class Tensor(NamedTuple):
    """A tensor's entry in the header; begin and end count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A file, mapped into memory; every entry of its header is checked when it is opened.

    Raises
    ------
    ValueError
        The file is not what the format asks for; the message names file, tensor and field.
    OSError
        It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise self.error(f"a file of {size} bytes holds no header length of 8")
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, MAX_HEADER):
                raise self.error(f"header length {length}, in a file of {size} bytes")
            header = file.read(length)
            self._map = map_file(file, size)
        self._bytes = np.frombuffer(self._map, np.uint8)[8 + length :]
        self.metadata, self.tensors = self._parse(header)
        self._check_offsets()

    def error(self, message: str) -> ValueError:
        """A ValueError that names this file."""
        return ValueError(f"{self.path}: {message}")

    def raw(self, name: str) -> Array:
        """The bytes of a tensor: a read-only view of the mapped file."""
        tensor = self.tensors[name]
        return self._bytes[tensor.begin : tensor.end]

    def array(self, name: str) -> Array:
        """A tensor as a read-only array: a view of the mapped file.

        A copy only where the file starts it at an address that its type cannot have.

        Raises
        ------
        ImportError
            Its type is one of ml_dtypes, which is not installed.
        ValueError
            NumPy has no such type, nor has ml_dtypes.
        """
        dtype = self._numpy_dtype(name)
        array = self.raw(name).view(dtype).reshape(self.tensors[name].shape)
        if not array.flags.aligned:
            array = aligned_copy(array)
            array.flags.writeable = False
        return array

    def release(self) -> None:
        """Give up the memory of what was read so far: it is read anew where it is used again."""
        release_pages(self._map)

    def _numpy_dtype(self, name: str) -> np.dtype[Any]:
        dtype = self.tensors[name].dtype
        if dtype in NUMPY_DTYPES:
            return NUMPY_DTYPES[dtype]
        if dtype not in EXTENSION_DTYPES:
            raise self.error(f"tensor {name!r}: NumPy has no type for dtype {dtype}")
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(
                f"{self.path}: tensor {name!r} is {dtype}, which NumPy does not have: "
                "pip install nibblas[ml_dtypes]"
            ) from None
        return np.dtype(getattr(ml_dtypes, EXTENSION_DTYPES[dtype]))

    def _parse(self, header: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
        try:
            entries = parse_object(header.decode("utf-8"))
        except ValueError as error:
            raise self.error(f"the header is not JSON as expected: {error}") from None
        metadata = entries.pop(METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self.error(f"{METADATA}: expected a map from strings to strings")
        return metadata, {name: self._tensor(name, entry) for name, entry in entries.items()}

    def _tensor(self, name: str, entry: Any) -> Tensor:
        def error(field: str, expected: str, found: Any) -> ValueError:
            found = repr(found)
            found = found if len(found) < 80 else f"{found[:80]}..."
            return self.error(f"tensor {name!r}: {field}: expected {expected}, got {found}")

        if not isinstance(entry, dict):
            raise error("entry", "an object", entry)
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
            raise error("dtype", f"one of {', '.join(DTYPE_BITS)}", dtype)
        # 2^62: so that sizes are ordinary numbers; 64: NumPy's limit.
        if not _sizes(shape) or len(shape) > 64 or any(size >> 62 for size in shape):
            raise error("shape", "at most 64 sizes", shape)
        if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise error("data_offsets", "[begin, end]", offsets)
        bits = math.prod(shape) * DTYPE_BITS[dtype]
        if bits != 8 * (offsets[1] - offsets[0]):
            raise error("data_offsets", f"{-(-bits // 8)} bytes for {dtype} {shape}", offsets)
        return Tensor(dtype, tuple(shape), *offsets)

    def _check_offsets(self) -> None:
        size, last = len(self._bytes), 0
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1][2:]):
            if tensor.begin != last:
                kind = "a hole before it" if tensor.begin > last else "an overlap"
                raise self.error(
                    f"tensor {name!r}: data_offsets: expected to begin at {last}, "
                    f"got {tensor.begin}: {kind}"
                )
            if tensor.end > size:
                raise self.error(
                    f"tensor {name!r}: data_offsets: ends at {tensor.end}, but the file has "
                    f"{size} bytes of data: is it truncated?"
                )
            last = tensor.end
        if last != size:
            raise self.error(f"{size - last} bytes of data belong to no tensor")


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object without floats whose keys are all different; else ValueError."""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_not_here, parse_float=_not_here
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} stands in it twice")
        key.encode()  # a lone surrogate is no text: UnicodeEncodeError, a ValueError
        result[key] = value
    return result


def _not_here(text: str) -> Any:
    raise ValueError(f"{text} is no number for sizes")


class TensorSpec(NamedTuple):
    """What a tensor to be written will be."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def spec_of(array: Array) -> TensorSpec:
    """The spec of an array; TypeError if the format has no such type."""
    name = _NAMES.get(array.dtype)
    if name is None:
        extension = {v: k for k, v in EXTENSION_DTYPES.items()}
        name = extension.get(array.dtype.name)
    if name is None or not array.dtype.isnative:
        raise TypeError(f"safetensors has no type for {array.dtype!r}")
    return TensorSpec(name, array.shape)


def layout(specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Where each tensor goes, padding tensors among them.

    Tensors whose size is a multiple of 64 come first, so that few need padding.
    """
    entries: dict[str, Tensor] = {}
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0):
        gap = -end % ALIGNMENT
        if gap:
            entries[f"{PADDING}{len(entries)}"] = Tensor("U8", (gap,), end, end + gap)
            end += gap
        entries[name] = Tensor(*spec, end, end + spec.nbytes)
        end += spec.nbytes
    return entries


class Writer:
    """Writes a file tensor by tensor, in any order; it appears under its name when complete.

    Used in a ``with`` block. If that ends with an error, there is no trace of the file, and one
    that had the name before is as it was.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
    ) -> None:
        for name in specs:
            if name == METADATA or name.startswith(PADDING):
                raise ValueError(f"a tensor cannot have the reserved name {name!r}")
        self._entries = layout(specs)
        self._missing = {name: spec.nbytes for name, spec in specs.items()}
        self._path = os.path.realpath(os.fsdecode(path))
        if os.path.exists(self._path) and not os.path.isfile(self._path):
            raise ValueError(f"{self._path} is not a regular file")
        header = json.dumps(
            {
                METADATA: dict(metadata),
                **{
                    name: {"dtype": t.dtype, "shape": t.shape, "data_offsets": (t.begin, t.end)}
                    for name, t in self._entries.items()
                },
            },
            separators=(",", ":"),
        ).encode()
        self._header = header + b" " * (-(8 + len(header)) % ALIGNMENT)
        if len(self._header) > MAX_HEADER:
            raise ValueError(f"a header of {len(self._header)} bytes, at most {MAX_HEADER} may be")

    def __enter__(self) -> Writer:
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, f".{name[:100]}.{os.urandom(6).hex()}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._temporary, flags, 0o666), "wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        for name, tensor in self._entries.items():
            if name.startswith(PADDING):
                self._seek(tensor)
                self._file.write(bytes(tensor.end - tensor.begin))
        return self

    def write(self, name: str, array: Array) -> None:
        """Write the bytes of one tensor; `array` may have any type of its size."""
        tensor = self._entries[name]
        if array.nbytes != tensor.end - tensor.begin:
            raise ValueError(
                f"tensor {name!r}: expected {tensor.end - tensor.begin} bytes, got {array.nbytes}"
            )
        self.write_piece(name, 0, array)

    def write_piece(self, name: str, start: int, array: Array) -> None:
        """Write the bytes of a tensor from its byte `start` on.

        Pieces may come in any order, but each byte once: a tensor is complete when as many have
        come as it has.
        """
        tensor = self._entries[name]
        if not 0 <= start <= tensor.end - tensor.begin - array.nbytes:
            raise ValueError(
                f"tensor {name!r}: {array.nbytes} bytes from {start} on, of "
                f"{tensor.end - tensor.begin}"
            )
        self._seek(tensor, start)
        if array.nbytes:
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._missing[name] -= array.nbytes
        if not self._missing[name]:
            del self._missing[name]

    def _seek(self, tensor: Tensor, start: int = 0) -> None:
        self._file.seek(8 + len(self._header) + tensor.begin + start)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._file:
                if error is None:
                    if self._missing:
                        raise ValueError(f"tensor {min(self._missing)!r} was not written")
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if error is None:
                if os.path.exists(self._path):
                    os.chmod(self._temporary, os.stat(self._path).st_mode & 0o777)
                os.replace(self._temporary, self._path)
        finally:
            if os.path.lexists(self._temporary):
                os.unlink(self._temporary)


def write(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, TensorSpec, Array]],
    metadata: Mapping[str, str],
) -> None:
    """Write a file from arrays in memory."""
    tensors = list(tensors)
    with Writer(path, {name: spec for name, spec, _ in tensors}, metadata) as writer:
        for name, _, array in tensors:
            writer.write(name, array)
