# SPDX-License-Identifier: Apache-2.0
"""AWQ: 4-bit codes with a scale and a zero point for each group, in the layout called GEMM."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nibblas._arrays import Array
from nibblas.io._words import (
    check_bits,
    check_shape,
    float_array,
    group_size_of,
    matrix,
    words_array,
)
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of the eight in a word, whose code is in nibble i, the lowest one being nibble 0."""


def from_arrays(
    qweight: Array,
    qzeros: Array,
    scales: Array,
    *,
    bits: int = 4,
    group_size: int | None = None,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack an AWQ weight of the GEMM layout; no value changes.

    A value is ``(code - zero_point) * scale``. A word has the codes of eight outputs, those of the
    columns 0, 2, 4, 6, 1, 3, 5, 7 from the lowest nibble up.

    Parameters
    ----------
    qweight : int32 ndarray
        (K, N / 8).
    qzeros : int32 ndarray
        (G, N / 8).
    scales : ndarray
        (G, N) float16, float32 or bfloat16, stored as they are.
    bits : int
        4: the layout has no other.
    group_size : int, optional
        Inputs of a group. Needed only where K is no multiple of G.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K), of scheme "uint4".

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        bits is not 4, or the shapes do not fit together.

    Examples
    --------
    >>> w = nibblas.io.awq.from_arrays(
    ...     np.full((16, 1), 0x7654_3210, np.int32),
    ...     np.full((1, 1), 0x1111_1111, np.int32),
    ...     np.full((1, 8), 0.5, np.float16),
    ... )
    >>> w.dequantize()[:, 0]
    array([-0.5,  1.5,  0. ,  2. ,  0.5,  2.5,  1. ,  3. ], dtype=float32)
    """
    parts = read(qweight, qzeros, scales, bits=bits, group_size=group_size)
    return parts.pack(num_threads=num_threads)


class Parts(NamedTuple):
    """The arrays of a weight, checked, with a row for each output or eight of them."""

    group_size: int | None
    words: Array
    """uint32 (N / 8, K)."""
    scales: Array
    """(N, G)."""
    zero_points: Array
    """uint8 (N, G)."""

    def rows(self, start: int, stop: int) -> Parts:
        """The outputs from `start`, a multiple of 8, to `stop`."""
        return self._replace(
            words=self.words[start // 8 : -(-stop // 8)],
            scales=self.scales[start:stop],
            zero_points=self.zero_points[start:stop],
        )

    def pack(self, *, num_threads: int | None = None) -> PackedWeight:
        """As a packed weight."""
        return pack(
            _unpack(self.words)[: self.scales.shape[0]],
            self.scales,
            self.zero_points,
            scheme="uint4",
            group_size=self.group_size,
            num_threads=num_threads,
        )


def read(qweight: Any, qzeros: Any, scales: Any, *, bits: Any = 4, group_size: Any = None) -> Parts:
    """The arguments of `from_arrays`, checked; the codes still packed."""
    check_bits(bits, (4,))
    words = words_array(qweight, "qweight")
    depth, eighths = words.shape
    scale = matrix(float_array(scales, "scales"), "scales")
    groups = scale.shape[0]
    check_shape(scale, "scales", (groups, 8 * eighths))
    zero_words = words_array(qzeros, "qzeros")
    check_shape(zero_words, "qzeros", (groups, eighths))
    size = group_size_of(depth, groups, None, group_size)
    return Parts(size, words.T, scale.T, _unpack(zero_words.T))


def _unpack(words: Array) -> Array:
    """uint32 (N / 8, any) as uint8 (N, any)."""
    rows, size = words.shape
    codes = np.empty((rows, 8, size), np.uint8)
    for i, column in enumerate(ORDER):
        codes[:, column] = (words >> np.uint32(4 * i)) & np.uint32(15)
    return codes.reshape(8 * rows, size)
