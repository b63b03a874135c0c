# SPDX-License-Identifier: Apache-2.0
"""Arrays from outside, element types, aligned memory: what the rest of the package builds on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nibblas import _nibblas

Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Bytes: one cache line, and one zmm register. Loads of a plane row then never cross a line."""

FLOAT_TYPES = ("float32", "float16", "bfloat16")
"""Element types of activations, outputs and dense weights."""


def bfloat16() -> np.dtype[Any]:
    """The NumPy dtype of bfloat16, which the optional package ml_dtypes provides."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            "NumPy has no bfloat16 of its own: pip install nibblas[ml_dtypes]"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


def as_array(obj: object, name: str) -> Array:
    """`obj` as a plain ndarray that shares its memory, or a TypeError that calls it `name`.

    Taken are NumPy arrays and objects on the CPU that speak DLPack (PyTorch and JAX arrays, ...).
    Lists and numbers are not: they have no element type of their own.
    """
    if isinstance(obj, np.ndarray):
        if isinstance(obj, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array: give {name}.filled(...), a plain array")
        return obj.view(np.ndarray) if type(obj) is not np.ndarray else obj
    if hasattr(obj, "__dlpack__"):
        return _from_dlpack(obj, name)
    raise TypeError(
        f"{name} must be a NumPy array or a CPU tensor with __dlpack__, got {type(obj).__name__}"
    )


def _from_dlpack(obj: Any, name: str) -> Array:
    # PyTorch and JAX spell their dtypes differently, but both end like this.
    is_bfloat16 = str(getattr(obj, "dtype", "")).endswith("bfloat16")
    try:
        if is_bfloat16:
            return _nibblas.from_dlpack_bf16(obj).view(bfloat16())
        return np.from_dlpack(obj)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: cannot read a {type(obj).__module__}.{type(obj).__qualname__} "
            f"through DLPack: {error}"
        ) from error


def float_type_name(dtype: object, name: str = "dtype") -> str:
    """One of FLOAT_TYPES, from its name, a dtype or a scalar type; TypeError for anything else."""
    if isinstance(dtype, str) and dtype in FLOAT_TYPES:
        return dtype
    try:
        found = np.dtype(dtype).name  # type: ignore[call-overload]
    except TypeError:
        found = repr(dtype)
    if found not in FLOAT_TYPES:
        raise TypeError(f"{name} must be one of {', '.join(FLOAT_TYPES)}, got {found}")
    return str(found)


def float_dtype(type_name: str) -> np.dtype[Any]:
    """The NumPy dtype of one of FLOAT_TYPES."""
    return bfloat16() if type_name == "bfloat16" else np.dtype(type_name)


def output_type_name(dtype: object) -> str:
    """As float_type_name, once it is sure that NumPy can have such an array."""
    name = float_type_name(dtype)
    float_dtype(name)
    return name


def float_matrix(obj: object, name: str) -> Array:
    """`obj` as a 2-D array of one of FLOAT_TYPES."""
    array = as_array(obj, name)
    if array.dtype.name not in FLOAT_TYPES or not array.dtype.isnative:
        raise TypeError(
            f"{name} must be float32, float16 or bfloat16, got {array.dtype}: "
            f"convert it with {name}.astype(np.float32)"
        )
    if array.ndim != 2:
        raise ValueError(f"{name} must be a matrix (N, K), got shape {array.shape}")
    return array


def output_array(out: Array | None, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """`out` if it can take values of this shape, or a new array of this type."""
    if out is None:
        return np.empty(shape, float_dtype(float_type_name(dtype)))
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    float_type_name(out.dtype, "out's dtype")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    return out


def thread_count(num_threads: int | None) -> int:
    """What the native module takes: 0 for "as set for the process", else the number."""
    if num_threads is None:
        return 0
    if isinstance(num_threads, bool) or not isinstance(num_threads, int | np.integer):
        raise TypeError(f"num_threads must be an int or None, got {type(num_threads).__name__}")
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return int(num_threads)


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Like np.empty, in C order, at a multiple of ALIGNMENT, large ones in huge pages."""
    return _nibblas.empty(np.dtype(dtype), shape)


def aligned_copy(array: Array) -> Array:
    """A C-ordered copy at a multiple of ALIGNMENT."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def read_only(array: Array) -> Array:
    """A view of `array` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view
