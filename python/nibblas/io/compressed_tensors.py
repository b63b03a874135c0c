# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors: the integer weights of its format "pack-quantized"."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from nibblas._arrays import Array, as_array
from nibblas.io._fields import size_argument
from nibblas.io._words import (
    WORD,
    check_bits,
    check_shape,
    float_array,
    group_index_array,
    group_size_of,
    unpack_words,
    words_array,
)
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BITS = (1, 2, 3, 4, 5, 6, 7, 8)
LAYOUTS = ("dense", "padded")


def from_arrays(
    weight_packed: Array,
    weight_scale: Array,
    weight_zero_point: Array | None = None,
    weight_g_idx: Array | None = None,
    *,
    weight_shape: Array | tuple[int, int],
    bits: int,
    group_size: int | None = None,
    layout: Literal["dense", "padded"] | None = None,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a weight of the format pack-quantized; no value changes.

    A value is ``(code - zero_point) * scale`` with signed codes, stored with ``2**(bits - 1)``
    added, the first in the lowest bits of a word.

    Parameters
    ----------
    weight_packed : int32 ndarray
        (N, words).
    weight_scale : ndarray
        float16, float32 or bfloat16, stored as they are: (N, G) for groups, (N, 1) or (N,) for
        channels, or one element for the whole tensor.
    weight_zero_point : ndarray, optional
        int32 (words, G), an output's in the column, packed like the codes; or int8, shaped like
        weight_scale. None is 0.
    weight_g_idx : ndarray of int, optional
        (K,): the group of each input, by which inputs are sorted here; -1 throughout is none.
    weight_shape : ndarray or tuple of int
        (N, K).
    bits : int
        From 1 to 8: num_bits of the configuration.
    group_size : int, optional
        Inputs that share a scale. Needed only where K is no multiple of G.
    layout : str, optional
        Of 3, 5, 6 and 7 bits. "dense": codes may begin in one word and end in the next, as in
        files since 2026. "padded": a word has the whole codes it has room for, as before. None
        tells them by the number of words, which can be the same below K = 160.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K). Without zero points "int2" to "int8" or, for 1 bit, "uint1"; with them "uint1" to
        "uint8".

    Raises
    ------
    TypeError
        An argument is of a wrong type.
    ValueError
        The shapes do not fit together, groups are of unequal sizes, or the layout cannot be told.

    Examples
    --------
    >>> w = nibblas.io.compressed_tensors.from_arrays(
    ...     np.full((4, 2), 0x7777777A, np.int32),
    ...     np.full((4, 1), 0.5, np.float16),
    ...     weight_shape=(4, 16),
    ...     bits=4,
    ... )
    >>> w.scheme, w.dequantize()[0, :2]
    ('int4', array([ 1. , -0.5], dtype=float32))
    """
    parts = read(
        weight_packed,
        weight_scale,
        weight_zero_point,
        weight_g_idx,
        weight_shape=weight_shape,
        bits=bits,
        group_size=group_size,
        layout=layout,
    )
    return parts.pack(num_threads=num_threads)


class Parts(NamedTuple):
    """The arrays of a weight, checked."""

    bits: int
    depth: int
    group_size: int | None
    dense: bool
    words: Array
    """uint32 (N, words)."""
    scales: Array
    """(N, G)."""
    zero_points: Array | None
    """uint8 (N, G), of the stored codes; None where it is the usual one."""
    g_idx: Array | None

    def rows(self, start: int, stop: int) -> Parts:
        """The outputs from `start` to `stop`."""
        zeros = self.zero_points
        return self._replace(
            words=self.words[start:stop],
            scales=self.scales[start:stop],
            zero_points=zeros if zeros is None else zeros[start:stop],
        )

    def pack(self, *, num_threads: int | None = None) -> PackedWeight:
        """As a packed weight."""
        codes = unpack_words(self.words, self.bits, self.depth, dense=self.dense)
        zeros: Array | int | None = self.zero_points
        scheme = f"uint{self.bits}"
        if zeros is None and self.bits == 1:
            zeros = 1
        elif zeros is None:
            scheme = f"int{self.bits}"
            codes = (codes - np.uint8(1 << (self.bits - 1))).view(np.int8)  # modulo 256
        return pack(
            codes,
            self.scales,
            zeros,
            scheme=scheme,
            group_size=self.group_size,
            group_index=self.g_idx,
            num_threads=num_threads,
        )


def read(
    weight_packed: Any,
    weight_scale: Any,
    weight_zero_point: Any = None,
    weight_g_idx: Any = None,
    *,
    weight_shape: Any,
    bits: Any,
    group_size: Any = None,
    layout: Any = None,
) -> Parts:
    """The arguments of `from_arrays`, checked; the codes still packed."""
    bits = check_bits(bits, BITS)
    cols, depth = _shape(weight_shape)
    words = words_array(weight_packed, "weight_packed")
    scales = float_array(weight_scale, "weight_scale")
    if scales.size == 1:
        scales = np.broadcast_to(scales.reshape(1, 1), (cols, 1))
    elif scales.ndim == 1:
        scales = scales[:, np.newaxis]
    if scales.ndim != 2 or scales.shape[0] != cols:
        raise ValueError(f"weight_scale must have shape ({cols}, G), got {scales.shape}")
    groups = scales.shape[1]
    index = group_index_array(weight_g_idx, "weight_g_idx", depth)
    size = group_size_of(depth, groups, index, group_size)
    zeros = None if weight_zero_point is None else as_array(weight_zero_point, "weight_zero_point")
    if zeros is not None and zeros.dtype != np.int8:
        zeros = words_array(zeros, "weight_zero_point")
    dense = _is_dense(layout, bits, (cols, depth), words, zeros)
    if zeros is not None:
        zeros = _zero_points(zeros, bits, (cols, groups), dense)
    return Parts(bits, depth, size, dense, words, scales, zeros, index)


def _shape(value: Any) -> tuple[int, int]:
    sizes = value
    if not isinstance(value, tuple | list):
        array = as_array(value, "weight_shape")
        if array.dtype.kind not in "iu":
            raise TypeError(f"weight_shape must be integers, got {array.dtype}")
        if array.shape != (2,):
            raise ValueError(f"weight_shape must have shape (2,), got {array.shape}")
        sizes = array.tolist()
    if len(sizes) != 2:
        raise ValueError(f"weight_shape must be (N, K), got {tuple(sizes)}")
    return size_argument(sizes[0], "weight_shape[0]"), size_argument(sizes[1], "weight_shape[1]", 1)


def _word_count(count: int, bits: int, dense: bool) -> int:
    return -(-count * bits // WORD) if dense else -(-count // (WORD // bits))


def _is_dense(
    layout: Any, bits: int, shape: tuple[int, int], words: Array, zeros: Array | None
) -> bool:
    """Whether codes go on from word to word; ValueError if the sizes do not fit or tell."""
    if layout is not None and not isinstance(layout, str):
        raise TypeError(f"layout must be a string or None, got {type(layout).__name__}")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout must be 'dense' or 'padded', got {layout!r}")
    cols, depth = shape
    runs = {"weight_packed": (depth, words.shape[1])}
    if words.shape[0] != cols:
        raise ValueError(f"weight_packed must have {cols} rows, got shape {words.shape}")
    if zeros is not None and zeros.dtype == np.uint32:
        runs["weight_zero_point"] = (cols, zeros.shape[0])

    fitting = [
        name
        for name in ([layout] if layout else LAYOUTS)
        if all(n == _word_count(count, bits, name == "dense") for count, n in runs.values())
    ]
    if not fitting:
        counts = ", ".join(
            f"{_word_count(count, bits, True)} (dense) or {_word_count(count, bits, False)} "
            f"(padded) words for the {count} codes of {name}, got {found}"
            for name, (count, found) in runs.items()
        )
        given = f" and layout {layout!r}" if layout else ""
        raise ValueError(f"for {bits} bits{given}: expected {counts}")
    # They are one and the same if codes fill words, or if one word is enough.
    same = WORD % bits == 0 or all(count <= WORD // bits for count, _ in runs.values())
    if len(fitting) == 2 and not same:
        raise ValueError(
            f"both layouts of {bits} bits have {words.shape[1]} words for K = {depth}: give "
            "layout='dense' (compressed-tensors since 2026) or layout='padded' (before)"
        )
    return fitting[0] == "dense"


def _zero_points(zeros: Array, bits: int, shape: tuple[int, int], dense: bool) -> Array:
    """uint8 of this shape, as they are to the stored codes."""
    offset = 1 << (bits - 1)
    if zeros.dtype == np.int8:
        if zeros.size == 1:
            zeros = np.broadcast_to(zeros.reshape(1, 1), shape)
        check_shape(zeros, "weight_zero_point", shape)
        least, most = (int(zeros.min()), int(zeros.max())) if zeros.size else (0, 0)
        if not -offset <= least <= most < offset:
            raise ValueError(
                f"weight_zero_point of {bits} bits must be from {-offset} to {offset - 1}, "
                f"got {least} to {most}"
            )
        return zeros.view(np.uint8) + np.uint8(offset)  # modulo 256
    if zeros.shape[1] != shape[1]:
        raise ValueError(
            f"weight_zero_point must have {shape[1]} columns like weight_scale, "
            f"got shape {zeros.shape}"
        )
    return unpack_words(zeros.T, bits, shape[0], dense=dense).T
