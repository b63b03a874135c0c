# SPDX-License-Identifier: Apache-2.0
"""What ``linear``, ``dequantize``, ``quantize_activations`` and ``matmul_integer`` compute.

Every rounding is written out: one NumPy float32 operation is one rounding to nearest even, `fma`
is one. Arrays run over rows and outputs, loops over groups and, where the order of k matters, over
k. The padding of the packed layout is left out: padded inputs and scales are 0, so they could
only turn a -0 of the accumulator into +0, and so does the first step of the epilogue.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .activations import gelu, gelu_tanh, relu, silu
from .fma import fma
from .layout import (
    NAN_FLOAT32,
    SUPER_BLOCK,
    normalize_group_size,
    round_to,
    to_float32,
)
from .parts import Decoded, Parts, TwoLevel, decode

SEGMENT = 65_536
"""Depth of one int32 dot product: 65,536 * 127 * 255 = 2,122,383,360 < 2**31."""

ACTIVATIONS = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}
"""The named activations of :func:`linear`."""


def quantize_activations(
    x: np.ndarray, group_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize activations per row and group: ``x ~ a * code``.

    ``amax = max |x|`` on the bit patterns (so NaN is above infinity), ``a = amax / 127``,
    ``r = 127 / amax``, ``code = rint(x * r)``. If r is infinite (amax below 3.74e-37), a and the
    codes are 0. If amax is not finite, a is NaN and the codes are 0.

    Parameters
    ----------
    x : ndarray (..., K)
        float32, float16 or bfloat16.
    group_size : int or None
        None: the whole row.

    Returns
    -------
    codes : int8 ndarray (..., K)
        In [-127, 127].
    a : float32 ndarray (..., G)
        G is ``group_count(K, group_size)``; padded groups are left out.

    Examples
    --------
    >>> quantize_activations(np.array([[127.0, -1.5, 0.5]], np.float32))
    (array([[127,  -2,   0]], dtype=int8), array([[1.]], dtype=float32))
    """
    x = to_float32(x)
    depth = x.shape[-1]
    group = normalize_group_size(depth, group_size) or max(depth, 1)
    groups = max(1, -(-depth // group))
    padded = np.zeros((*x.shape[:-1], groups * group), np.float32)
    padded[..., :depth] = x
    padded = padded.reshape(*x.shape[:-1], groups, group)

    magnitude = padded.view(np.uint32) & np.uint32(0x7FFFFFFF)
    amax = magnitude.max(axis=-1).view(np.float32)
    finite = np.isfinite(amax)
    with np.errstate(all="ignore"):
        r = np.float32(127) / amax
        a = np.where(np.isfinite(r), amax / np.float32(127), np.float32(0))
        codes = np.rint(padded * r[..., None])
    a = np.where(finite, a, np.uint32(NAN_FLOAT32).view(np.float32)).astype(np.float32)
    codes = np.where((finite & np.isfinite(r))[..., None], codes, np.float32(0))
    codes = codes.reshape(*x.shape[:-1], groups * group)[..., :depth]
    return codes.astype(np.int8), a


def linear(
    x: np.ndarray,
    parts: Parts,
    bias: np.ndarray | None = None,
    compute: str = "int8",
    activation: str | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> np.ndarray:
    """Compute ``activation(x W^T + bias)``.

    Parameters
    ----------
    x : ndarray (..., K)
        float32, float16 or bfloat16.
    parts : Parts
        The weight, see :class:`nibblas.numerics.Parts`.
    bias : ndarray (N,), optional
        float32, float16 or bfloat16.
    compute : {"int8", "float32"}
        Whether the activations are quantized too. The steps are those of `docs/numerics.md`.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
    dtype : dtype or str
        Of the output, see :func:`nibblas.numerics.round_to`.

    Returns
    -------
    ndarray (..., N)

    Raises
    ------
    TypeError, ValueError
        For a type or shape that does not fit; each says what was expected and what came.

    Examples
    --------
    >>> parts = {"codes": np.array([[9, 6]], np.uint8), "zero": 8, "group_size": None,
    ...          "scales": np.array([[0.5]], np.float32)}
    >>> linear(np.array([[127.0, 2.0]], np.float32), parts)
    array([[61.5]], dtype=float32)
    """
    weight = decode(parts)
    x = to_float32(x)
    cols, depth = weight.values.shape
    if x.ndim == 0 or x.shape[-1] != depth:
        raise ValueError(f"weight has {depth} input features, x has shape {x.shape}")
    rows = x.reshape(math.prod(x.shape[:-1]), depth)[:, weight.input_order]

    with np.errstate(all="ignore"):
        if compute == "float32":
            acc = _accumulate_float32(rows, weight)
        elif compute != "int8":
            raise ValueError(f'compute must be "int8" or "float32", not {compute!r}')
        elif weight.two_level is None:
            acc = _accumulate_int8(rows, weight)
        else:
            acc = _accumulate_int8_two_level(rows, weight, weight.two_level)
        y = _epilogue(acc, bias, activation)
    return round_to(y, dtype).reshape(*x.shape[:-1], cols)


def dequantize(parts: Parts, dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """Return the weight as numbers, (N, K): ``(value(code) - zero) * s`` rounded once.

    With mins it is ``fma(value(code) - zero, s, m)``. Both in float32, then rounded to `dtype`
    (float16 scales and integer codes have an exact float32 product, so that rounds once in all).
    The sign of a zero is kept; NaN is canonical.

    Parameters
    ----------
    parts : Parts
        The weight.
    dtype : dtype or str
        See :func:`nibblas.numerics.round_to`.

    Examples
    --------
    >>> dequantize({"codes": np.array([[9, 6]], np.uint8), "zero": 8, "group_size": None,
    ...             "scales": np.array([[0.5]], np.float32)})
    array([[ 0.5, -1. ]], dtype=float32)
    """
    weight = decode(parts)
    depth = weight.values.shape[1]
    group_of = np.arange(depth) // weight.group
    with np.errstate(all="ignore"):
        dense = weight.values * weight.scales[:, group_of]
        if weight.mins is not None:
            dense = fma(weight.values, weight.scales[:, group_of], weight.mins[:, group_of])
    original = np.empty_like(dense)
    original[:, weight.input_order] = dense
    return round_to(original, dtype)


def matmul_integer(
    a: np.ndarray,
    b: np.ndarray,
    a_zero_point: npt.ArrayLike | None = None,
    b_zero_point: npt.ArrayLike | None = None,
) -> np.ndarray:
    """Return ``(a - a_zero_point) (b - b_zero_point)`` as int32 modulo 2**32.

    Parameters
    ----------
    a : int8 or uint8 ndarray (..., M, K)
    b : int8 or uint8 ndarray (K, N)
    a_zero_point : integer scalar or ndarray (M,), optional
    b_zero_point : integer scalar or ndarray (N,), optional
        Within the range of the matrix's type.

    Returns
    -------
    int32 ndarray (..., M, N)

    Examples
    --------
    >>> matmul_integer(np.array([[255, 0]], np.uint8), np.array([[1], [2]], np.int8), 1)
    array([[252]], dtype=int32)
    """
    a, b = np.asarray(a), np.asarray(b)
    for name, matrix in (("a", a), ("b", b)):
        if matrix.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
            raise TypeError(f"{name} must be int8 or uint8, not {matrix.dtype}")
    if a.ndim < 2 or b.ndim != 2 or a.shape[-1] != b.shape[0]:
        raise ValueError(f"expected a (..., M, K) and b (K, N), got {a.shape} and {b.shape}")
    left = a.astype(np.int64)
    if a_zero_point is not None:
        left = left - _zero_point("a_zero_point", a_zero_point, a.dtype, a.shape[-2])[:, None]
    right = b.astype(np.int64)
    if b_zero_point is not None:
        right = right - _zero_point("b_zero_point", b_zero_point, b.dtype, b.shape[1])
    return _exact_dot(left, right.T).astype(np.int32)  # int64 to int32 keeps the low 32 bits


def _accumulate_int8(x: np.ndarray, weight: Decoded) -> np.ndarray:
    depth = x.shape[1]
    codes, a = _codes_and_scale(x, weight, weight.group)
    acc = np.zeros((len(x), len(weight.values)), np.float32)
    for g, group_start in enumerate(range(0, depth, weight.group)):
        group_stop = min(group_start + weight.group, depth)
        for start in range(group_start, group_stop, SEGMENT):
            stop = min(start + SEGMENT, group_stop)
            c = _exact_dot(codes[:, start:stop], weight.integers[:, start:stop])
            t = a[:, g, None] * weight.scales[None, :, g]
            acc = fma(c.astype(np.float32), t, acc)
            if weight.mins is not None:
                u = a[:, g] * codes[:, start:stop].sum(axis=1).astype(np.float32)
                acc = fma(u[:, None], weight.mins[None, :, g], acc)
    return acc


def _accumulate_int8_two_level(x: np.ndarray, weight: Decoded, two: TwoLevel) -> np.ndarray:
    depth = x.shape[1]
    codes, a = _codes_and_scale(x, weight, SUPER_BLOCK)
    sub_scales, super_scales = two.scales
    acc = np.zeros((len(x), len(weight.values)), np.float32)
    for block, block_start in enumerate(range(0, depth, SUPER_BLOCK)):
        block_stop = min(block_start + SUPER_BLOCK, depth)
        groups = range(block_start, block_stop, weight.group)
        c = np.zeros(acc.shape, np.int64)
        for start in groups:
            g, k = start // weight.group, slice(start, min(start + weight.group, block_stop))
            c += sub_scales[None, :, g] * _exact_dot(codes[:, k], weight.integers[:, k])
        t = a[:, block, None] * super_scales[None, :, block]
        acc = fma(c.astype(np.float32), t, acc)
        if two.mins is not None:
            sub_mins, super_mins = two.mins
            c_min = np.zeros(acc.shape, np.int64)
            for start in groups:
                g, k = start // weight.group, slice(start, min(start + weight.group, block_stop))
                c_min += sub_mins[None, :, g] * codes[:, k].sum(axis=1)[:, None]
            u = a[:, block, None] * c_min.astype(np.float32)
            acc = fma(u, super_mins[None, :, block], acc)
    return acc


def _accumulate_float32(x: np.ndarray, weight: Decoded) -> np.ndarray:
    depth = x.shape[1]
    x_by_k = np.ascontiguousarray(x.T)[:, :, None]  # (K, M, 1)
    w_by_k = np.ascontiguousarray(weight.values.T)[:, None, :]  # (K, 1, N)
    acc = np.zeros((len(x), len(weight.values)), np.float32)
    for g, start in enumerate(range(0, depth, weight.group)):
        p = np.zeros_like(acc)
        q = np.zeros((len(x), 1), np.float32)
        for k in range(start, min(start + weight.group, depth)):
            p = fma(x_by_k[k], w_by_k[k], p)
            q = q + x_by_k[k]
        acc = fma(p, weight.scales[None, :, g], acc)
        if weight.mins is not None:
            acc = fma(q, weight.mins[None, :, g], acc)
    return acc


def _codes_and_scale(x: np.ndarray, weight: Decoded, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return activation codes as int64 and their scales, which undo a float codebook's 127 too."""
    codes, a = quantize_activations(x, group)
    if weight.float_codebook:
        if weight.integers.size and np.abs(weight.integers).max() > 127:
            raise ValueError('compute="int8" needs a codebook within [-1, 1]')
        a = a / np.float32(127)
    return codes.astype(np.int64), a


def _exact_dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``left right^T`` of integer matrices (..., M, K) and (N, K), exactly, as int64.

    Factors are below 512, so every partial sum is an integer below ``2**18 * K < 2**53``, which
    float64 holds; its products are many times faster than NumPy's integer ones.
    """
    return (left.astype(np.float64) @ right.T.astype(np.float64)).astype(np.int64)


def _epilogue(acc: np.ndarray, bias: np.ndarray | None, activation: str | None) -> np.ndarray:
    y = acc + np.float32(0)  # -0 becomes +0
    if bias is not None:
        bias = to_float32(bias, "bias")
        if bias.shape != acc.shape[1:]:
            raise ValueError(f"weight has {acc.shape[1]} outputs, bias has shape {bias.shape}")
        y = y + bias
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, not {activation!r}")
        y = ACTIVATIONS[activation](y)
    return y


def _zero_point(name: str, value: npt.ArrayLike, dtype: np.dtype, length: int) -> np.ndarray:
    """Return a zero point as int64 of the given length."""
    value = np.asarray(value)
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integer, not {value.dtype}")
    if value.shape not in ((), (length,)):
        raise ValueError(f"{name} must be a scalar or have shape ({length},), not {value.shape}")
    limits = np.iinfo(dtype)
    if value.size and not limits.min <= int(value.min()) <= int(value.max()) <= limits.max:
        raise ValueError(f"{name} must be within {dtype}'s {limits.min} to {limits.max}")
    return np.broadcast_to(value.astype(np.int64), (length,))
