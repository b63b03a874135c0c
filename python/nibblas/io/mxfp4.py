# SPDX-License-Identifier: Apache-2.0
"""MXFP4: 4-bit floats in blocks of 32 that share a power of two (OCP Microscaling Formats)."""

from __future__ import annotations

from nibblas._arrays import Array
from nibblas.io._fields import byte_array, unpack_fields
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BLOCK = 32


def from_arrays(
    blocks: Array, scales: Array, *, num_threads: int | None = None
) -> PackedWeight | list[PackedWeight]:
    """Pack a weight of MXFP4 blocks; no value changes.

    A value is ``e2m1[code] * 2**(scale - 127)``, e2m1 being 0, 0.5, 1, 1.5, 2, 3, 4, 6 and, from
    code 8 on, their negatives. A scale of 255 makes its block NaN.

    Parameters
    ----------
    blocks : uint8 ndarray
        (N, K / 32, 16) or (N, K / 2): two codes a byte, the first in the low nibble.
    scales : uint8 ndarray
        (N, K / 32): e8m0, as bytes or as ``ml_dtypes.float8_e8m0fnu``.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight or list of PackedWeight
        A weight (N, K) of scheme "mxfp4". If both arrays have one dimension more in front, as the
        experts of gpt-oss do, a list with a weight for each.

    Raises
    ------
    TypeError
        The arrays are not of these types.
    ValueError
        Their shapes do not fit together.

    Examples
    --------
    >>> w = nibblas.io.mxfp4.from_arrays(
    ...     np.full((4, 2, 16), 0x21, np.uint8), np.full((4, 2), 128, np.uint8)
    ... )
    >>> w.shape, w.dequantize()[0, :3]
    ((4, 64), array([1., 2., 1.], dtype=float32))
    """
    codes = byte_array(blocks, "blocks")
    exponents = byte_array(scales, "scales", "float8_e8m0fnu")
    if exponents.ndim not in (2, 3) or not exponents.shape[-1]:
        raise ValueError(
            f"scales must have shape (N, K / 32) or (experts, N, K / 32), got {exponents.shape}"
        )
    *lead, groups = exponents.shape
    flat = (*lead, groups * BLOCK // 2)
    if codes.shape not in (flat, (*lead, groups, BLOCK // 2)):
        raise ValueError(
            f"blocks must have shape {(*lead, groups, BLOCK // 2)} or {flat} "
            f"for scales of shape {exponents.shape}, got {codes.shape}"
        )
    codes = codes.reshape(flat)
    if exponents.ndim == 3:
        return [_matrix(*expert, num_threads) for expert in zip(codes, exponents, strict=True)]
    return _matrix(codes, exponents, num_threads)


def _matrix(codes: Array, scales: Array, num_threads: int | None) -> PackedWeight:
    return pack(
        unpack_fields(codes, 4, scales.shape[1] * BLOCK),
        scales,
        scheme="mxfp4",
        group_size="auto",
        num_threads=num_threads,
    )
