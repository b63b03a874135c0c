# SPDX-License-Identifier: Apache-2.0
"""ONNX: the weights of MatMulNBits, ONNX Runtime's operator for low-bit matrices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nibblas._arrays import FLOAT_TYPES, Array, as_array
from nibblas.io._fields import byte_array, size_argument, unpack_fields
from nibblas.io._onnx_file import OnnxReader
from nibblas.io._source import Entry, Source, with_zero_points
from nibblas.io.safetensors import TensorSpec
from nibblas.packing import pack
from nibblas.schemes import MIN_GROUP
from nibblas.weights import PackedWeight

__all__ = ["OnnxFile", "from_matmul_nbits", "load"]

BITS = (2, 4, 8)


def from_matmul_nbits(
    B: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    *,
    N: int,
    K: int,
    bits: int,
    block_size: int,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack the weight of a MatMulNBits node; no value changes.

    A value is ``(code - zero_point) * scale``. The arguments are called as in the operator; the
    shapes below may also be flat, or have their last two sizes as one.

    Parameters
    ----------
    B : uint8 ndarray
        (N, G, block_size * bits / 8) with G = ceil(K / block_size); in a byte the first code is in
        the lowest bits. Codes beyond K are ignored.
    scales : ndarray
        (N, G) float32, float16 or bfloat16. May be negative.
    zero_points : ndarray, optional
        (N, ceil(G * bits / 8)) uint8, packed like the codes; or (N, G) floats. None is
        ``2**(bits - 1)``.
    g_idx : int32 ndarray, optional
        (K,), or padded to whole blocks: the block of each input. Inputs are sorted by it here.
    N, K, bits, block_size : int
        Attributes of the node. bits is 2, 4 or 8, block_size a power of two from 16 up.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K): "int2", "int4" or "int8" if there are no zero points, else "uint2" to "uint8".

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        A number or a shape is not as said, or blocks of g_idx are not of one size.

    Examples
    --------
    >>> B, scales = np.full((1, 1, 8), 0x9A, np.uint8), np.ones((1, 1), np.float32)
    >>> w = nibblas.io.onnx.from_matmul_nbits(B, scales, N=1, K=16, bits=4, block_size=16)
    >>> w.dequantize()[0, :3]
    array([2., 1., 2.], dtype=float32)
    """
    node = _Node.of(N, K, bits, block_size)
    parts = node.parts(B, scales, zero_points)
    return node.pack(parts, g_idx, num_threads)


class _Parts(NamedTuple):
    """The arrays of a node, with a row for each output."""

    codes: Array
    scales: Array
    zero_points: Array | None

    def rows(self, start: int, stop: int) -> _Parts:
        zeros = self.zero_points
        zeros = zeros if zeros is None else zeros[start:stop]
        return _Parts(self.codes[start:stop], self.scales[start:stop], zeros)


class _Node(NamedTuple):
    """The attributes of a node, checked."""

    rows: int
    depth: int
    bits: int
    block_size: int

    @classmethod
    def of(cls, rows: Any, depth: Any, bits: Any, block_size: Any) -> _Node:
        bits = size_argument(bits, "bits")
        if bits not in BITS:
            raise ValueError(f"bits must be 2, 4 or 8, got {bits}")
        block_size = size_argument(block_size, "block_size", MIN_GROUP)
        if block_size & (block_size - 1):
            raise ValueError(f"block_size must be a power of two, got {block_size}")
        return cls(size_argument(rows, "N"), size_argument(depth, "K", 1), bits, block_size)

    @property
    def blocks(self) -> int:
        return -(-self.depth // self.block_size)

    def parts(self, codes: Any, scales: Any, zero_points: Any) -> _Parts:
        blob = self.block_size * self.bits // 8
        packed = self._matrix(byte_array(codes, "B"), "B", (self.blocks, blob))
        factors = as_array(scales, "scales")
        if factors.dtype.name not in FLOAT_TYPES:
            raise TypeError(f"scales must be {' or '.join(FLOAT_TYPES)}, got {factors.dtype}")
        factors = self._matrix(factors, "scales", (self.blocks,))
        if zero_points is None:
            return _Parts(packed, factors, None)
        zeros = as_array(zero_points, "zero_points")
        if zeros.dtype == np.uint8:
            zeros = self._matrix(zeros, "zero_points", (-(-self.blocks * self.bits // 8),))
        elif zeros.dtype.name in FLOAT_TYPES:
            zeros = self._matrix(zeros, "zero_points", (self.blocks,))
        else:
            raise TypeError(
                f"zero_points must be uint8 or {' or '.join(FLOAT_TYPES)}, got {zeros.dtype}"
            )
        return _Parts(packed, factors, zeros)

    def _matrix(self, array: Array, name: str, shape: tuple[int, ...]) -> Array:
        size = int(np.prod(shape, dtype=object))
        if array.shape not in ((self.rows, *shape), (self.rows, size), (self.rows * size,)):
            raise ValueError(
                f"{name} must have shape {(self.rows, *shape)} for N={self.rows}, K={self.depth}, "
                f"bits={self.bits}, block_size={self.block_size}; got {array.shape}"
            )
        return array.reshape(self.rows, size)

    def zero_points(self, parts: _Parts) -> Array | None:
        """One for each block: integers or floats."""
        zeros = parts.zero_points
        if zeros is not None and zeros.dtype == np.uint8:
            return unpack_fields(zeros, self.bits, self.blocks)
        return zeros

    def pack(self, parts: _Parts, g_idx: Any, num_threads: int | None = None) -> PackedWeight:
        codes = unpack_fields(parts.codes, self.bits, self.depth)
        zeros = self.zero_points(parts)
        if zeros is None:
            codes = (codes - np.uint8(1 << (self.bits - 1))).view(np.int8)  # modulo 256
        return pack(
            codes,
            parts.scales,
            zeros,
            scheme=f"{'int' if zeros is None else 'uint'}{self.bits}",
            group_size=self.block_size,
            group_index=None if g_idx is None else self._group_index(g_idx),
            num_threads=num_threads,
        )

    def _group_index(self, g_idx: Any) -> Array:
        index = as_array(g_idx, "g_idx")
        padded = self.blocks * self.block_size
        if index.shape not in ((self.depth,), (padded,)):
            raise ValueError(
                f"g_idx must have shape ({self.depth},) or ({padded},), got {index.shape}"
            )
        return index[: self.depth]


class _Use(NamedTuple):
    """A node and the names of its constant inputs; "" where there is none."""

    node: _Node
    codes: str
    scales: str
    zero_points: str
    g_idx: str


class OnnxFile(Source):
    """The constant tensors of an ONNX file by name, made when they are asked for; see `load`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._reader = OnnxReader(path)
        self._uses = self._find_uses()
        hidden = {name for use in self._uses.values() for name in use[2:]}
        self._names = dict.fromkeys(n for n in self._reader.initializers if n not in hidden)
        self._one_zero: dict[str, bool] = {}
        self._transposed = {
            node.input[1]
            for node in _nodes(self._reader.model.graph)
            if node.domain in ("", "ai.onnx") and len(node.input) > 1 and _takes_transposed(node)
        }

    @property
    def metadata(self) -> dict[str, Any]:
        """The model's producer, versions and properties."""
        model = self._reader.model
        return {
            "producer_name": model.producer_name,
            "producer_version": model.producer_version,
            "ir_version": model.ir_version,
            "opset_import": {entry.domain: entry.version for entry in model.opset_import},
            "metadata_props": {entry.key: entry.value for entry in model.metadata_props},
        }

    def describe(self, name: str) -> Entry:
        """What the tensor is, without reading its data; KeyError if there is none."""
        tensor = self._reader.initializers[self._known(name)]
        use = self._uses.get(name)
        if use is None:
            return Entry("array", tensor.type, tensor.shape, tensor.nbytes)
        node = use.node
        nbytes = sum(self._reader.initializers[part].nbytes for part in use[1:] if part)
        return Entry("weight", f"MatMulNBits-{node.bits}bit", (node.rows, node.depth), nbytes)

    def __getitem__(self, name: str) -> PackedWeight | Array:
        if self._known(name) not in self._uses:
            return self._reader.array(name)
        return self._pack(name, 0, self._uses[name].node.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def rows(self, name: str, start: int, stop: int) -> PackedWeight:
        """The outputs from `start`, a multiple of 16, to `stop` of a weight, as a weight."""
        self.check_rows(name, start, stop)
        weight = self._pack(name, start, stop)
        if self._uses[name].zero_points and not self._one_zero[name]:
            return with_zero_points(weight)
        return weight

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """An array's entry in a safetensors file, and its bytes."""
        if self._known(name) in self._uses:
            raise TypeError(f"tensor {name!r} is a packed weight, no array")
        return self._reader.stored(name)

    def is_transposed(self, name: str) -> bool:
        """Whether an array is (K, N): what MatMul multiplies by, and Gemm without transB."""
        return name in self._transposed

    def release(self) -> None:
        """Give up the memory of what was read of mapped files so far."""
        self._reader.release()

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name

    def _pack(self, name: str, start: int, stop: int) -> PackedWeight:
        use = self._uses[name]
        codes, scales, zeros, g_idx = (
            self._reader.array(part) if part else None for part in use[1:]
        )
        try:
            parts = use.node.parts(codes, scales, zeros)
            if name not in self._one_zero:
                values = use.node.zero_points(parts)
                self._one_zero[name] = (
                    values is not None and values.size > 0 and values.dtype == np.uint8
                ) and bool((values == values.flat[0]).all())
            return use.node.pack(parts.rows(start, stop), g_idx)
        except (TypeError, ValueError) as error:
            raise self._reader.error(f"tensor {name!r}: {error}") from None

    def _find_uses(self) -> dict[str, _Use]:
        uses: dict[str, _Use] = {}
        known = self._reader.initializers
        for node in _nodes(self._reader.model.graph):
            if node.op_type != "MatMulNBits" or node.domain != "com.microsoft":
                continue
            inputs = [*node.input, "", "", "", ""][1:5]
            if not (inputs[0] and inputs[1]) or any(n and n not in known for n in inputs):
                continue  # what is computed is no constant
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            try:
                if numbers.get("weight_prepacked"):
                    raise ValueError("weight_prepacked: cannot read weights packed for a GPU")
                attributes = _Node.of(
                    numbers.get("N", 0),
                    numbers.get("K", 0),
                    numbers.get("bits", 4),
                    numbers.get("block_size", 0),
                )
                use = _Use(attributes, *inputs)
                if uses.setdefault(inputs[0], use) != use:
                    raise ValueError("two nodes read it in different ways")
            except ValueError as error:
                raise self._reader.error(f"tensor {inputs[0]!r}: {error}") from None
        return uses


def _takes_transposed(node: Any) -> bool:
    if node.op_type == "Gemm":
        return not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return bool(node.op_type == "MatMul")


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, those in branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def load(path: str | os.PathLike[str]) -> OnnxFile:
    """Open an ONNX model.

    Needs the package ``onnx``: ``pip install nibblas[onnx]``.

    Parameters
    ----------
    path : str or path
        The model. Its external data must be in its folder or below.

    Returns
    -------
    OnnxFile
        A mapping from the names of initializers to tensors. The files are mapped into memory; each
        tensor is made anew whenever it is asked for. The codes of a MatMulNBits node (its input B)
        become a PackedWeight, see `from_matmul_nbits`; their scales, zero points and g_idx are
        left out. All others become read-only arrays.

    Raises
    ------
    ImportError
        The package onnx is not installed.
    ValueError
        The file is damaged; the message names file and tensor. A tensor of a type that NumPy does
        not have raises it when it is asked for.
    OSError
        A file cannot be read.
    """
    return OnnxFile(path)
