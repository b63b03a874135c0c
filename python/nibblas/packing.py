# SPDX-License-Identifier: Apache-2.0
"""Making packed weights from codes that some other tool has made."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from nibblas import _nibblas
from nibblas._arrays import (
    FLOAT_TYPES,
    Array,
    aligned_copy,
    as_array,
    thread_count,
)
from nibblas._planes import check_permutation, join_nibbles, to_panels
from nibblas.schemes import (
    CODEBOOK,
    STORED_DTYPES,
    Scheme,
    divide_group_size,
    get_scheme,
    group_count,
    stored_group_count,
    super_count,
)
from nibblas.weights import PackedWeight, make_weight


def pack(
    codes: Array,
    scales: Array,
    zero_points: Array | int | None = None,
    *,
    scheme: str,
    group_size: int | Literal["auto"] | None,
    zero: int = 0,
    mins: Array | None = None,
    super_scales: Array | None = None,
    super_mins: Array | None = None,
    codebook: Array | None = None,
    tensor_scale: float | None = None,
    tensor_divisor: float | None = None,
    input_order: Array | None = None,
    group_index: Array | None = None,
    allow_non_finite: bool = False,
    num_threads: int | None = None,
) -> PackedWeight:
    """Pack codes that some other tool has made. No value changes.

    A weight is ``(code - zero_point) * scale``, ``code * scale + min``, or with a codebook
    ``codebook[code] * scale``.

    Parameters
    ----------
    codes : ndarray of int
        (N, K): of "intB" from -2**(B-1) to 2**(B-1) - 1, of "uintB" from 0 to 2**B - 1, of
        "ternary" -1, 0 and 1. Of all other schemes the code as the format stores it, from 0 up.
    scales : ndarray
        (N, G) float16, float32 or bfloat16 with G = ceil(K / group_size), stored as it is. Per
        channel (N,) or (N, 1). May be negative. Of "mxfp4" uint8 e8m0, of "nvfp4" uint8 e4m3. Of
        the two-level schemes the integers that multiply super_scales: uint8, or int8 where there
        are no mins.
    zero_points : ndarray or int, optional
        Of the unsigned integer schemes: integers from 0 to 255 (up to 3 bits: to 15) shaped like
        the scales, or one for the whole matrix (which costs nothing at run time, and is recognized
        in an array too); or float16, float32 or bfloat16, shaped like the scales. None is 0.
    zero : int
        The same as an int for zero_points, as `PackedWeight.unpack` calls it.
    scheme : str
        See `quantize`.
    group_size : int, None or "auto"
        Input features that share a scale; None is per channel, "auto" is the scheme's own. A size
        that is no power of two, or above 4096, is stored as its largest such divisor with the
        scales repeated, if that is at least 16: 48 becomes 16. A size of at least K is None.
    mins : ndarray, optional
        Of the unsigned integer schemes: float16, float32 or bfloat16, shaped like the scales. Of
        the two-level schemes uint8.
    super_scales, super_mins : ndarray, optional
        Of the two-level schemes: (N, ceil(K / 256)) float16. A group's scale is the product of
        its super-scale and its scale; what is added is that of its super-min (in the formats that
        subtract, -dmin) and its min.
    codebook : ndarray, optional
        Of "nf4" and "fp4": (16,) float32 from -1 to 1, if it is not the usual one.
    tensor_scale, tensor_divisor : float, optional
        Of "nvfp4": what multiplies or divides every scale. One of the two is needed.
    input_order : ndarray of int, optional
        (K,): the group of position j is ``j // group_size`` where position j holds input
        ``input_order[j]``. For checkpoints that have sorted their inputs.
    group_index : ndarray of int, optional
        (K,): the same, given as the group of each input. Groups are sorted stably and must all
        have group_size inputs, but for the last one if it has what remains.
    allow_non_finite : bool
        Take scales and mins that are NaN or infinite, as damaged files may have them.
    num_threads : int, optional
        Threads for this call.

    Raises
    ------
    TypeError, ValueError
        A type, shape or value is not as said.

    Examples
    --------
    >>> codes = np.arange(-8, 8, dtype=np.int8).reshape(1, 16).repeat(4, axis=0)
    >>> w = nibblas.pack(codes, np.ones(4, np.float32), scheme="int4", group_size=None)
    >>> np.array_equal(w.dequantize(), codes)
    True
    """
    chosen = get_scheme(scheme)
    codes = _checked_codes(codes, chosen)
    shape = (codes.shape[0], codes.shape[1])
    group, repeat = divide_group_size(group_size, chosen, shape[1])
    per_group = _PerGroup(chosen, shape, group, repeat, allow_non_finite)
    planes: dict[str, Array] = {}

    stored_zero = chosen.zero
    if zero and (chosen.signed or zero != chosen.zero):
        if zero_points is not None:
            raise ValueError("give zero or zero_points, not both")
        zero_points = zero
    if zero_points is not None and mins is not None:
        raise ValueError("give zero_points or mins, not both")
    planes["scales"] = per_group.scales(scales, mins)
    if chosen.two_level:
        if zero_points is not None:
            raise ValueError(f"{chosen.name} has no zero_points")
        planes.update(per_group.two_level(mins, super_scales, super_mins))
    elif super_scales is not None or super_mins is not None:
        raise ValueError(f"{chosen.name} has no super_scales or super_mins")
    elif zero_points is not None:
        values = _zero_points(zero_points, chosen, per_group)
        if isinstance(values, int):
            stored_zero += values
        else:
            planes["zero_points"] = values
    elif mins is not None:
        if "min" not in chosen.offsets:
            raise ValueError(f"{chosen.name} has no mins{_unsigned_hint(chosen)}")
        planes["mins"] = per_group.floats(mins, "mins")
    if chosen.codebook_dtype == "float32":
        planes["codebook"] = _codebook(codebook, chosen)
    elif codebook is not None:
        raise ValueError(f"{chosen.name} has no codebook of its own")

    given = group * repeat if group is not None else None
    order = _input_order(input_order, group_index, shape[1], given)
    if order is not None:
        planes["input_order"] = order
    code_planes = _nibblas.pack_codes(
        codes,
        chosen.bits,
        group or 0,
        thread_count(num_threads),
        chosen.two_level,
        add=-chosen.code_min,
        top=chosen.top_code,
        input_order=order,
    )
    if code_planes is None:
        _check_range("codes", codes, chosen.code_min, chosen.code_max, chosen)
        raise ValueError("codes were changed while they were packed")
    planes.update(zip(chosen.code_planes, code_planes, strict=True))
    return make_weight(chosen, shape, group, planes, stored_zero, tensor_scale, tensor_divisor)


class _PerGroup:
    """Values that every group has, of a weight of this shape, as given to `pack`."""

    def __init__(
        self,
        scheme: Scheme,
        shape: tuple[int, int],
        group: int | None,
        repeat: int,
        allow_non_finite: bool,
    ) -> None:
        self.scheme = scheme
        self.cols, self.depth = shape
        self.group = group
        self.repeat = repeat
        self.allow_non_finite = allow_non_finite
        given = None if group is None else group * repeat
        self.shape = (self.cols, group_count(self.depth, given))

    def matrix(self, values: Array, name: str) -> Array:
        if self.group is None and values.shape == (self.cols,):
            return values[:, np.newaxis]
        if values.shape != self.shape:
            raise ValueError(f"{name} must have shape {self.shape}, got {values.shape}")
        return values

    def plane(self, values: Array) -> Array:
        groups = group_count(self.depth, self.group)
        if self.repeat > 1:
            values = values.repeat(self.repeat, axis=1)[:, :groups]
        stored = stored_group_count(self.depth, self.group, self.scheme.two_level)
        return to_panels(values, stored)

    def checked(self, values: Array, name: str, types: tuple[str, ...]) -> Array:
        found = values.dtype.name
        if found not in types:
            raise TypeError(
                f"{name} must be {' or '.join(types)}, got {values.dtype}: "
                f"convert them with {name}.astype(np.float32)"
            )
        if not self.allow_non_finite and not _all_finite(values):
            raise ValueError(f"{name} must be finite")
        return values.view(np.uint16) if found == "bfloat16" else values

    def floats(self, values: Any, name: str) -> Array:
        given = self.matrix(as_array(values, name), name)
        return self.plane(self.checked(given, name, FLOAT_TYPES))

    def integers(self, values: Any, name: str, dtype: str) -> Array:
        given = self.matrix(as_array(values, name), name)
        if given.dtype.name in _BYTE_FLOATS and self.scheme.scale_types[0] in given.dtype.name:
            given = given.view(np.uint8)
        if given.dtype.name != dtype:
            raise TypeError(f"{name} of {self.scheme.name} must be {dtype}, got {given.dtype}")
        return given

    def scales(self, scales: Any, mins: Any) -> Array:
        types = self.scheme.scale_types
        if types[0] in FLOAT_TYPES:
            given = self.matrix(as_array(scales, "scales"), "scales")
            return self.plane(self.checked(given, "scales", types))
        values = self.integers(scales, "scales", STORED_DTYPES[types[0]])
        if self.scheme.nibble_mins:
            if mins is None:
                raise ValueError(f"{self.scheme.name} needs mins")
            low, high = values, self.integers(mins, "mins", "uint8")
            for name, nibbles in (("scales", low), ("mins", high)):
                _check_range(name, nibbles, 0, 15, self.scheme)
            values = low | high << 4
        return self.plane(values)

    def two_level(self, mins: Any, super_scales: Any, super_mins: Any) -> dict[str, Array]:
        has_mins = "min" in self.scheme.offsets
        planes = {}
        for name, values, wanted in (
            ("mins", mins, has_mins),
            ("super_scales", super_scales, True),
            ("super_mins", super_mins, has_mins),
        ):
            if (values is not None) != wanted:
                raise ValueError(f"{self.scheme.name} {'needs' if wanted else 'has no'} {name}")
            if wanted and name != "mins":
                supers = super_count(self.depth)
                given = as_array(values, name)
                if given.shape != (self.cols, supers):
                    raise ValueError(
                        f"{name} must have shape {(self.cols, supers)}, got {given.shape}"
                    )
                planes[name] = to_panels(self.checked(given, name, ("float16",)), supers)
        if has_mins and not self.scheme.nibble_mins:
            planes["mins"] = self.plane(self.integers(mins, "mins", "uint8"))
        return planes


def _all_finite(values: Array) -> bool:
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80}.get(values.dtype.name)
    if exponent is None or not values.dtype.isnative or not values.size:
        return bool(np.isfinite(values).all())
    # NumPy converts small floats one by one; their bits it does not.
    return int((values.view(np.uint16) & exponent).max()) < exponent


_BYTE_FLOATS = ("float8_e8m0fnu", "float8_e4m3fn")  # of ml_dtypes


def _codebook(codebook: Any, scheme: Scheme) -> Array:
    if codebook is None:
        return np.array(scheme.codebook, np.float32)
    book = as_array(codebook, "codebook")
    if book.dtype != np.float32:
        raise TypeError(f"codebook must be float32, got {book.dtype}")
    if book.shape != (CODEBOOK,):
        raise ValueError(f"codebook must have shape ({CODEBOOK},), got {book.shape}")
    return aligned_copy(book)


def _checked_codes(codes: Any, scheme: Scheme) -> Array:
    """A matrix of the scheme's type; whether such codes are in range shows as they are packed."""
    codes = as_array(codes, "codes")
    if codes.dtype.name in ("int4", "uint4"):  # of ml_dtypes
        codes = codes.astype(codes.dtype.name.replace("4", "8"))
    if codes.dtype.kind not in "iu":
        raise TypeError(f"codes must be integers, got {codes.dtype}")
    if codes.ndim != 2:
        raise ValueError(f"codes must be a matrix (N, K), got shape {codes.shape}")
    if codes.dtype != scheme.code_dtype:
        _check_range("codes", codes, scheme.code_min, scheme.code_max, scheme)
        codes = codes.astype(scheme.code_dtype)
    return codes


def _zero_points(zero_points: Any, scheme: Scheme, per_group: _PerGroup) -> Array | int:
    if isinstance(zero_points, int | np.integer) and not isinstance(zero_points, bool):
        values = np.full((1, 1), zero_points)
    else:
        values = as_array(zero_points, "zero_points")
        if values.dtype.name in ("int4", "uint4"):
            values = values.astype(values.dtype.name.replace("4", "8"))
        if values.dtype.name in FLOAT_TYPES and "zero_point" in scheme.offsets:
            return per_group.floats(values, "zero_points")
        if values.dtype.kind not in "iu":
            raise TypeError(f"zero_points must be integers, got {values.dtype}")
        if values.ndim == 0:
            values = values.reshape(1, 1)
        else:
            values = per_group.matrix(values, "zero_points")
    if "zero_point" not in scheme.offsets:
        if values.any():
            raise ValueError(f"{scheme.name} has no zero points{_unsigned_hint(scheme)}")
        return 0
    _check_range("zero_points", values, 0, scheme.top_zero, scheme)
    if not values.size:
        return 0
    if (values == values.flat[0]).all():
        return int(values.flat[0])
    plane = per_group.plane(values.astype(np.uint8))
    return join_nibbles(plane) if scheme.nibble_zeros else plane


def _unsigned_hint(scheme: Scheme) -> str:
    if not scheme.name.startswith("int"):
        return ""
    return f": use u{scheme.name}, with {scheme.zero} added to the codes"


def _input_order(
    input_order: Any, group_index: Any, depth: int, group_size: int | None
) -> Array | None:
    if input_order is None and group_index is None:
        return None
    if input_order is not None and group_index is not None:
        raise ValueError("give input_order or group_index, not both")
    name = "input_order" if group_index is None else "group_index"
    order = as_array(input_order if group_index is None else group_index, name)
    if order.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {order.dtype}")
    if order.shape != (depth,):
        raise ValueError(f"{name} must have shape ({depth},), got {order.shape}")
    if group_index is None:
        check_permutation(order, name)
    else:
        size = depth if group_size is None else group_size
        index, order = order, np.argsort(order, kind="stable")
        if not np.array_equal(index[order], np.arange(depth) // max(size, 1)):
            raise ValueError(
                f"group_index must have {size} inputs in each group from 0 up "
                "(the last one may have fewer)"
            )
    if np.array_equal(order, np.arange(depth)):
        return None  # nothing is out of order
    return order.astype(np.int32)


def _check_range(name: str, values: Array, low: int, high: int, scheme: Scheme) -> None:
    if not values.size:
        return
    least, greatest = int(values.min()), int(values.max())
    if least < low or greatest > high:
        raise ValueError(
            f"{name} of {scheme.name} must be from {low} to {high}, got {least} to {greatest}"
        )
