# SPDX-License-Identifier: Apache-2.0
"""GPTQ: integer codes with a scale and a zero point for each group, as AutoGPTQ stores them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from nibblas._arrays import Array
from nibblas.io._words import (
    WORD,
    check_bits,
    check_shape,
    float_array,
    group_index_array,
    group_size_of,
    matrix,
    unpack_words,
    words_array,
)
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BITS = (2, 3, 4, 8)
OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What a checkpoint of this format counts its zero points from."""


def from_arrays(
    qweight: Array,
    qzeros: Array,
    scales: Array,
    g_idx: Array | None = None,
    *,
    bits: int,
    checkpoint_format: Literal["gptq", "gptq_v2"],
    group_size: int | None = None,
    wrap_zeros: bool = False,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a GPTQ weight; no value changes.

    A value is ``(code - zero_point) * scale``. Codes and zero points are streams of bits in words
    of 32, the first in the lowest bits; those of 3 bits may begin in one word and end in the next.

    Parameters
    ----------
    qweight : int32 ndarray
        (ceil(K * bits / 32), N): the codes of an output from top to bottom.
    qzeros : int32 ndarray
        (G, ceil(N * bits / 32)): the zero points of a group from left to right.
    scales : ndarray
        (G, N) float16, float32 or bfloat16, stored as they are. May be negative.
    g_idx : ndarray of int, optional
        (K,): the group of each input. Checkpoints that were quantized in order of activation
        ("desc_act") have groups in no order: inputs are sorted by it here, once. None, or -1
        throughout, means that groups follow one another.
    bits : int
        2, 3, 4 or 8.
    checkpoint_format : str
        What the stored zero points mean, which the arrays do not tell. "gptq": one less than they
        are, so that the field 15 stands for 16. "gptq_v2": as they are.
    group_size : int, optional
        Inputs of a group. Needed only where there is no g_idx and K is no multiple of G.
    wrap_zeros : bool
        Of "gptq": let the zero point of the greatest field be 0 instead of ``2**bits``, as those
        libraries have it that mask it to `bits` bits after adding 1.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K), of scheme "uint2", "uint3", "uint4" or "uint8". Where all zero points are equal, as
        in symmetric checkpoints, they cost nothing.

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        The shapes do not fit together, checkpoint_format is none, groups are of unequal sizes, or
        a zero point is 256.

    Examples
    --------
    >>> w = nibblas.io.gptq.from_arrays(
    ...     np.full((2, 8), 0x1A1A1A1A, np.int32),
    ...     np.full((1, 1), 0x77777777, np.int32),
    ...     np.full((1, 8), 0.5, np.float16),
    ...     bits=4,
    ...     checkpoint_format="gptq",
    ... )
    >>> w.shape, w.dequantize()[0, :2]
    ((8, 16), array([ 1. , -3.5], dtype=float32))
    """
    parts = read(
        qweight,
        qzeros,
        scales,
        g_idx,
        bits=bits,
        checkpoint_format=checkpoint_format,
        group_size=group_size,
        wrap_zeros=wrap_zeros,
    )
    return parts.pack(num_threads=num_threads)


class Parts(NamedTuple):
    """The arrays of a weight, checked, with a row for each output."""

    bits: int
    depth: int
    group_size: int | None
    words: Array
    """uint32 (N, words)."""
    scales: Array
    zero_points: Array
    """uint16 (N, G)."""
    g_idx: Array | None

    def rows(self, start: int, stop: int) -> Parts:
        """The outputs from `start` to `stop`."""
        return self._replace(
            words=self.words[start:stop],
            scales=self.scales[start:stop],
            zero_points=self.zero_points[start:stop],
        )

    def pack(self, *, num_threads: int | None = None) -> PackedWeight:
        """As a packed weight."""
        return pack(
            unpack_words(self.words, self.bits, self.depth),
            self.scales,
            self.zero_points,
            scheme=f"uint{self.bits}",
            group_size=self.group_size,
            group_index=self.g_idx,
            num_threads=num_threads,
        )


def read(
    qweight: Any,
    qzeros: Any,
    scales: Any,
    g_idx: Any = None,
    *,
    bits: Any,
    checkpoint_format: Any,
    group_size: Any = None,
    wrap_zeros: Any = False,
) -> Parts:
    """The arguments of `from_arrays`, checked; the codes still packed."""
    bits = check_bits(bits, BITS)
    if not isinstance(checkpoint_format, str):
        raise TypeError(
            f"checkpoint_format must be a string, got {type(checkpoint_format).__name__}"
        )
    if checkpoint_format not in OFFSETS:
        raise ValueError(
            f"checkpoint_format must be 'gptq' or 'gptq_v2', got {checkpoint_format!r}"
        )
    if not isinstance(wrap_zeros, bool):
        raise TypeError(f"wrap_zeros must be a bool, got {type(wrap_zeros).__name__}")

    words = words_array(qweight, "qweight")
    rows, cols = words.shape
    scale = matrix(float_array(scales, "scales"), "scales")
    groups = scale.shape[0]
    check_shape(scale, "scales", (groups, cols))
    zero_words = words_array(qzeros, "qzeros")
    check_shape(zero_words, "qzeros", (groups, -(-cols * bits // WORD)))
    depth, rest = divmod(rows * WORD, bits)
    count: tuple[int, ...] = getattr(g_idx, "shape", ())
    if len(count) == 1 and -(-count[0] * bits // WORD) == rows:
        depth = int(count[0])  # what else there is in the last word is no input
    elif rest:
        raise ValueError(
            f"qweight of {bits} bits must have a multiple of {bits} rows, got {words.shape}"
        )
    index = group_index_array(g_idx, "g_idx", depth)
    size = group_size_of(depth, groups, index, group_size)

    zeros = unpack_words(zero_words, bits, cols).astype(np.uint16) + OFFSETS[checkpoint_format]
    if wrap_zeros:
        zeros &= (1 << bits) - 1
    return Parts(bits, depth, size, words.T, scale.T, zeros.T, index)
