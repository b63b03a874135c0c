# SPDX-License-Identifier: Apache-2.0
"""Reading the GGUF container with NumPy alone.

A file is, little-endian: "GGUF", a uint32 version, uint64 counts of tensors and of metadata, the
metadata (a key, a type and a value each), the tensors' entries (a name, dimensions, a type and an
offset each), and from the next multiple of the alignment on the tensors' bytes. A string is a
uint64 length and UTF-8. Dimensions are stored innermost first.

Nothing in a file is believed before it is compared with the size of the file, so that what is
allocated stays in proportion to it.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np

from nibblas._arrays import Array
from nibblas.io._mapping import map_file, release_pages

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4
MAX_NAME = 1 << 16
"""Bytes, for keys of metadata and names of tensors. The format asks for less."""
MAX_NESTING = 8
"""Arrays of arrays of ..., where the files that exist have one level."""

# Elements and bytes of a block, by the number that a file has for the type.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_VALUE_BYTES = {
    **{number: dtype.itemsize for number, dtype in _NUMBERS.items()},
    _BOOL: 1,
    _STRING: 8,  # at least: an empty one
    _ARRAY: 12,
}


class Tensor(NamedTuple):
    """A tensor's entry: its shape as NumPy has it, and where its bytes lie in the file."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufReader:
    """A file, mapped into memory; its whole header is checked when it is opened.

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
            self._size = os.fstat(file.fileno()).st_size
            if self._size < 24:
                raise self.error(f"expected at least 24 bytes, got {self._size}")
            self._map = map_file(file, self._size)
        self._at = 0
        self.version = self._read_version()
        tensors, keys = self._number("Q", "tensor_count"), self._number("Q", "metadata_kv_count")
        self._check_count(tensors, 24, "tensor_count")
        self._check_count(keys, 13, "metadata_kv_count")
        self.metadata = self._read_metadata(keys)
        self.alignment = self._find_alignment()
        self.tensors = self._read_tensors(tensors)

    def error(self, message: str) -> ValueError:
        """A ValueError that names this file."""
        return ValueError(f"{self.path}: {message}")

    def raw(self, name: str) -> Array:
        """The bytes of a tensor: a read-only view of the mapped file."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.end - tensor.begin, tensor.begin)

    def release(self) -> None:
        """Give up the memory of what was read so far: it is read anew where it is used again."""
        release_pages(self._map)

    def _skip(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin, if the file has them."""
        start = self._at
        if size > self._size - start:
            raise self.error(
                f"{what}: expected {size} bytes at {start}, but the file has {self._size}: "
                "is it truncated?"
            )
        self._at = start + size
        return start

    def _number(self, code: str, what: str) -> int:
        start = self._skip(struct.calcsize(code), what)
        value: int = struct.unpack_from("<" + code, self._map, start)[0]
        return value

    def _bytes(self, what: str, limit: int | None = None) -> bytes:
        size = self._number("Q", f"{what}: length")
        if limit is not None and size > limit:
            raise self.error(f"{what}: length: expected at most {limit}, got {size}")
        start = self._skip(size, what)
        return self._map[start : start + size]

    def _name(self, what: str) -> str:
        text = self._bytes(what, MAX_NAME)
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what}: expected UTF-8, got {text[:40]!r}") from None

    def _check_count(self, count: int, least: int, what: str) -> None:
        """Every one of `count` things takes at least so many bytes of what is left."""
        left = self._size - self._at
        if count > left // least:
            raise self.error(
                f"{what}: {count} of at least {least} bytes each do not fit into the {left} bytes "
                "that follow"
            )

    def _read_version(self) -> int:
        magic = self._map[self._skip(4, "magic") : self._at]
        if magic != b"GGUF":
            raise self.error(f"magic: expected b'GGUF', got {magic!r}")
        version = self._number("I", "version")
        if version not in VERSIONS:
            if version != 0 and version & 0xFFFF == 0:
                raise self.error("it is big-endian: only little-endian files can be read")
            raise self.error(f"version: expected 2 or 3, got {version}")
        return version

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self._name(f"metadata {index}: key")
            if key in metadata:
                raise self.error(f"metadata {key!r}: stands in the file twice")
            what = f"metadata {key!r}"
            metadata[key] = self._value(self._number("I", f"{what}: type"), what, 0)
        parts = metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise self.error(
                f"metadata 'split.count': it is one of {parts} parts of a model: merge them first, "
                "for example with llama-gguf-split --merge"
            )
        return metadata

    def _value(self, kind: int, what: str, depth: int) -> Any:
        if kind in _NUMBERS:
            start = self._skip(_NUMBERS[kind].itemsize, what)
            return np.frombuffer(self._map, _NUMBERS[kind], 1, start)[0].item()
        if kind == _BOOL:
            value = self._number("B", what)
            if value > 1:
                raise self.error(f"{what}: expected a bool, 0 or 1, got {value}")
            return bool(value)
        if kind == _STRING:
            # Some models have tokens that are no UTF-8; this keeps their bytes.
            return self._bytes(what).decode("utf-8", "surrogateescape")
        if kind != _ARRAY:
            raise self.error(f"{what}: type: expected 0 to 12, got {kind}")
        if depth == MAX_NESTING:
            raise self.error(f"{what}: arrays are nested in more than {MAX_NESTING} levels")
        kind = self._number("I", f"{what}: type of its elements")
        count = self._number("Q", f"{what}: length")
        if kind not in _VALUE_BYTES:
            raise self.error(f"{what}: type of its elements: expected 0 to 12, got {kind}")
        self._check_count(count, _VALUE_BYTES[kind], what)
        if kind in _NUMBERS and count:
            start = self._skip(count * _NUMBERS[kind].itemsize, what)
            return np.frombuffer(self._map, _NUMBERS[kind], count, start).copy()
        return [self._value(kind, what, depth + 1) for _ in range(count)]

    def _find_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        is_power = type(alignment) is int and alignment > 0 and alignment & (alignment - 1) == 0
        if not is_power or not 8 <= alignment <= MAX_ALIGNMENT:
            found = repr(alignment)[:80]
            raise self.error(
                "metadata 'general.alignment': expected a power of two from 8 to "
                f"{MAX_ALIGNMENT}, got {found}"
            )
        return int(alignment)

    def _read_tensors(self, count: int) -> dict[str, Tensor]:
        entries: dict[str, Tensor] = {}
        for index in range(count):
            name = self._name(f"tensor {index}: name")
            if name in entries:
                raise self.error(f"tensor {name!r}: name: stands in the file twice")
            entries[name] = self._entry(f"tensor {name!r}")
        start = -(-self._at // self.alignment) * self.alignment
        last = 0
        for name, tensor in sorted(entries.items(), key=lambda item: item[1][2:]):
            if tensor.begin % self.alignment:
                raise self.error(
                    f"tensor {name!r}: offset: expected a multiple of {self.alignment}, "
                    f"got {tensor.begin}"
                )
            if tensor.begin < last:
                raise self.error(
                    f"tensor {name!r}: offset: expected at least {last}, where the tensor before "
                    f"it ends, got {tensor.begin}"
                )
            last = tensor.end
            if start + last > self._size:
                raise self.error(
                    f"tensor {name!r}: offset: its bytes end at {start + last}, but the file has "
                    f"{self._size}: is it truncated?"
                )
        return {
            name: t._replace(begin=start + t.begin, end=start + t.end)
            for name, t in entries.items()
        }

    def _entry(self, what: str) -> Tensor:
        """With begin and end counted from where the data starts."""
        ndim = self._number("I", f"{what}: n_dims")
        if ndim > MAX_DIMS:
            raise self.error(f"{what}: n_dims: expected at most {MAX_DIMS}, got {ndim}")
        dims = [self._number("Q", f"{what}: dims") for _ in range(ndim)]
        number = self._number("I", f"{what}: type")
        begin = self._number("Q", f"{what}: offset")
        if number not in TYPES:
            raise self.error(f"{what}: type: {number} is none that is known")
        name, elements, size = TYPES[number]
        # 2^62: so that sizes are ordinary numbers.
        if any(dim >> 62 for dim in dims) or math.prod(dims) >> 62:
            raise self.error(f"{what}: dims: {dims} are too large for any file")
        if (dims[0] if dims else 1) % elements:
            raise self.error(
                f"{what}: dims: the first must be a multiple of {elements} for {name}, got {dims}"
            )
        end = begin + math.prod(dims) // elements * size
        return Tensor(name, tuple(reversed(dims)), begin, end)
