# SPDX-License-Identifier: Apache-2.0
"""Making packed weights from dense matrices."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nibblas import _nibblas
from nibblas._arrays import Array, float_matrix, float_type_name, thread_count
from nibblas._candidates import candidates
from nibblas._planes import join_nibbles
from nibblas.schemes import PlaneSpec, Scheme, get_scheme, plane_specs, resolve_group_size
from nibblas.weights import PackedWeight, make_weight


def quantize(
    weight: Array,
    scheme: str = "int4",
    group_size: int | Literal["auto"] | None = "auto",
    *,
    rule: str = "mse",
    scale_dtype: npt.DTypeLike | None = None,
    offset: str | None = None,
    num_threads: int | None = None,
) -> PackedWeight:
    """Quantize a dense matrix.

    Parameters
    ----------
    weight : ndarray or CPU tensor
        (N, K) float32, float16 or bfloat16; N output features, K input features.
    scheme : str
        "int2" to "int8": codes around zero. "uint1" to "uint8": codes with an offset, for values
        that do not lie around zero. "ternary": -s, 0 and s. "nf4", "fp4", "iq4_nl": codes of a
        table whose steps are finer near zero. "mxfp4", "nvfp4": the 4-bit floats of the OCP MX and
        NVIDIA formats.
    group_size : int, None or "auto"
        Input features that share a scale: a power of two from 16 to 4096, or None for one scale
        per output. "auto" is None for the 8-bit schemes, 256 for "ternary", 64 for "nf4" and
        "fp4", 16 for "nvfp4" and 32 for all others; "mxfp4" and "nvfp4" have no other. A size of
        at least K is None.
    rule : str
        How a scale is chosen. "absmax": so that the group's extremes are just representable.
        "mse": of several candidates the one with the least squared error (the same as "absmax"
        for 8 bits).
    scale_dtype : dtype or str, optional
        "float16", "float32" or "bfloat16"; float16 for groups and float32 per channel if None.
        Scales are rounded to it first, then codes are chosen for the rounded scales. Of "mxfp4" it
        is "e8m0", of "nvfp4" "e4m3".
    offset : str, optional
        For unsigned schemes "zero_point" (the default: an integer code that stands for 0 exactly)
        or "min" (a float that is added).
    num_threads : int, optional
        Threads for this call.

    Raises
    ------
    TypeError
        `weight` is not of one of the three types.
    ValueError
        An unknown scheme, rule or offset; a group size that cannot be; weights that are not
        finite; scales too large for their type.

    Examples
    --------
    >>> weight = np.linspace(-1, 1, 256 * 512, dtype=np.float32).reshape(256, 512)
    >>> w = nibblas.quantize(weight, "int4", group_size=32)
    >>> w.bits_per_weight
    4.5
    """
    weight = float_matrix(weight, "weight")
    shape = (weight.shape[0], weight.shape[1])
    plan = plan_quantization(scheme, group_size, shape[1], rule, scale_dtype, offset)
    chosen = plan.scheme
    if chosen.two_level:
        from nibblas.io._gguf_blocks import quantize_weight  # the formats' own writer

        return quantize_weight(weight, chosen.name, num_threads=num_threads)
    tried = np.array(candidates(chosen.name, plan.offset, rule), np.float32).ravel()
    book = None if chosen.codebook is None else np.array(chosen.codebook, np.float32)
    result = _nibblas.quantize(
        weight,
        chosen.bits,
        plan.offset,
        plan.group_size or 0,
        tried,
        plan.scale_type,
        is_ternary=chosen.name == "ternary",
        codebook=book,
        num_threads=thread_count(num_threads),
    )
    planes: dict[str, Array] = dict(zip(chosen.code_planes, result["codes"], strict=True))
    planes["scales"] = result["scales"]
    if result["zero_points"] is not None:
        zeros = result["zero_points"]
        planes["zero_points"] = join_nibbles(zeros) if chosen.nibble_zeros else zeros
    if result["mins"] is not None:
        planes["mins"] = result["mins"]
    if chosen.codebook_dtype == "float32":
        planes["codebook"] = np.array(chosen.codebook, np.float32)
    tensor_scale = result["tensor_scale"] if plan.has_tensor_scale else None
    return make_weight(chosen, shape, plan.group_size, planes, chosen.zero, tensor_scale)


class QuantizationPlan(NamedTuple):
    """The choices of `quantize`, checked and with nothing left open."""

    scheme: Scheme
    group_size: int | None
    offset: str
    scale_type: str

    @property
    def min_type(self) -> str:
        """Type in which mins are stored: that of the scales, but never bfloat16."""
        return "float32" if self.scale_type == "bfloat16" else self.scale_type

    @property
    def has_tensor_scale(self) -> bool:
        """Whether a number of the whole matrix multiplies its scales: see `tensor_scale_of`."""
        return self.scale_type == "e4m3"

    def plane_specs(self, shape: tuple[int, int]) -> dict[str, PlaneSpec]:
        """The planes that such a weight of this shape will have."""
        return plane_specs(
            self.scheme,
            shape,
            self.group_size,
            scale_type=self.scale_type,
            offset=self.offset,
            offset_type="uint8" if self.offset == "zero_point" else self.min_type,
        )


def tensor_scale_of(weight: Array) -> float:
    """The tensor_scale with which e4m3 scales are quantized, for what is written before them."""
    greatest = np.float32(max(weight.max(), -weight.min())) if weight.size else np.float32(0)
    scale = float(greatest / np.float32(2688))
    return scale or 1.0


def plan_quantization(
    scheme: str,
    group_size: int | str | None,
    depth: int,
    rule: str,
    scale_dtype: npt.DTypeLike | None,
    offset: str | None,
) -> QuantizationPlan:
    """What `quantize` with these arguments does for a weight of `depth` input features."""
    chosen = get_scheme(scheme)
    group = resolve_group_size(group_size, chosen, depth)
    _check_choice("rule", rule, chosen.rules, chosen)
    offset = chosen.offsets[0] if offset is None else offset
    _check_choice("offset", offset, chosen.offsets, chosen)
    if scale_dtype is None:
        scale_type = "float32" if group is None else "float16"
        if scale_type not in chosen.scale_types:
            scale_type = chosen.scale_types[0]
    elif isinstance(scale_dtype, str) and scale_dtype in chosen.scale_types:
        scale_type = scale_dtype
    else:
        scale_type = float_type_name(scale_dtype, "scale_dtype")
        _check_choice("scale_dtype", scale_type, chosen.scale_types, chosen)
    return QuantizationPlan(chosen, group, offset, scale_type)


def _check_choice(name: str, value: object, choices: tuple[str, ...], scheme: Scheme) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(
            f"{name} of {scheme.name} must be {' or '.join(map(repr, choices))}, got {value!r}"
        )
