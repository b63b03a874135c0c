# SPDX-License-Identifier: Apache-2.0
"""What peers get and what they give: a quantized matrix, and products with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

import nibblas
from nibblas._arrays import Array
from nibblas.io import gguf


class Kind(NamedTuple):
    """How the weights of one comparison are quantized: the same codes for everybody."""

    name: str
    what: str
    scheme: str
    group_size: int | None
    blocks: str | None = None  # the type of GGUF's blocks
    integers: bool = False  # int8 by int8, without scales: int32


KINDS = {
    kind.name: kind
    for kind in (
        Kind("int8", "int8, a scale for each output", "int8", None),
        Kind("int4-g32", "int4, groups of 32", "int4", 32),
        Kind("int4-g128", "int4, groups of 128", "int4", 128),
        Kind("int4-channel", "int4, a scale for each output", "int4", None),
        Kind("q4_0", "GGUF Q4_0", "int4", 32, "Q4_0"),
        Kind("q8_0", "GGUF Q8_0", "int8", 32, "Q8_0"),
        Kind("q4_k", "GGUF Q4_K", "q4_k", 32, "Q4_K"),
        Kind("q6_k", "GGUF Q6_K", "q6_k", 16, "Q6_K"),
        Kind("integers", "int8 by int8 to int32", "int8", None, integers=True),
    )
}


class Weight:
    """One quantized matrix (N, K), in the forms that libraries take.

    Attributes
    ----------
    kind : Kind
        How it is quantized.
    packed : nibblas.PackedWeight
        Ours.
    blocks : ndarray or None
        GGUF's bytes of the same values, of the kinds that have them.
    """

    def __init__(self, kind: Kind, dense: Array, threads: int) -> None:
        self.kind = kind
        self.blocks: Array | None = None
        if kind.blocks:
            self.blocks = gguf.quantize(dense, kind.blocks, num_threads=threads)
            self.packed = gguf.from_blocks(self.blocks, kind.blocks, num_threads=threads)
        else:
            self.packed = _symmetric(dense, kind, threads)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.packed.shape

    @functools.cached_property
    def codes(self) -> Array:
        """(N, K) int8, signed: int4 from -8 to 7."""
        codes: Array = self.packed.unpack()["codes"]
        return codes

    @functools.cached_property
    def scales(self) -> Array:
        """(N, groups) float32; one for each output if the group is None."""
        return np.ascontiguousarray(self.packed.unpack()["scales"], np.float32)

    @functools.cached_property
    def dense(self) -> Array:
        """(N, K) float32: codes times scales, or of the kind "integers" the codes."""
        return self.codes.astype(np.float32) if self.kind.integers else self.packed.dequantize()

    def nibbles(self, unsigned: bool = False) -> Array:
        """4-bit codes, two in a byte, the even one in the low half: (N, K / 2) uint8."""
        codes = (self.codes + 8).astype(np.uint8) if unsigned else self.codes.view(np.uint8) & 15
        return np.ascontiguousarray(codes[:, 0::2] | (codes[:, 1::2] << 4))


def _symmetric(dense: Array, kind: Kind, threads: int) -> nibblas.PackedWeight:
    """Codes from -7 or -127 up and scales above 0, which all libraries take; ours may be below."""
    cols, depth = dense.shape
    multiple = kind.group_size or 2
    if depth % multiple:
        raise ValueError(f"{kind.name} takes a K in multiples of {multiple}, got {depth}")
    split = dense.reshape(cols, -1, kind.group_size or depth)
    largest = 7 if kind.scheme == "int4" else 127
    scales = (np.abs(split).max(axis=2) / largest).astype(np.float16)
    safe = np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.rint(split / safe[:, :, None]).clip(-largest, largest).astype(np.int8)
    return nibblas.pack(
        codes.reshape(dense.shape),
        scales,
        scheme=kind.scheme,
        group_size=kind.group_size,
        num_threads=threads,
    )


class Bound(NamedTuple):
    """A product with x in place: call it, then look at its output (rows, N).

    Keep all of it, and x, as long as it is called: libraries borrow the arrays' memory. ``whole``
    does all that a Python program does with another x each time: it hands over the array and
    returns the output as one that the next call leaves alone.
    """

    call: Callable[[], object]
    output: Callable[[], Array]
    whole: Callable[[], Array]


class Model(Protocol):
    """One copy of a weight in a library, ready for inputs of any number of rows."""

    nbytes: int

    def bind(self, x: Array) -> Bound:
        """Prepare the product with x, (rows, K)."""


class Op(NamedTuple):
    """A library's product."""

    label: str
    build: Callable[[], Model]
    dense: Array | None = None  # its weights, where it does not keep ours exactly
