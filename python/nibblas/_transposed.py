# SPDX-License-Identifier: Apache-2.0
"""What `PackedWeight.T` is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from nibblas import _nibblas
from nibblas._arrays import Array, as_array

if TYPE_CHECKING:
    from nibblas.weights import PackedWeight


class TransposedWeight:
    """A packed weight seen as (K, N), so that ``x @ w.T`` reads as in NumPy."""

    __slots__ = ("_weight",)
    __array_ufunc__ = None

    def __init__(self, weight: PackedWeight) -> None:
        self._weight = weight

    @property
    def T(self) -> PackedWeight:
        """The packed weight itself."""
        return self._weight

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N): input features, output features."""
        return self._weight.shape[::-1]

    @property
    def ndim(self) -> int:
        """2: a packed weight is a matrix."""
        return 2

    def __rmatmul__(self, x: object) -> Array:
        array = x if isinstance(x, np.ndarray) else as_array(x, "x")
        return _nibblas.linear(array, self._weight._native)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "a packed weight is not converted to an array by itself: use w.dequantize().T"
        )

    def __repr__(self) -> str:
        return f"{self._weight!r}.T"
