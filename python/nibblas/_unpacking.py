# SPDX-License-Identifier: Apache-2.0
"""The planes of a packed weight as plain arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nibblas import _nibblas
from nibblas._arrays import bfloat16, thread_count
from nibblas._planes import from_panels, split_nibbles
from nibblas.schemes import group_count, super_count

if TYPE_CHECKING:
    from nibblas.weights import PackedWeight


def stored_parts(
    weight: PackedWeight, num_threads: int | None, subtracted: int = 0
) -> dict[str, Any]:
    """What `PackedWeight.unpack` returns, with the codes and the zero as they are stored.

    Less so much, modulo 256, are the codes alone.
    """
    cols, depth = weight.shape
    scheme = weight._scheme
    parts: dict[str, Any] = {
        "codes": _nibblas.unpack_codes(weight._native, thread_count(num_threads), -subtracted),
        "scheme": scheme.name,
        "group_size": weight.group_size,
        "zero": weight._zero,
    }
    groups = group_count(depth, weight.group_size)
    planes = weight.planes
    for name in ("scales", "zero_points", "mins", "super_scales", "super_mins"):
        plane = planes.get(name)
        if plane is not None:
            if name == "zero_points" and plane.dtype == np.uint8 and scheme.nibble_zeros:
                plane = split_nibbles(plane)
            count = super_count(depth) if name.startswith("super") else groups
            values = from_panels(plane, cols, count)
            parts[name] = values.view(bfloat16()) if plane.dtype == np.uint16 else values
    if scheme.nibble_mins:
        parts["mins"] = parts["scales"] >> 4
        parts["scales"] &= 15
    for name in ("codebook", "input_order"):
        if name in planes:
            parts[name] = planes[name].copy()
    parts.update(weight._tensor_numbers())
    return parts
