# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, format pack-quantized: integers of 1 to 8 bits in 32-bit words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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

Layout = Literal["dense", "padded"]


def from_arrays(
    weight_packed: Array,
    weight_scale: Array,
    weight_zero_point: Array | None = None,
    weight_g_idx: Array | None = None,
    *,
    weight_shape: Array | Sequence[int],
    bits: int,
    group_size: int | None = None,
    layout: Layout | None = None,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a weight of a compressed-tensors checkpoint; no value changes.

    A value is ``(code - zero) * scale``. Codes and zero points are stored plus 2**(bits - 1).

    Parameters
    ----------
    weight_packed : int32 ndarray
        (N, words): the codes of an output, low bits first.
    weight_scale : ndarray
        (N, G) float16, bfloat16 or float32; (N, 1) is per channel.
    weight_zero_point : int32 ndarray, optional
        (words, G): packed along the outputs. None: 0 is exact.
    weight_g_idx : int ndarray, optional
        (K,): the group of each input; all -1 means none.
    weight_shape : sequence of int or ndarray
        (N, K).
    bits : int
        1 to 8.
    group_size : int, optional
        Only needed where G does not divide K evenly.
    layout : str, optional
        "dense": 3, 5, 6 and 7 bits are a stream across words, as of mid-2026. "padded": 32 // bits
        codes a word, as before. The number of words tells them apart, but for some small sizes.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K) of scheme "int2" to "int8", or with zero points "uint1" to "uint8".

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        Shapes do not fit together, or the layout cannot be told.

    Examples
    --------
    >>> w = nibblas.io.compressed_tensors.from_arrays(
    ...     np.full((4, 2), 0x99999999, np.uint32).view(np.int32),
    ...     np.full((4, 1), 0.5, np.float16),
    ...     weight_shape=(4, 16),
    ...     bits=4,
    ... )
    >>> w.scheme, float(w.dequantize()[0, 0])
    ('int4', 0.5)
    """
    bits = check_bits(bits, tuple(range(1, 9)))
    if layout not in (None, "dense", "padded"):
        raise ValueError(f"layout must be 'dense', 'padded' or None, got {layout!r}")
    cols, depth = _shape(weight_shape)
    words = words_array(weight_packed, "weight_packed")
    dense = _is_dense(words.shape[1], depth, bits, layout, "weight_packed")
    check_shape(words, "weight_packed", (cols, words.shape[1]))
    scale = float_array(weight_scale, "weight_scale")
    scale = matrix(scale[:, np.newaxis] if scale.ndim == 1 else scale, "weight_scale")
    groups = scale.shape[1]
    check_shape(scale, "weight_scale", (cols, groups))
    index = group_index_array(weight_g_idx, "weight_g_idx", depth)
    size = group_size_of(depth, groups, index, group_size)
    codes = unpack_words(words, bits, depth, dense=dense)
    zeros = None
    if weight_zero_point is not None:
        zero_words = words_array(weight_zero_point, "weight_zero_point").T
        check_shape(zero_words.T, "weight_zero_point", (zero_words.shape[1], groups))
        how: Layout = "dense" if dense else "padded"
        _is_dense(zero_words.shape[1], cols, bits, how, "weight_zero_point")
        zeros = unpack_words(zero_words, bits, cols, dense=dense).T
    elif bits == 1:
        zeros = np.ones((cols, groups), np.uint8)  # there is no signed scheme of 1 bit
    else:
        codes -= np.uint8(1 << (bits - 1))  # modulo 256
        codes = codes.view(np.int8)
    return pack(
        codes,
        scale,
        zeros,
        scheme=f"{'int' if zeros is None else 'uint'}{bits}",
        group_size=size,
        group_index=index,
        num_threads=num_threads,
    )


def _is_dense(width: int, count: int, bits: int, layout: Layout | None, name: str) -> bool:
    """Whether `count` codes in `width` words are a dense stream."""
    widths = {"dense": -(-count * bits // WORD), "padded": -(-count // (WORD // bits))}
    if layout is not None:
        if width != widths[layout]:
            raise ValueError(
                f"{name}: {count} codes of {bits} bits take {widths[layout]} words if {layout}, "
                f"got {width}"
            )
        return layout == "dense"
    fits = [name for name, words in widths.items() if words == width]
    if not fits:
        raise ValueError(
            f"{name}: {count} codes of {bits} bits take {widths['dense']} words, or "
            f"{widths['padded']} if padded, got {width}"
        )
    # In one word, and where the width divides 32, the two are the same.
    if len(fits) == 2 and width > 1 and WORD % bits:
        raise ValueError(
            f"{name}: {count} codes of {bits} bits take {width} words in both layouts: "
            'give layout="dense" (files since mid-2026) or "padded"'
        )
    return fits[0] == "dense"


def _shape(shape: Any) -> tuple[int, int]:
    sizes = np.asarray(shape)
    if sizes.dtype.kind not in "iu" or sizes.shape != (2,) or sizes.min() < 0:
        raise ValueError(f"weight_shape must be (N, K), two sizes, got {shape!r:.80}")
    return int(sizes[0]), int(sizes[1])
