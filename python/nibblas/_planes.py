# SPDX-License-Identifier: Apache-2.0
"""Between matrices (N, G) and planes [P, G, 16], and the checks of planes from outside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from nibblas._arrays import FLOAT_TYPES, Array, aligned_copy, aligned_empty
from nibblas.schemes import (
    PANEL,
    STORED_DTYPES,
    Scheme,
    check_fixed_group,
    group_count,
    is_stored_group_size,
    plane_specs,
)

OFFSET_PLANES = {"zero_point": "zero_points", "min": "mins"}
"""The plane that holds an offset."""

_FLOAT_TYPES = {np.dtype(STORED_DTYPES[name]): name for name in FLOAT_TYPES}


def float_type_of(plane: Array) -> str:
    """The float type that a plane holds: uint16 holds bfloat16."""
    try:
        return _FLOAT_TYPES[plane.dtype]
    except KeyError:
        known = ", ".join(sorted(str(dtype) for dtype in _FLOAT_TYPES))
        raise ValueError(f"expected one of {known}, got {plane.dtype}") from None


def scale_type_of(scheme: Scheme, plane: Array) -> str:
    """The type of a plane of scales; only floats have more than one."""
    return scheme.scale_types[0] if len(scheme.scale_types) == 1 else float_type_of(plane)


def offset_of(scheme: Scheme, planes: Mapping[str, object]) -> str:
    """What the groups of a weight with these planes have besides a scale."""
    if "zero_points" in planes:
        return "zero_point"
    return "min" if "mins" in planes or scheme.nibble_mins else "symmetric"


def to_panels(values: Array, stored_groups: int) -> Array:
    """(N, G) values as a plane [P, stored_groups, 16]; what is added is 0."""
    cols, groups = values.shape
    panels = -(-cols // PANEL)
    plane = aligned_empty((panels, stored_groups, PANEL), values.dtype)
    plane.fill(0)
    whole = cols // PANEL
    split = whole * PANEL
    plane[:whole, :groups] = values[:split].reshape(whole, PANEL, groups).transpose(0, 2, 1)
    if split < cols:
        plane[whole, :groups, : cols - split] = values[split:].T
    return plane


def join_nibbles(plane: Array) -> Array:
    """Zero points [P, G, 16] below 16, two groups to a byte: [P, ceil(G / 2), 16]."""
    panels, groups, _ = plane.shape
    joined = aligned_empty((panels, -(-groups // 2), PANEL), np.uint8)
    joined[...] = plane[:, 0::2]
    joined[:, : groups // 2] |= plane[:, 1::2] << 4
    return joined


def split_nibbles(plane: Array) -> Array:
    """The inverse of `join_nibbles`, with an even number of groups."""
    panels, rows, _ = plane.shape
    return np.stack((plane & 15, plane >> 4), axis=2).reshape(panels, 2 * rows, PANEL)


def from_panels(plane: Array, cols: int, groups: int) -> Array:
    """The (N, G) values of a plane, without its padding, as an array of their own."""
    panels, stored_groups, _ = plane.shape
    rows = plane.transpose(0, 2, 1).reshape(panels * PANEL, stored_groups)
    if rows.shape == (cols, groups) and not np.may_share_memory(rows, plane):
        return rows
    return rows[:cols, :groups].copy()


def check_planes(
    scheme: Scheme,
    shape: tuple[int, int],
    group_size: int | None,
    planes: Mapping[str, Array],
    zero: int,
) -> dict[str, Array]:
    """The planes in their order, if they make up such a weight; else ValueError.

    Everything that a file or a pickle could get wrong is looked at, apart from the scales and mins
    themselves, which may be any numbers.
    """
    cols, depth = shape
    if cols < 0 or depth < 0:
        raise ValueError(f"shape: expected two sizes, got {shape}")
    _check_group_size(scheme, group_size, depth)
    if "scales" not in planes:
        raise ValueError("plane 'scales' is missing")
    offset = offset_of(scheme, planes)
    if offset == "zero_point" and "mins" in planes:
        raise ValueError("a weight has zero_points or mins, not both")
    one_zero = offset == "symmetric" and "zero_point" in scheme.offsets  # of the whole matrix
    if offset not in scheme.offsets and not one_zero:
        if offset == "symmetric":
            raise ValueError("plane 'mins' is missing")
        raise ValueError(f"{scheme.name} has no plane {OFFSET_PLANES[offset]!r}")
    if one_zero:
        if not 0 <= zero <= 255:
            raise ValueError(f"zero: expected 0 to 255, got {zero}")
    elif zero != scheme.zero:
        raise ValueError(f"zero: expected {scheme.zero}, got {zero}")

    specs = plane_specs(
        scheme,
        shape,
        group_size,
        scale_type=_type_of(planes, "scales", functools.partial(scale_type_of, scheme)),
        offset=offset,
        offset_type=_offset_type(scheme, planes, offset),
        has_input_order="input_order" in planes,
    )
    unknown = planes.keys() - specs.keys()
    if unknown:
        raise ValueError(f"{scheme.name} has no plane {min(unknown)!r}")
    checked = {}
    for name, spec in specs.items():
        if name not in planes:
            raise ValueError(f"plane {name!r} is missing")
        plane = planes[name]
        if plane.dtype != np.dtype(spec.dtype) or plane.shape != spec.shape:
            raise ValueError(
                f"plane {name!r}: expected {spec.dtype} {spec.shape}, "
                f"got {plane.dtype} {plane.shape}"
            )
        if not plane.flags.c_contiguous:
            raise ValueError(f"plane {name!r}: expected C order")
        # A file by another writer may put a plane anywhere; NumPy and C want whole elements.
        checked[name] = plane if plane.flags.aligned else aligned_copy(plane)

    _check_padding(checked, cols, group_count(depth, group_size))
    if scheme.name == "ternary":
        _check_ternary(checked["codes"])
    if "codebook" in checked:
        # rint(127 * value) has to be an activation-like code, and NaN would be in every output.
        book = checked["codebook"]
        if not (np.abs(book) <= 1).all():
            raise ValueError("plane 'codebook': expected values from -1 to 1")
    if "input_order" in checked:
        check_permutation(checked["input_order"], "plane 'input_order'")
    return checked


def check_tensor_scale(
    scheme: Scheme, tensor_scale: float | None, tensor_divisor: float | None
) -> None:
    """ValueError unless a weight of this scheme may have these."""
    given = [value for value in (tensor_scale, tensor_divisor) if value is not None]
    if "e4m3" not in scheme.scale_types:
        if given:
            raise ValueError(f"{scheme.name} has no tensor_scale or tensor_divisor")
        return
    if len(given) != 1:
        raise ValueError(f"{scheme.name} needs one of tensor_scale and tensor_divisor")
    if not np.isfinite(given[0]) or float(given[0]) != float(np.float32(given[0])):
        raise ValueError(
            f"tensor_scale or tensor_divisor: expected a finite float32, got {given[0]}"
        )
    if tensor_divisor == 0:
        raise ValueError("tensor_divisor: expected a number that is not 0")


def _check_group_size(scheme: Scheme, group_size: int | None, depth: int) -> None:
    if scheme.fixed_group is not None:
        check_fixed_group(group_size, scheme, depth)
        if scheme.two_level:
            return
    if group_size is not None and not (is_stored_group_size(group_size) and group_size < depth):
        raise ValueError(
            f"group_size: expected a power of two from 16 to 4096 and below the depth {depth}, "
            f"got {group_size}"
        )


def _check_ternary(codes: Array) -> None:
    # Both bits of a code set: 3.
    for panel in codes:
        if (panel & (panel >> 1) & 0x55).any():
            raise ValueError("plane 'codes': expected codes from 0 to 2, got 3")


def check_permutation(order: Array, name: str) -> None:
    """ValueError unless `order` has every number from 0 to its length - 1 once."""
    seen = np.zeros(order.size, bool)
    if order.size and int(order.min()) >= 0 and int(order.max()) < order.size:
        seen[order] = True
    if not seen.all():
        raise ValueError(f"{name}: expected every number from 0 to {order.size - 1} once")


def _offset_type(scheme: Scheme, planes: Mapping[str, Array], offset: str) -> str:
    if offset == "symmetric" or scheme.two_level:
        return "uint8"
    name = OFFSET_PLANES[offset]
    if offset == "zero_point" and planes[name].dtype == np.uint8:
        return "uint8"
    return _type_of(planes, name, float_type_of)


def _type_of(planes: Mapping[str, Array], name: str, type_of: Callable[[Array], str]) -> str:
    try:
        return type_of(planes[name])
    except ValueError as error:
        raise ValueError(f"plane {name!r}: {error}") from None


def _check_padding(planes: Mapping[str, Array], cols: int, groups: int) -> None:
    # Kernels may compute with padded groups or leave them out: the same only if they add nothing,
    # and a scale of infinity would make 0 * inf = NaN of them.
    # Not so an integer zero point.
    for name in ("scales", "zero_points", "mins", "super_scales", "super_mins"):
        plane = planes.get(name)
        if plane is None or (name == "zero_points" and plane.dtype == np.uint8):
            continue
        tail = cols % PANEL
        used = plane.shape[1] if name.startswith("super") else groups
        for padding in (plane[:, used:], plane[-1:, :, tail:] if tail else plane[:0]):
            if plane.dtype == np.uint16:
                padding = padding << 1  # bfloat16 bits without the sign: -0 is 0 too
            if padding.any():
                raise ValueError(f"plane {name!r}: expected 0 in the padding")
