# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every format, as the commands read and copy them."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from nibblas._arrays import Array
from nibblas.cli import _text
from nibblas.io._packed_source import PackedSource
from nibblas.io._source import Entry, Source
from nibblas.io.packed import KEY, describe, encode_description, plane_spec, tensor_name
from nibblas.io.safetensors import NUMPY_DTYPES, TensorSpec, Writer, spec_of
from nibblas.runtime import get_num_threads, set_num_threads
from nibblas.schemes import PANEL, PlaneSpec
from nibblas.weights import PackedWeight

CODES = 1 << 22
"""Codes that are converted at a time. It takes a few bytes for each."""

# How names of tensors end in the checkpoints of other tools' low-bit weights.
_ENDS = (
    ".qweight",
    ".weight_packed",
    ".weight_scale",
    ".W_q",
    "_blocks",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)


def open_source(path: str) -> Source:
    """The source of a .gguf or .onnx file, a Hugging Face folder, or any other safetensors file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".gguf":
        from nibblas.io import gguf

        return gguf.load(path)
    if suffix == ".onnx":
        from nibblas.io import onnx

        return onnx.load(path)
    if not os.path.isdir(path):
        source = PackedSource(path)
        is_foreign = any(name.endswith(_ENDS) for name in source)
        if KEY in source.file.metadata or not is_foreign:
            return source
    from nibblas.io.checkpoint import load_checkpoint

    return load_checkpoint(path)


def add_patterns(parser: Any, include: str, exclude: str) -> None:
    """The options --include and --exclude; the texts say what they do."""
    for option, what in (("--include", include), ("--exclude", exclude)):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{what} tensors whose name matches, such as '*.mlp.*'; may be repeated",
        )


def is_chosen(name: str, arguments: Any) -> bool:
    """Whether a name matches --include, if that is given, and not --exclude."""

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return matches(arguments.include or ["*"]) and not matches(arguments.exclude)


def text_metadata(source: Source) -> dict[str, str]:
    """A source's metadata as safetensors takes it; lists, such as a tokenizer's, are left out."""
    found = {}
    for key, value in source.metadata.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str):
            # GGUF files may have text that is not UTF-8.
            found[key] = value.encode("utf-8", "replace").decode()
        elif isinstance(value, bool | int | float | dict):
            found[key] = json.dumps(value)
    found.pop(KEY, None)
    return found


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for what is done inside; None for as many as are set."""
    before = get_num_threads()
    if count is not None:
        set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


class Part(Protocol):
    """What writes the planes of a packed weight."""

    def write(self, writer: Writer) -> None: ...


class Output:
    """A file to be written: its tensors are listed first, then written."""

    def __init__(self) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self.descriptions: dict[str, dict[str, Any]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    def add(self, name: str, spec: TensorSpec) -> None:
        """List an array, or a plane."""
        if name in self.specs:
            raise ValueError(f"two tensors would have the name {name!r}")
        self.specs[name] = spec

    def add_planes(
        self, name: str, planes: dict[str, TensorSpec], description: dict[str, Any]
    ) -> None:
        """List a packed weight."""
        for plane, spec in planes.items():
            self.add(tensor_name(name, plane), spec)
        if name in self.specs:
            raise ValueError(f"a packed weight and a tensor would have the name {name!r}")
        self.descriptions[name] = description

    def add_weight(self, name: str, weight: PackedWeight, rows: int) -> None:
        """List a packed weight of so many rows, of which `weight` is a piece."""
        panels = -(-rows // PANEL)
        planes = {}
        for plane, array in weight.planes.items():
            spec = plane_spec(plane, array)
            whole = spec.shape if array.ndim == 1 else (panels, *spec.shape[1:])
            planes[plane] = spec._replace(shape=whole)
        self.add_planes(name, planes, {**describe(weight), "shape": (rows, weight.shape[1])})

    def writer(self, path: str, metadata: dict[str, str]) -> Writer:
        """The writer of the file, once all is listed."""
        return Writer(path, self.specs, {**metadata, KEY: encode_description(self.descriptions)})

    def write_all(
        self, path: str, source: Source, found: Mapping[str, Entry], parts: Mapping[str, Part]
    ) -> None:
        """Write the file: `parts` write themselves, all else of `found` is copied."""
        with (
            _text.Progress(sum(entry.nbytes for entry in found.values())) as progress,
            self.writer(path, text_metadata(source)) as writer,
        ):
            for name, entry in found.items():
                progress.step(name, entry.nbytes)
                if name in parts:
                    parts[name].write(writer)
                else:
                    writer.write(name, source.stored(name)[1])
                source.release()

    def write_piece(self, writer: Writer, name: str, start: int, weight: PackedWeight) -> None:
        """Write the rows of a weight from `start` on."""
        rows = self.descriptions[name]["shape"][0]
        found = {**describe(weight), "shape": (rows, weight.shape[1])}
        if found != self.descriptions[name]:
            raise ValueError(f"tensor {name!r}: its rows from {start} on are packed differently")
        for plane, array in weight.planes.items():
            key = tensor_name(name, plane)
            if array.ndim > 1:
                panel = array[:1].nbytes
                writer.write_piece(key, start // PANEL * panel, array)
            elif start == 0:
                writer.write(key, array)


def spec_of_plane(plane: PlaneSpec) -> TensorSpec:
    """How a plane is written: bfloat16 bits in uint16 as BF16."""
    spec = spec_of(np.empty(0, plane.dtype))._replace(shape=plane.shape)
    return spec._replace(dtype="BF16") if plane.dtype == "uint16" else spec


def piece_rows(depth: int) -> int:
    """How many rows, a multiple of 16, are converted at a time."""
    return max(CODES // max(depth, 1) // PANEL, 1) * PANEL


class StoredWeight:
    """A low-bit weight of a source, to be copied exactly; with experts, one for each of them.

    Attributes
    ----------
    entry : Entry
        What the source says of it.
    names : list of str
        What is written is called.
    """

    def __init__(self, source: Source, name: str, output: Output) -> None:
        self._source, self._output = source, output
        self.name, self.entry = name, source.describe(name)
        self.names = []
        for start, key, weight in self._pieces(PANEL):
            if start == 0:
                rows = self.entry.shape[-2]
                self.names.append(key)
                output.add_weight(key, weight, rows)
            source.release()
            if self._is_matrix:
                break  # the first rows are enough to know

    def write(self, writer: Writer) -> None:
        """Write all of its rows, some at a time."""
        for start, key, weight in self._pieces(piece_rows(self.entry.shape[-1])):
            self._output.write_piece(writer, key, start, weight)
            self._source.release()

    def report(self) -> dict[str, Any]:
        """What became of it, as plain values."""
        descriptions = [self._output.descriptions[name] for name in self.names]
        nbytes = sum(
            self._output.specs[tensor_name(name, plane)].nbytes
            for name, description in zip(self.names, descriptions, strict=True)
            for plane in description["planes"]
        )
        count = math.prod(self.entry.shape)
        return {
            "name": self.name,
            "type": self.entry.type,
            "scheme": descriptions[0]["scheme"] if descriptions else None,
            "shape": self.entry.shape,
            "group_size": descriptions[0]["group_size"] if descriptions else None,
            "nbytes_before": self.entry.nbytes,
            "nbytes_after": nbytes,
            "bits_per_weight": 8 * nbytes / count if count else 0.0,
        }

    @property
    def _is_matrix(self) -> bool:
        return len(self.entry.shape) == 2

    def _pieces(self, step: int) -> Iterator[tuple[int, str, PackedWeight]]:
        """(first row, name, rows), `step` rows at a time where they can be had one by one."""
        if self._is_matrix:
            rows = self.entry.shape[0]
            for start in range(0, max(rows, 1), step):
                stop = min(start + step, rows)
                yield start, self.name, self._source.rows(self.name, start, stop)
        else:
            for i, weight in enumerate(self._source.experts(self.name)):
                yield 0, f"{self.name}.{i}", weight


class DenseMatrix:
    """A float matrix (N, K) of a source, read some rows at a time.

    Attributes
    ----------
    shape : tuple of int
        (N, K).
    dtype : str
        The type in the source: "F32", "F16" or "BF16".
    """

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name
        self._is_transposed = source.is_transposed(name)
        spec, _ = source.stored(name)
        self.dtype = spec.dtype
        rows, depth = spec.shape
        self.shape = (depth, rows) if self._is_transposed else (rows, depth)

    def pieces(self, step: int) -> Iterator[tuple[int, Array]]:
        """(first row, rows) as `quantize` takes them, in memory of their own."""
        spec, raw = self._source.stored(self._name)
        is_bfloat16 = self.dtype == "BF16"
        dtype = np.dtype("<u2") if is_bfloat16 else NUMPY_DTYPES[self.dtype]
        matrix = np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(spec.shape)
        if self._is_transposed:
            matrix = matrix.T
        for start in range(0, max(self.shape[0], 1), max(step, 1)):
            part = matrix[start : start + step]
            yield start, from_bfloat16(part) if is_bfloat16 else np.array(part, order="C")
            self._source.release()


def from_bfloat16(bits: Array) -> Array:
    """The float32 values of bfloat16 bits, which are their upper halves; needs no ml_dtypes."""
    dense = np.zeros((*bits.shape, 2), np.uint16)
    dense[..., 1] = bits
    return dense.view(np.float32)[..., 0]
