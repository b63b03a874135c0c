# SPDX-License-Identifier: Apache-2.0
"""What the bytes of a packed weight mean, and how stored numbers become float32.

A packed weight holds its output features in panels of 16 and its codes in planes, one per slice of
bits. The functions here state that in NumPy, `docs/numerics.md` states it in words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PANEL = 16
"""Output features stored together."""

DEPTH_STEP = 64
"""Packed depth is a multiple of this; one row of a 1-bit plane already holds 32 inputs."""

SUPER_BLOCK = 256
"""Codes under one super-scale of a two-level scheme."""

NAN_FLOAT32, NAN_FLOAT16, NAN_BFLOAT16 = 0x7FC00000, 0x7E00, 0x7FC0
"""The one NaN that an output of each type may hold, as bits."""


def normalize_group_size(depth: int, group_size: int | None) -> int | None:
    """Return the group size as stored: None for per channel, else a power of two.

    Parameters
    ----------
    depth : int
        Input features K.
    group_size : int or None
        None, or a power of two from 16 to 4096. One that is at least `depth` becomes None.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> normalize_group_size(1024, 32), normalize_group_size(32, 32)
    (32, None)
    """
    if group_size is None:
        return None
    if group_size >= max(depth, 1):
        return None
    if group_size < 16 or group_size > 4096 or group_size & (group_size - 1):
        raise ValueError(
            f"group_size must be None or a power of two from 16 to 4096, not {group_size}"
        )
    return int(group_size)


def padded_depth(depth: int, group_size: int | None, *, two_level: bool = False) -> int:
    """Return Kp, the depth of the planes: K rounded up to 64, to max(group_size, 64), or to 256.

    Parameters
    ----------
    depth : int
        Input features K.
    group_size : int or None
        As for :func:`normalize_group_size`.
    two_level : bool
        True for schemes with super-blocks, whose planes are multiples of 256 deep.

    Examples
    --------
    >>> padded_depth(100, None), padded_depth(100, 32), padded_depth(300, 256)
    (128, 128, 512)
    """
    if two_level:
        step = SUPER_BLOCK
    else:
        step = max(normalize_group_size(depth, group_size) or 0, DEPTH_STEP)
    return -(-depth // step) * step


def group_count(depth: int, group_size: int | None) -> int:
    """Return G, the groups that hold a real input: ``ceil(K / group_size)``, 1 for per channel.

    Planes have ``Kp / group_size`` groups, which may be more.
    """
    group = normalize_group_size(depth, group_size)
    return 1 if group is None else -(-depth // group)


def slice_widths(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes that hold a code of `bits` bits (1 to 8), low slice first.

    Examples
    --------
    >>> slice_widths(4), slice_widths(6), slice_widths(7)
    ((4,), (4, 2), (4, 2, 1))
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, not {bits}")
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def pack_planes(
    codes: np.ndarray, bits: int, group_size: int | None, *, two_level: bool = False
) -> list[np.ndarray]:
    """Lay out codes as planes, one per slice of bits.

    Byte ``[p, j, c, i]`` of a plane of b bits holds, at bits ``b*t .. b*t+b-1`` for t from 0 to
    ``8/b - 1``, that slice of the code of output ``16*p + c`` at ``k = (8/b)*4*j + 4*t + i``.
    Codes of padded outputs and padded k are 0.

    Parameters
    ----------
    codes : uint8 ndarray (N, K)
        Each below ``2**bits``.
    bits : int
        1 to 8; see :func:`slice_widths`.
    group_size : int or None
        Decides the padded depth Kp, see :func:`padded_depth`.
    two_level : bool
        Likewise.

    Returns
    -------
    list of uint8 ndarray
        For each slice of b bits, the low one first: ``[ceil(N/16), Kp*b/32, 16, 4]``.

    Raises
    ------
    ValueError
        If a code does not fit.

    Examples
    --------
    >>> pack_planes(np.arange(8, dtype=np.uint8)[None], 4, None)[0][0, 0, 0]
    array([ 64,  81,  98, 115], dtype=uint8)
    """
    codes = np.asarray(codes)
    slices = slice_widths(bits)
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, not {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must have shape (N, K), not {codes.shape}")
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"codes of {bits} bits must be below {1 << bits}, one is {codes.max()}")
    cols, depth = codes.shape
    panels = -(-cols // PANEL)
    kp = padded_depth(depth, group_size, two_level=two_level)
    padded = np.zeros((panels * PANEL, kp), np.uint8)
    padded[:cols, :depth] = codes

    planes, low = [], 0
    for b in slices:
        part = (padded >> low) & ((1 << b) - 1)
        part = part.reshape(panels, PANEL, kp * b // 32, 8 // b, 4)  # [p, c, j, t, i]
        plane = np.zeros((panels, kp * b // 32, PANEL, 4), np.uint8)
        for t in range(8 // b):
            plane |= part[:, :, :, t, :].transpose(0, 2, 1, 3) << (b * t)
        planes.append(plane)
        low += b
    return planes


def unpack_planes(planes: list[np.ndarray], bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Read codes back from planes: the inverse of :func:`pack_planes`.

    Parameters
    ----------
    planes : list of uint8 ndarray
        As :func:`pack_planes` returns them.
    bits : int
        Width of a code.
    shape : (int, int)
        N and K; the padding is dropped.

    Returns
    -------
    uint8 ndarray (N, K)
    """
    slices = slice_widths(bits)
    if len(planes) != len(slices):
        raise ValueError(f"codes of {bits} bits have {len(slices)} planes, not {len(planes)}")
    cols, depth = shape
    codes = np.zeros(shape, np.uint8)
    low = 0
    for b, plane in zip(slices, planes, strict=True):
        panels, rows = plane.shape[:2]
        kp = rows * 32 // b
        if plane.shape[2:] != (PANEL, 4) or panels != -(-cols // PANEL) or kp < depth:
            raise ValueError(f"a {b}-bit plane of shape {plane.shape} cannot hold {shape}")
        part = np.empty((panels, PANEL, rows, 8 // b, 4), np.uint8)  # [p, c, j, t, i]
        for t in range(8 // b):
            part[:, :, :, t, :] = ((plane >> (b * t)) & ((1 << b) - 1)).transpose(0, 2, 1, 3)
        codes |= part.reshape(panels * PANEL, kp)[:cols, :depth] << low
        low += b
    return codes


def pack_groups(values: np.ndarray, panels: int, groups: int | None = None) -> np.ndarray:
    """Lay out one value per output and group as a plane: ``plane[p, g, c] = values[16*p+c, g]``.

    Parameters
    ----------
    values : ndarray (N, G)
        Of any type, which the plane keeps.
    panels : int
        P, the panels of the plane.
    groups : int, optional
        Groups of the plane (``Kp / group_size``); G if not given.

    Returns
    -------
    ndarray [P, groups, 16]
        Zero where there is no value.
    """
    cols, real = values.shape
    groups = real if groups is None else groups
    if cols > panels * PANEL or real > groups:
        raise ValueError(f"values {values.shape} do not fit {panels} panels and {groups} groups")
    padded = np.zeros((panels * PANEL, groups), values.dtype)
    padded[:cols, :real] = values
    return np.ascontiguousarray(padded.reshape(panels, PANEL, groups).transpose(0, 2, 1))


def unpack_groups(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Read values (N, G) back from a plane ``[P, groups, 16]``: the inverse of `pack_groups`."""
    panels, groups = plane.shape[:2]
    cols, real = shape
    if plane.shape[2] != PANEL or panels != -(-cols // PANEL) or groups < real:
        raise ValueError(f"a plane of shape {plane.shape} cannot hold {shape}")
    return np.ascontiguousarray(
        plane.transpose(0, 2, 1).reshape(panels * PANEL, groups)[:cols, :real]
    )


def e8m0_to_float32(exponents: np.ndarray) -> np.ndarray:
    """Decode e8m0 scales for codes that are doubled e2m1: ``2**(e - 128)``, 255 is NaN.

    The halving that undoes the doubled codes is in the scale, so e = 0 and 1 are subnormal.

    Parameters
    ----------
    exponents : uint8 ndarray

    Returns
    -------
    float32 ndarray of the same shape

    Examples
    --------
    >>> e8m0_to_float32(np.array([127, 128, 130], np.uint8))
    array([0.5, 1. , 4. ], dtype=float32)
    """
    e = np.asarray(exponents, np.uint8).astype(np.uint32)
    subnormal = np.uint32(0x00200000) << (e & np.uint32(1))
    bits = np.where(e < 2, subnormal, (e - np.uint32(1)) << np.uint32(23))
    return np.where(e == 255, np.uint32(NAN_FLOAT32), bits).astype(np.uint32).view(np.float32)


def e4m3_to_float32(bits: np.ndarray) -> np.ndarray:
    """Decode e4m3 scales (uint8) to half their value, exactly: they go with doubled e2m1 codes.

    Sign, four bits of exponent with bias 7, three of fraction; 0x7F and 0xFF are NaN, there is no
    infinity.

    Examples
    --------
    >>> e4m3_to_float32(np.array([0x38, 0xC0, 0x7E], np.uint8))
    array([  0.5,  -1. , 224. ], dtype=float32)
    """
    bits = np.asarray(bits, np.uint8)
    exponent, fraction = (bits >> 3) & 15, (bits & 7).astype(np.float32)
    normal = np.ldexp(fraction + 8, exponent.astype(np.int32) - 11)  # (8 + f)/8 * 2^(e-7) / 2
    magnitude = np.where(exponent == 0, fraction * np.float32(2.0**-10), normal)
    magnitude = np.where(bits & 127 == 127, np.uint32(NAN_FLOAT32).view(np.float32), magnitude)
    return np.where(bits >> 7, -magnitude, magnitude).astype(np.float32)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Decode bfloat16 bits (uint16) to float32, exactly: they are its upper half."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16 bits (uint16): nearest even, every NaN becomes 0x7FC0.

    Adding 0x7FFF plus the last kept bit carries into the upper half exactly when the lower half is
    above its middle, or at it with an odd upper half. Values that round past the largest become
    infinite by the same carry. NaN is tested first, because the carry could leave the NaN range.
    """
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits.astype(np.uint64) + odd + np.uint64(0x7FFF)) >> np.uint64(16)
    return np.where(np.isnan(values), NAN_BFLOAT16, rounded).astype(np.uint16)


def float32_to_float16(values: np.ndarray) -> np.ndarray:
    """Round float32 to float16: nearest even, every NaN becomes 0x7E00."""
    values = np.asarray(values, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        halves = values.astype(np.float16)
    return np.where(np.isnan(values), np.uint16(NAN_FLOAT16), halves.view(np.uint16)).view(
        np.float16
    )


def canonical_nan(values: np.ndarray) -> np.ndarray:
    """Replace every NaN of a float32 array by 0x7FC00000."""
    nan = np.uint32(NAN_FLOAT32).view(np.float32)
    return np.where(np.isnan(values), nan, values).astype(np.float32)


def to_float32(values: np.ndarray, name: str = "x") -> np.ndarray:
    """Convert float32, float16 or bfloat16 (the ml_dtypes type) to float32, exactly.

    Raises
    ------
    TypeError
        For any other type; `name` says of what.
    """
    values = np.asarray(values)
    if values.dtype == np.float32:
        return values
    if values.dtype == np.float16:
        with np.errstate(invalid="ignore"):  # signalling NaN: some CPUs report them here
            return values.astype(np.float32)
    if values.dtype.name == "bfloat16":
        return bfloat16_to_float32(np.ascontiguousarray(values).view(np.uint16))
    raise TypeError(
        f"{name} must be float32, float16 or bfloat16, not {values.dtype}: use astype(np.float32)"
    )


def scales_to_float32(
    values: np.ndarray, name: str = "scales", *, scale_type: str = "e8m0"
) -> np.ndarray:
    """Decode stored scales, mins or float zero points.

    As :func:`to_float32`; besides, uint16 is bfloat16, and uint8 is `scale_type`: e8m0 or e4m3.
    """
    values = np.asarray(values)
    if values.dtype == np.uint16:
        return bfloat16_to_float32(values)
    if values.dtype == np.uint8:
        return e4m3_to_float32(values) if scale_type == "e4m3" else e8m0_to_float32(values)
    return to_float32(values, name)


def round_to(values: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """Round float32 once to an output type, with its canonical NaN.

    Parameters
    ----------
    values : float32 ndarray
    dtype : dtype or str
        float32, float16, or bfloat16: as the string "bfloat16" for the bits in uint16, or as the
        dtype of ml_dtypes for an array of that.

    Returns
    -------
    ndarray of the same shape
    """
    if isinstance(dtype, str) and dtype == "bfloat16":
        return float32_to_bfloat16(values)
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        return canonical_nan(values)
    if dtype == np.float16:
        return float32_to_float16(values)
    if dtype.name == "bfloat16":
        return float32_to_bfloat16(values).view(dtype)
    raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
