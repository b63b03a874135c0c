# SPDX-License-Identifier: Apache-2.0
"""Between matrices (N, G) and planes [P, G, 16], and the checks of planes from outside."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nibblas._arrays import Array, aligned_copy, aligned_empty
from nibblas.schemes import (
    PANEL,
    STORED_DTYPES,
    Scheme,
    group_count,
    is_stored_group_size,
    plane_specs,
    stored_group_count,
)

OFFSET_PLANES = {"zero_point": "zero_points", "min": "mins"}
"""The plane that holds an offset."""

_TYPE_OF_STORED = {np.dtype(stored): name for name, stored in STORED_DTYPES.items()}


def scale_type_of(plane: Array) -> str:
    """The type of the scales (or mins) that a plane holds: uint16 holds bfloat16."""
    try:
        return _TYPE_OF_STORED[plane.dtype]
    except KeyError:
        known = ", ".join(sorted(str(dtype) for dtype in _TYPE_OF_STORED))
        raise ValueError(f"expected one of {known}, got {plane.dtype}") from None


def offset_of(planes: Mapping[str, object]) -> str:
    """What the groups of a weight with these planes have besides a scale."""
    if "zero_points" in planes:
        return "zero_point"
    return "min" if "mins" in planes else "symmetric"


def to_panels(values: Array, depth: int, group_size: int | None) -> Array:
    """(N, G) values as a plane [P, G stored, 16]; what is added is 0."""
    cols, groups = values.shape
    panels = -(-cols // PANEL)
    plane = aligned_empty((panels, stored_group_count(depth, group_size), PANEL), values.dtype)
    plane.fill(0)
    whole = cols // PANEL
    split = whole * PANEL
    plane[:whole, :groups] = values[:split].reshape(whole, PANEL, groups).transpose(0, 2, 1)
    if split < cols:
        plane[whole, :groups, : cols - split] = values[split:].T
    return plane


def from_panels(plane: Array, cols: int, groups: int) -> Array:
    """The (N, G) values of a plane, without its padding, as an array of their own."""
    panels, stored_groups, _ = plane.shape
    rows = plane.transpose(0, 2, 1).reshape(panels * PANEL, stored_groups)
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
    if group_size is not None and not (is_stored_group_size(group_size) and group_size < depth):
        raise ValueError(
            f"group_size: expected a power of two from 16 to 4096 and below the depth {depth}, "
            f"got {group_size}"
        )
    if "scales" not in planes:
        raise ValueError("plane 'scales' is missing")
    offset = offset_of(planes)
    if offset == "zero_point" and "mins" in planes:
        raise ValueError("a weight has zero_points or mins, not both")
    if offset != "symmetric" and offset not in scheme.offsets:
        raise ValueError(f"{scheme.name} has no plane {OFFSET_PLANES[offset]!r}")
    if scheme.signed or offset != "symmetric":
        if zero != scheme.zero:
            raise ValueError(f"zero: expected {scheme.zero}, got {zero}")
    elif not 0 <= zero <= scheme.code_max:
        raise ValueError(f"zero: expected 0 to {scheme.code_max}, got {zero}")

    specs = plane_specs(
        scheme,
        shape,
        group_size,
        scale_type=_type_of(planes, "scales"),
        offset=offset,
        min_type=_type_of(planes, "mins") if "mins" in planes else "float32",
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
    zero_points = checked.get("zero_points")
    if scheme.bits < 8 and zero_points is not None and zero_points.size:
        top = int(zero_points.max())
        if top >> scheme.bits:
            raise ValueError(f"plane 'zero_points': expected at most {scheme.code_max}, got {top}")
    if "input_order" in checked:
        check_permutation(checked["input_order"], "plane 'input_order'")
    return checked


def check_permutation(order: Array, name: str) -> None:
    """ValueError unless `order` has every number from 0 to its length - 1 once."""
    seen = np.zeros(order.size, bool)
    if order.size and int(order.min()) >= 0 and int(order.max()) < order.size:
        seen[order] = True
    if not seen.all():
        raise ValueError(f"{name}: expected every number from 0 to {order.size - 1} once")


def _type_of(planes: Mapping[str, Array], name: str) -> str:
    try:
        return scale_type_of(planes[name])
    except ValueError as error:
        raise ValueError(f"plane {name!r}: {error}") from None


def _check_padding(planes: Mapping[str, Array], cols: int, groups: int) -> None:
    # Kernels may compute with padded groups or leave them out: the same only if they add nothing,
    # and a scale of infinity would make 0 * inf = NaN of them.
    for name in ("scales", "mins"):
        plane = planes.get(name)
        if plane is None:
            continue
        tail = cols % PANEL
        for padding in (plane[:, groups:], plane[-1:, :, tail:] if tail else plane[:0]):
            if plane.dtype == np.uint16:
                padding = padding << 1  # bfloat16 bits without the sign: -0 is 0 too
            if padding.any():
                raise ValueError(f"plane {name!r}: expected 0 in the padding")
