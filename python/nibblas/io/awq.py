# SPDX-License-Identifier: Apache-2.0
"""AWQ in its GEMM layout: 4-bit integers in 32-bit words along the output features."""

from __future__ import annotations

import numpy as np

from nibblas._arrays import Array
from nibblas.io._words import (
    WORD,
    check_bits,
    check_shape,
    float_array,
    group_size_of,
    matrix,
    unpack_words,
    words_array,
)
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output, of eight, that each nibble of a word belongs to, the lowest nibble first."""


def from_arrays(
    qweight: Array,
    qzeros: Array,
    scales: Array,
    *,
    bits: int = 4,
    group_size: int | None = None,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a weight of an AWQ checkpoint; no value changes.

    A value is ``(code - zero) * scale``.

    Parameters
    ----------
    qweight : int32 ndarray
        (K, N / 8): eight outputs a word, in the order of `ORDER`.
    qzeros : int32 ndarray
        (G, N / 8), in the same order.
    scales : ndarray
        (G, N) float16, bfloat16 or float32.
    bits : int
        4: the layout has no other width.
    group_size : int, optional
        Only needed where G does not divide K evenly.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K) of scheme "uint4".

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        Shapes do not fit together.

    Examples
    --------
    >>> w = nibblas.io.awq.from_arrays(
    ...     np.full((32, 2), 0x12345678, np.int32),
    ...     np.zeros((1, 2), np.int32),
    ...     np.ones((1, 16), np.float16),
    ... )
    >>> w.dequantize()[:8, 0]
    array([8., 4., 7., 3., 6., 2., 5., 1.], dtype=float32)
    """
    check_bits(bits, (4,))
    words = words_array(qweight, "qweight")
    depth, cols = words.shape[0], words.shape[1] * WORD // 4
    scale = matrix(float_array(scales, "scales"), "scales")
    groups = scale.shape[0]
    check_shape(scale, "scales", (groups, cols))
    zero_words = words_array(qzeros, "qzeros")
    check_shape(zero_words, "qzeros", (groups, words.shape[1]))
    return pack(
        _outputs(words).T,
        scale.T,
        _outputs(zero_words).T,
        scheme="uint4",
        group_size=group_size_of(depth, groups, None, group_size),
        num_threads=num_threads,
    )


def _outputs(words: Array) -> Array:
    """Codes of (rows, N / 8) words as (rows, N), outputs in their order."""
    rows, width = words.shape
    fields = unpack_words(words, 4, 8 * width).reshape(rows, width, 8)
    return fields[:, :, np.argsort(ORDER)].reshape(rows, 8 * width)
