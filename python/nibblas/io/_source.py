# SPDX-License-Identifier: Apache-2.0
"""What the files that are read tensor by tensor have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from nibblas._arrays import Array
from nibblas._planes import join_nibbles, to_panels
from nibblas.io.safetensors import TensorSpec, spec_of
from nibblas.schemes import PANEL, get_scheme, group_count
from nibblas.weights import PackedWeight, make_weight

PER_GROUP = ("scales", "zero_points", "mins", "super_scales", "super_mins")
"""Planes whose padding is 0."""

Value: TypeAlias = PackedWeight | Array | list[PackedWeight]
"""A tensor of a source: a list where a weight has experts, one matrix for each."""


class Entry(NamedTuple):
    """A tensor of a source, known without reading its data."""

    kind: Literal["weight", "array"]
    type: str
    """The format's own name, such as "Q4_K", "F16" or "gptq-4bit"."""
    shape: tuple[int, ...]
    nbytes: int
    """Bytes in the file."""

    @property
    def bits_per_element(self) -> float:
        """8 * nbytes / the number of elements; 0 if there are none."""
        count = math.prod(self.shape)
        return 8 * self.nbytes / count if count else 0.0


class Source(Mapping[str, Value]):
    """A checkpoint: a mapping from names to packed weights and arrays.

    A value is made when it is asked for, and not kept: asking twice reads twice.
    """

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says besides its tensors; a copy."""
        return {}

    @abstractmethod
    def describe(self, name: str) -> Entry:
        """What the tensor is, without reading its data; KeyError if there is none."""

    @abstractmethod
    def __getitem__(self, name: str) -> Value: ...

    @abstractmethod
    def __iter__(self) -> Iterator[str]: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool:
        # Mapping's own would make the value to find out.
        return any(name == known for known in self)

    def rows(self, name: str, start: int, stop: int) -> PackedWeight:
        """The outputs from `start`, a multiple of 16, to `stop` of a weight, as a weight.

        The pieces of a weight have one scheme, group_size, zero, input_order and codebook, so that
        the other planes one after the other are those of the whole.
        """
        raise TypeError(f"tensor {name!r} has no rows that can be read one by one")

    def experts(self, name: str) -> Iterator[PackedWeight]:
        """The matrices of a weight with more than two dimensions, each made when it is due."""
        value = self[name]
        if not isinstance(value, list):
            raise TypeError(f"tensor {name!r} is no list of matrices")
        return iter(value)

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """A tensor that is an array as safetensors stores it: its type and shape, and its bytes."""
        array = self[name]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"tensor {name!r} is a packed weight, no array")
        return spec_of(array), array

    def is_transposed(self, name: str) -> bool:
        """Whether an array is (K, N), so that as a weight it must be turned to (N, K)."""
        return False

    def release(self) -> None:
        """Give up the memory of what was read of mapped files so far, if the system can."""

    def check_rows(self, name: str, start: int, stop: int) -> None:
        """The checks of `rows`: TypeError if it is no weight, ValueError for other rows."""
        entry = self.describe(name)
        if entry.kind != "weight" or len(entry.shape) != 2:
            raise TypeError(f"tensor {name!r} is no packed weight: it has no rows")
        if not 0 <= start <= stop <= entry.shape[0] or start % PANEL:
            raise ValueError(
                f"tensor {name!r}: expected rows from a multiple of {PANEL} to at most "
                f"{entry.shape[0]}, got {start} to {stop}"
            )


def with_zero_points(weight: PackedWeight) -> PackedWeight:
    """The weight with a plane of zero points, if one zero serves all of its groups.

    `pack` finds such a zero by itself. A piece of a weight must not have it where others do not.
    """
    scheme = get_scheme(weight.scheme)
    if "zero_point" not in scheme.offsets or weight.offset != "symmetric":
        return weight
    cols, depth = weight.shape
    values = np.full((cols, group_count(depth, weight.group_size)), weight._zero, np.uint8)
    plane = to_panels(values, weight.planes["scales"].shape[1])
    planes = {**weight.planes, "zero_points": join_nibbles(plane) if scheme.nibble_zeros else plane}
    return make_weight(scheme, weight.shape, weight.group_size, planes, scheme.zero)


def slice_rows(weight: PackedWeight, start: int, stop: int) -> PackedWeight:
    """The outputs from `start`, a multiple of 16, to `stop`: a weight that shares the planes."""
    if (start, stop) == (0, weight.shape[0]):
        return weight
    panels = slice(start // PANEL, -(-stop // PANEL))
    planes = {}
    for name, plane in weight.planes.items():
        piece = plane if plane.ndim == 1 else plane[panels]
        if stop % PANEL and stop < weight.shape[0] and name in PER_GROUP:
            piece = piece.copy()  # outputs of the weight are padding of the piece
            piece[-1, :, stop % PANEL :] = 0
        planes[name] = piece
    return make_weight(
        get_scheme(weight.scheme),
        (stop - start, weight.shape[1]),
        weight.group_size,
        planes,
        weight._zero,
        weight.tensor_scale,
        weight.tensor_divisor,
    )
