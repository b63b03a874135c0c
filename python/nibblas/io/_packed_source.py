# SPDX-License-Identifier: Apache-2.0
"""A safetensors file as a source: packed weights if nibblas has written any, and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator

from nibblas._arrays import Array, aligned_copy
from nibblas.io._source import Entry, Source
from nibblas.io.packed import KEY, read_weights
from nibblas.io.safetensors import SafetensorsFile, TensorSpec
from nibblas.schemes import PANEL, get_scheme
from nibblas.weights import PackedWeight, make_weight


class PackedSource(Source):
    """The packed weights and other tensors of a safetensors file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = SafetensorsFile(path)
        self._weights: dict[str, PackedWeight] = {}
        others = list(self.file.tensors)
        if KEY in self.file.metadata:
            self._weights, others = read_weights(self.file)
        self._names = dict.fromkeys([*self._weights, *others])

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata, without what describes packed weights."""
        return {key: value for key, value in self.file.metadata.items() if key != KEY}

    def describe(self, name: str) -> Entry:
        """What the tensor is, without reading its data; KeyError if there is none."""
        if name in self._weights:
            weight = self._weights[name]
            return Entry("weight", weight.scheme, weight.shape, weight.nbytes)
        tensor = self.file.tensors[self._known(name)]
        return Entry("array", tensor.dtype, tensor.shape, tensor.end - tensor.begin)

    def __getitem__(self, name: str) -> PackedWeight | Array:
        if name in self._weights:
            return self._weights[name]
        return self.file.array(self._known(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def weight(self, name: str) -> PackedWeight:
        """A packed weight; KeyError if there is none of that name."""
        return self._weights[name]

    def rows(self, name: str, start: int, stop: int) -> PackedWeight:
        """The outputs from `start`, a multiple of 16, to `stop` of a weight, as a weight."""
        self.check_rows(name, start, stop)
        weight = self._weights[name]
        panels = slice(start // PANEL, -(-stop // PANEL))
        planes = {
            plane: array if array.ndim == 1 else array[panels]
            for plane, array in weight.planes.items()
        }
        cut = stop % PANEL
        if cut and stop < weight.shape[0]:
            # What a panel has behind the last output must be 0.
            for plane, array in planes.items():
                if array.ndim == 3:
                    planes[plane] = aligned_copy(array)
                    planes[plane][-1, :, cut:] = 0
        return make_weight(
            get_scheme(weight.scheme),
            (stop - start, weight.shape[1]),
            weight.group_size,
            planes,
            weight._zero,
            weight.tensor_scale,
            weight.tensor_divisor,
        )

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """A tensor that is an array, of any type: its type and shape, and its bytes."""
        tensor = self.file.tensors[self._known(name)]
        return TensorSpec(tensor.dtype, tensor.shape), self.file.raw(name)

    def release(self) -> None:
        """Give up the memory of what was read of the mapped file so far."""
        self.file.release()

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name
