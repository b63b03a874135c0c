# SPDX-License-Identifier: Apache-2.0
"""PackedWeight: a quantized matrix in the layout that every kernel reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from nibblas import _nibblas
from nibblas._arrays import (
    Array,
    aligned_copy,
    as_array,
    output_array,
    read_only,
    thread_count,
)
from nibblas._planes import check_planes, check_tensor_scale, offset_of, scale_type_of
from nibblas._transposed import TransposedWeight
from nibblas._unpacking import stored_parts
from nibblas.schemes import LAYOUT_VERSION, Scheme, get_scheme


class PackedWeight:
    """A quantized weight matrix (N, K): N output features, K input features.

    Made by `quantize`, `pack` and `load`; not by calling the class. A packed weight cannot be
    changed. Its planes are plain NumPy arrays, read-only, in the one layout that all kernels read
    on every CPU. Two packed weights are equal only if they are the same object.

    Use it with `linear`, or as ``x @ w.T``. NumPy does not convert it by itself: `dequantize`
    gives a dense array.
    """

    __slots__ = (
        "__weakref__",
        "_group_size",
        "_native",
        "_planes",
        "_scheme",
        "_shape",
        "_tensor_divisor",
        "_tensor_scale",
        "_zero",
    )

    # NumPy then leaves `x @ w.T` to us, and refuses `x * w`.
    __array_ufunc__ = None

    _group_size: int | None
    _native: _nibblas.Weight
    _planes: dict[str, Array]
    _scheme: Scheme
    _shape: tuple[int, int]
    _tensor_divisor: float | None
    _tensor_scale: float | None
    _zero: int

    def __init__(self) -> None:
        raise TypeError("make a PackedWeight with nibblas.quantize, nibblas.pack or nibblas.load")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a PackedWeight cannot be changed (setting {name!r})")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a PackedWeight cannot be changed (deleting {name!r})")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): output features, input features."""
        return self._shape

    @property
    def ndim(self) -> int:
        """2: a packed weight is a matrix."""
        return 2

    @property
    def scheme(self) -> str:
        """Name of the scheme, as given to `quantize`."""
        return self._scheme.name

    @property
    def group_size(self) -> int | None:
        """Input features that share a scale; None if all of an output's do (per channel)."""
        return self._group_size

    @property
    def scale_dtype(self) -> str:
        """Type in which scales are stored: "float16", "float32" or "bfloat16".

        Of "mxfp4" it is "e8m0", of "nvfp4" "e4m3", of the two-level schemes "uint8" or "int8".
        """
        return scale_type_of(self._scheme, self._planes["scales"])

    @property
    def offset(self) -> str:
        """What a group has besides its scale: "symmetric" (nothing), "zero_point" or "min"."""
        return offset_of(self._scheme, self._planes)

    @property
    def tensor_scale(self) -> float | None:
        """What every scale is multiplied by, of a weight that has such a number ("nvfp4")."""
        return self._tensor_scale

    @property
    def tensor_divisor(self) -> float | None:
        """What every scale is divided by, of a weight that has such a number ("nvfp4")."""
        return self._tensor_divisor

    @property
    def nbytes(self) -> int:
        """Bytes of all planes, padding included."""
        return sum(plane.nbytes for plane in self._planes.values())

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes / (N * K); 0 for an empty matrix."""
        cols, depth = self._shape
        return 8 * self.nbytes / (cols * depth) if cols * depth else 0.0

    @property
    def planes(self) -> dict[str, Array]:
        """The arrays that hold the weight, read-only, by name.

        "codes" (for widths kept in slices "codes_0", "codes_1", ...) is uint8 [P, Kp*b/32, 16, 4]
        with P = ceil(N / 16); "scales" [P, G, 16]; where present "zero_points" and "mins", like
        the scales, "super_scales" and "super_mins" [P, Kp/256, 16], "codebook" float32 [16], and
        "input_order" int32 [K]. bfloat16 is held as its bits, in uint16.
        """
        return dict(self._planes)

    @property
    def T(self) -> TransposedWeight:
        """The transposed weight (K, N), for ``x @ w.T``. Nothing is copied."""
        return TransposedWeight(self)

    def dequantize(
        self,
        dtype: npt.DTypeLike = "float32",
        out: Array | None = None,
        *,
        num_threads: int | None = None,
    ) -> Array:
        """The dense matrix (N, K): (code - zero) * scale, rounded once.

        Parameters
        ----------
        dtype : dtype or str
            "float32", "float16" or "bfloat16". Not looked at when `out` is given.
        out : ndarray, optional
            (N, K), of one of these types, any strides; filled and returned.
        num_threads : int, optional
            Threads for this call.
        """
        result = output_array(out, self._shape, dtype)
        _nibblas.dequantize(self._native, result, thread_count(num_threads), out is None)
        return result

    def take(
        self,
        indices: npt.ArrayLike,
        dtype: npt.DTypeLike = "float32",
        out: Array | None = None,
        *,
        num_threads: int | None = None,
    ) -> Array:
        """Dequantized rows, as for an embedding table: ``w.dequantize()[indices]``.

        Parameters
        ----------
        indices : array of int
            Of any shape; each from 0 to N - 1.
        dtype, out, num_threads
            As for `dequantize`; `out` has the shape of `indices` and then K.

        Raises
        ------
        IndexError
            An index is out of range. Negative ones are.
        """
        cols, depth = self._shape
        rows = _row_numbers(indices, cols)
        out = output_array(out, (*rows.shape, depth), dtype)
        flat = out.reshape(rows.size, depth)
        flat_rows = np.ascontiguousarray(rows.reshape(-1), np.int64)
        _nibblas.take(self._native, flat_rows, flat, thread_count(num_threads))
        if not np.may_share_memory(flat, out):  # strides that reshape cannot express
            out[...] = flat.reshape(out.shape)
        return out

    def unpack(self, *, num_threads: int | None = None) -> dict[str, Any]:
        """The weight's parts as plain arrays, inputs and outputs in their original order.

        Returns
        -------
        dict
            ``codes`` (N, K), int8 or uint8, as `pack` takes them; ``scales`` (N, G); where the
            weight has them ``zero_points`` uint8 (N, G), ``mins`` (N, G), ``input_order`` int32
            (K,); and the plain values ``scheme``, ``group_size`` and ``zero``. What further
            arguments `pack` takes for the scheme is there, too: ``pack(**w.unpack())`` is `w`.

        Notes
        -----
        Without input_order, input k belongs to group ``k // group_size``. With it, position j of
        the packed weight holds input ``input_order[j]``, which belongs to group
        ``j // group_size``. A value is ``(code - zero) * scale``, with the group's zero point in
        place of ``zero`` if there are zero points, or ``code * scale + min`` if there are mins.

        Examples
        --------
        >>> w = nibblas.quantize(np.ones((4, 64), np.float32), "uint4", 32)
        >>> same = nibblas.pack(**w.unpack())
        """
        if not self._scheme.signed:
            return stored_parts(self, num_threads)
        # Modulo 256 the stored code less its zero is the signed integer.
        parts = stored_parts(self, num_threads, self._zero)
        return {**parts, "codes": parts["codes"].view(np.int8), "zero": 0}

    def _raw_parts(self, *, num_threads: int | None = None) -> dict[str, Any]:
        """The weight as nibblas.numerics takes it: a `nibblas.numerics.Parts`.

        As `unpack`, but with the codes as they are stored, uint8, and the zero that goes with them.
        """
        parts = stored_parts(self, num_threads)
        del parts["scheme"]
        parts["bits"] = self._scheme.bits
        parts["scale_type"] = self.scale_dtype
        if self._scheme.codebook_dtype == "int8":
            parts["codebook"] = np.array(self._scheme.codebook, np.int8)
        return parts

    def _tensor_numbers(self) -> dict[str, float]:
        """Of tensor_scale and tensor_divisor the one there is, if any."""
        numbers = {"tensor_scale": self._tensor_scale, "tensor_divisor": self._tensor_divisor}
        return {name: number for name, number in numbers.items() if number is not None}

    def copy(self) -> PackedWeight:
        """A weight with planes of its own, in memory at multiples of 64 bytes.

        Detaches a memory-mapped weight from its file.
        """
        planes = {name: aligned_copy(plane) for name, plane in self._planes.items()}
        return make_weight(
            self._scheme,
            self._shape,
            self._group_size,
            planes,
            self._zero,
            self._tensor_scale,
            self._tensor_divisor,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weight to a file in the safetensors format; `load` reads it.

        The file appears at once and whole: it is written under another name, then renamed. So it
        may replace the very file that this weight is mapped from.
        """
        from nibblas.io.packed import save_weights

        save_weights(path, {"": self})

    def __copy__(self) -> PackedWeight:
        return self

    def __deepcopy__(self, memo: Mapping[int, Any]) -> PackedWeight:
        return self  # what cannot be changed need not be copied

    def __reduce__(self) -> tuple[Any, ...]:
        # NumPy pickles the planes, from protocol 5 on as out-of-band buffers.
        return _unpickle, (
            LAYOUT_VERSION,
            self.scheme,
            self._shape,
            self._group_size,
            self._zero,
            self._planes,
            self._tensor_scale,
            self._tensor_divisor,
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "a PackedWeight is not converted to an array by itself: use w.dequantize(), "
            "or w.planes for the arrays it is made of"
        )

    def __rmatmul__(self, x: object) -> NoReturn:
        raise TypeError("a packed weight is (N, K): write x @ w.T, or nibblas.linear(x, w)")

    def __repr__(self) -> str:
        cols, depth = self._shape
        groups = "per channel" if self._group_size is None else f"groups of {self._group_size}"
        offset = {"symmetric": "", "zero_point": ", zero points", "min": ", mins"}[self.offset]
        order = ", input order" if "input_order" in self._planes else ""
        return (
            f"<PackedWeight {self.scheme} {cols}x{depth}, {groups}, {self.scale_dtype} scales"
            f"{offset}{order}, {self.bits_per_weight:.2f} bits per weight>"
        )


def make_weight(
    scheme: Scheme,
    shape: tuple[int, int],
    group_size: int | None,
    planes: Mapping[str, Array],
    zero: int,
    tensor_scale: float | None = None,
    tensor_divisor: float | None = None,
) -> PackedWeight:
    """The weight with these planes, which it shares and must fit the layout (ValueError)."""
    planes = check_planes(scheme, shape, group_size, planes, zero)
    check_tensor_scale(scheme, tensor_scale, tensor_divisor)
    weight = object.__new__(PackedWeight)
    codebook = planes.get("codebook")
    if scheme.codebook_dtype == "int8":
        codebook = np.array(scheme.codebook, np.int8)
    native = _nibblas.make_weight(
        shape,
        group_size or 0,
        scheme.bits,
        [planes[name] for name in scheme.code_planes],
        planes["scales"],
        scale_type=scale_type_of(scheme, planes["scales"]),
        zero=zero,
        is_signed=scheme.signed,
        zero_points=planes.get("zero_points"),
        mins=planes.get("mins"),
        nibble_mins=scheme.nibble_mins,
        super_scales=planes.get("super_scales"),
        super_mins=planes.get("super_mins"),
        codebook=codebook,
        tensor_scale=tensor_scale,
        tensor_divisor=tensor_divisor,
        input_order=planes.get("input_order"),
    )
    for name, value in (
        ("_scheme", scheme),
        ("_shape", shape),
        ("_group_size", group_size),
        ("_zero", zero),
        ("_tensor_scale", tensor_scale),
        ("_tensor_divisor", tensor_divisor),
        ("_planes", {name: read_only(plane) for name, plane in planes.items()}),
        ("_native", native),
    ):
        object.__setattr__(weight, name, value)
    return weight


def _unpickle(
    layout_version: int,
    scheme: str,
    shape: tuple[int, int],
    group_size: int | None,
    zero: int,
    planes: dict[str, Array],
    tensor_scale: float | None = None,
    tensor_divisor: float | None = None,
) -> PackedWeight:
    if layout_version != LAYOUT_VERSION:
        raise ValueError(
            f"pickled PackedWeight has layout_version {layout_version}, "
            f"this nibblas reads {LAYOUT_VERSION}"
        )
    return make_weight(
        get_scheme(scheme), shape, group_size, planes, zero, tensor_scale, tensor_divisor
    )


def _row_numbers(indices: npt.ArrayLike, cols: int) -> Array:
    rows = as_array(indices, "indices") if hasattr(indices, "__dlpack__") else np.asarray(indices)
    if rows.size and rows.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {rows.dtype}")
    outside = rows[(rows < 0) | (rows >= cols)] if rows.size else rows
    if outside.size:
        raise IndexError(f"index {outside[0]} is out of range for {cols} output features")
    return rows
