# SPDX-License-Identifier: Apache-2.0
"""Dense weights of many kinds, and what quantizing them must give, for every scheme there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import nibblas
from nibblas import _nibblas, numerics
from nibblas.schemes import SCHEMES, STORED_DTYPES

from .cases import TARGETS, Variant, assert_same_bits, stored_group

RULES = ("mse", "absmax")
QUANTIZED = tuple(
    Variant(name, offset)
    for name, scheme in SCHEMES.items()
    if not scheme.two_level
    for offset in scheme.offsets
)
quantized = pytest.mark.parametrize("variant", QUANTIZED, ids=str)


def is_searched(variant: Variant) -> bool:
    """Whether the rule "mse" tries more than the plain rule does."""
    return len(numerics.candidates(*variant, "mse")) > len(numerics.candidates(*variant, "absmax"))


def dense(rng: np.random.Generator, shape: tuple[int, int], dtype: Any = np.float32) -> np.ndarray:
    """Rows of many kinds: bells, outliers, one-sided, few values, constants, zeros, tiny ones."""
    cols, depth = shape
    w = rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 3, (cols, 1))
    kinds = {
        1: lambda: rng.standard_t(2, depth),
        2: lambda: np.abs(rng.standard_normal(depth)),
        3: lambda: -np.abs(rng.standard_normal(depth)) - 3,
        4: lambda: rng.choice([-3, -1.5, -0.0, 0.0, 1.5, 3], depth),  # ties of extremes
        5: lambda: np.full(depth, rng.choice([0.7, -0.7, 0.0, -0.0])),
        6: lambda: rng.integers(-8, 8, depth) * 2.0 ** rng.integers(-3, 3),  # codes without error
        7: lambda: rng.integers(-17, 18, depth) / 2,  # ties of rint
        8: lambda: rng.standard_normal(depth) * 2.0**-20,  # float16 scales are subnormal
        9: lambda: rng.standard_normal(depth) * 2.0**-26,  # and mostly 0
        10: lambda: rng.standard_normal(depth) * 1e-41,
        11: lambda: rng.standard_normal(depth) * (rng.random(depth) < 0.1),
        12: lambda: rng.integers(-24, 25, depth) / 4,  # e2m1 and what lies between two of them
    }
    for n in range(cols):
        make = kinds.get(int(rng.integers(15)))
        if make is not None:
            w[n] = make()
    with np.errstate(all="ignore"):
        return w.astype(np.float32).astype(dtype)


def reference(
    w: np.ndarray, variant: Variant, group: int | None, rule: str, scale_type: str
) -> numerics.Parts:
    """What numerics makes of a weight."""
    scheme = SCHEMES[variant.scheme]
    if scheme.codebook is None:
        return numerics.quantize(
            w,
            bits=scheme.bits,
            offset=variant.offset,
            group_size=group,
            rule=rule,
            scale_dtype=scale_type,
            ternary=variant.scheme == "ternary",
        )
    return numerics.quantize_codebook(
        w,
        np.array(scheme.codebook, scheme.codebook_dtype),
        numerics.candidates(*variant, rule),
        group_size=group,
        scale_dtype=scale_type,
    )


def native(
    w: np.ndarray, variant: Variant, group: int | None, rule: str, scale_type: str, threads: int = 0
) -> dict[str, Any]:
    """The planes that the native module makes of it on the target in use."""
    scheme = SCHEMES[variant.scheme]
    return dict(
        _nibblas.quantize(
            w,
            scheme.bits,
            variant.offset,
            group or 0,
            np.array(numerics.candidates(*variant, rule), np.float32).ravel(),
            scale_type,
            is_ternary=variant.scheme == "ternary",
            codebook=scheme.codebook,
            num_threads=threads,
        )
    )


def check_quantize(
    w: np.ndarray,
    variant: Variant,
    group: int | None,
    rule: str,
    scale_type: str,
    targets: Iterable[str] = TARGETS,
) -> None:
    """The planes of each target are those of numerics, padding included; or both refuse."""
    group = stored_group(variant.scheme, group, w.shape[1])
    context = (w.shape, variant, group, rule, scale_type)
    try:
        parts = reference(w, variant, group, rule, scale_type)
    except ValueError:
        for target in targets:
            with (
                nibblas.use_target(target),
                pytest.raises(ValueError, match=r"too large|NaN or inf"),
            ):
                native(w, variant, group, rule, scale_type)
        return
    panels = -(-w.shape[0] // 16)
    depth_padded = numerics.padded_depth(w.shape[1], group)
    stored_groups = 1 if group is None else depth_padded // group
    codes = numerics.pack_planes(parts["codes"], parts["bits"], group)
    for threads, target in enumerate(targets):
        with nibblas.use_target(target):
            found = native(w, variant, group, rule, scale_type, threads)
        for plane, same in zip(found["codes"], codes, strict=True):
            assert_same_bits(plane, same, (target, context))
        for name in ("scales", "zero_points", "mins"):
            values = parts.get(name)
            assert (found[name] is None) == (values is None), context
            if values is not None:
                same = numerics.pack_groups(values, panels, stored_groups)
                assert_same_bits(found[name], same, (name, target, context))
        assert found["scales"].dtype == STORED_DTYPES[scale_type]
        assert found["tensor_scale"] == parts.get("tensor_scale", 1)
