# SPDX-License-Identifier: Apache-2.0
"""NVFP4: 4-bit floats in blocks of 16 with an 8-bit float scale, and one scale for the tensor."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from nibblas._arrays import Array, as_array
from nibblas.io._fields import byte_array, unpack_fields
from nibblas.packing import pack
from nibblas.weights import PackedWeight

__all__ = ["from_arrays"]

BLOCK = 16
CONVENTIONS = {"divide": "tensor_divisor", "multiply": "tensor_scale"}
"""What `pack` calls the tensor's number."""


def from_arrays(
    weight_packed: Array,
    weight_scale: Array,
    global_scale: Array | float,
    *,
    convention: Literal["divide", "multiply"],
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack a weight of NVFP4 blocks; no value changes.

    Parameters
    ----------
    weight_packed : uint8 ndarray
        (N, K / 2): two e2m1 codes a byte, the first in the low nibble.
    weight_scale : uint8 ndarray
        (N, ceil(K / 16)): e4m3, as bytes or as ``ml_dtypes.float8_e4m3fn``.
    global_scale : float or ndarray
        The tensor's number, a float32: a scalar or an array of one element.
    convention : str
        What the number does, which the arrays do not tell. "divide": a value is
        ``e2m1[code] * (scale / global_scale)``, as compressed-tensors has it, where the number is
        448 * 6 / amax. "multiply": ``e2m1[code] * (scale * global_scale)``, as ModelOpt, ONNX
        Runtime and torchao have it.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        (N, K), of scheme "nvfp4".

    Raises
    ------
    TypeError
        The arrays are not of these types.
    ValueError
        The shapes do not fit together, the convention is none, or the number is no finite float32;
        to divide by, it must not be 0.

    Examples
    --------
    >>> w = nibblas.io.nvfp4.from_arrays(
    ...     np.full((4, 16), 0x42, np.uint8),
    ...     np.full((4, 2), 0x38, np.uint8),
    ...     np.float32(4),
    ...     convention="divide",
    ... )
    >>> w.dequantize()[0, :2]
    array([0.25, 0.5 ], dtype=float32)
    """
    if not isinstance(convention, str):
        raise TypeError(f"convention must be a string, got {type(convention).__name__}")
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be 'divide' or 'multiply', got {convention!r}")
    codes = byte_array(weight_packed, "weight_packed")
    if codes.ndim != 2 or not codes.shape[1]:
        raise ValueError(f"weight_packed must have shape (N, K / 2), got {codes.shape}")
    rows, depth = codes.shape[0], 2 * codes.shape[1]
    scales = byte_array(weight_scale, "weight_scale", "float8_e4m3fn")
    expected = (rows, -(-depth // BLOCK))
    if scales.shape != expected:
        raise ValueError(
            f"weight_scale must have shape {expected} for weight_packed of shape {codes.shape}, "
            f"got {scales.shape}"
        )
    number: dict[str, Any] = {CONVENTIONS[convention]: _float32(global_scale)}
    return pack(
        unpack_fields(codes, 4, depth),
        scales,
        scheme="nvfp4",
        group_size="auto",
        num_threads=num_threads,
        **number,
    )


def _float32(value: Any) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return float(value)
    array = as_array(value, "global_scale")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"global_scale must be a float, got {array.dtype}")
    if array.size != 1:
        raise ValueError(f"global_scale must have one element, got shape {array.shape}")
    return float(array.reshape(-1)[0])
