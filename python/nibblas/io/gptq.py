# SPDX-License-Identifier: Apache-2.0
"""GPTQ: integers in 32-bit words along the input features, with zero points for groups of them."""

from __future__ import annotations

from typing import Literal

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
    """Pack a weight of a GPTQ checkpoint; no value changes.

    A value is ``(code - zero) * scale``.

    Parameters
    ----------
    qweight : int32 ndarray
        (K * bits / 32, N): the codes, along K, low bits first; 3 bits as a dense stream of 32
        codes in 3 words.
    qzeros : int32 ndarray
        (G, N * bits / 32): the zero points, along N, in the same way.
    scales : ndarray
        (G, N) float16, bfloat16 or float32.
    g_idx : int32 ndarray, optional
        (K,): the group of each input, of checkpoints quantized in order of activation. Inputs are
        sorted by it, once, here.
    bits : int
        2, 3, 4 or 8.
    checkpoint_format : str
        "gptq": the stored zero points are one less than they mean, as in most files. "gptq_v2":
        they are what they mean. The arrays do not tell.
    group_size : int, optional
        Only needed where neither g_idx nor an even division of K tells it.
    wrap_zeros : bool
        Of "gptq": whether the greatest stored zero point wraps to 0, as in programs that add 1
        within `bits` bits. Else it is 2**bits.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K) of scheme "uint2", "uint3", "uint4" or "uint8". Where all zero points are equal, as
        in symmetric checkpoints, they cost nothing.

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        Shapes do not fit together, groups are not of one size, or a zero point is 256.

    Examples
    --------
    >>> codes = np.full((2, 8), 0x99999999, np.uint32).view(np.int32)
    >>> w = nibblas.io.gptq.from_arrays(
    ...     codes,
    ...     np.full((1, 1), 0x77777777, np.int32),
    ...     np.full((1, 8), 0.5, np.float16),
    ...     bits=4,
    ...     checkpoint_format="gptq",
    ... )
    >>> w.shape, float(w.dequantize()[0, 0])
    ((8, 16), 0.5)
    """
    bits = check_bits(bits, BITS)
    if not isinstance(checkpoint_format, str):
        raise TypeError(
            f"checkpoint_format must be a string, got {type(checkpoint_format).__name__}"
        )
    if checkpoint_format not in OFFSETS:
        raise ValueError(
            f"checkpoint_format must be 'gptq' or 'gptq_v2', got {checkpoint_format!r}"
        )
    words = words_array(qweight, "qweight")
    cols = words.shape[1]
    depth, rest = divmod(words.shape[0] * WORD, bits)
    if rest:
        raise ValueError(
            f"qweight of {bits} bits must have a multiple of {bits} rows, got {words.shape}"
        )
    scale = matrix(float_array(scales, "scales"), "scales")
    groups = scale.shape[0]
    check_shape(scale, "scales", (groups, cols))
    zero_words = words_array(qzeros, "qzeros")
    check_shape(zero_words, "qzeros", (groups, -(-cols * bits // WORD)))
    index = group_index_array(g_idx, "g_idx", depth)
    size = group_size_of(depth, groups, index, group_size)

    zeros = unpack_words(zero_words, bits, cols).astype(np.uint16) + OFFSETS[checkpoint_format]
    if wrap_zeros:
        zeros &= (1 << bits) - 1
    return pack(
        unpack_words(words.T, bits, depth),
        scale.T,
        zeros.T,
        scheme=f"uint{bits}",
        group_size=size,
        group_index=index,
        num_threads=num_threads,
    )
