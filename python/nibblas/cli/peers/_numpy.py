# SPDX-License-Identifier: Apache-2.0
"""NumPy: the float32 product with the dequantized weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ("numpy",)


def version() -> str:
    """Of NumPy."""
    return np.__version__


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """x @ W.T. Its BLAS is held to the number of threads by the caller."""
    yield Op("NumPy float32", lambda: _Dense(weight.dense.copy()))


class _Dense:
    def __init__(self, dense: Array) -> None:
        self.dense = dense
        self.nbytes = dense.nbytes

    def bind(self, x: Array) -> Bound:
        x = x.astype(np.float32, copy=False)
        out = np.empty((len(x), len(self.dense)), np.float32)
        transposed = self.dense.T
        return Bound(
            lambda: np.matmul(x, transposed, out=out), lambda: out, lambda: np.matmul(x, transposed)
        )
