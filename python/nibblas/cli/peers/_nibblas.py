# SPDX-License-Identifier: Apache-2.0
"""Our own products, in the same form as those of the peers."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

import nibblas
from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

LABEL = "nibblas"


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """With activations quantized to int8; and in float32, for peers that are as accurate."""
    for compute in ("int8",) if weight.kind.integers else ("int8", "float32"):
        label = LABEL if compute == "int8" else f"{LABEL} {compute}"
        yield Op(label, functools.partial(_Packed, weight, compute, threads))


class _Packed:
    def __init__(self, weight: Weight, compute: str, threads: int) -> None:
        self.packed, self.compute, self.threads = weight.packed.copy(), compute, threads
        self.nbytes = self.packed.nbytes

    def bind(self, x: Array) -> Bound:
        packed, compute, threads = self.packed, self.compute, self.threads
        integers = x.dtype == np.int8
        out = np.empty((len(x), packed.shape[0]), np.int32 if integers else np.float32)

        def product(out: Array | None = None) -> Array:
            if integers:
                return nibblas.matmul_integer(x, packed, out=out, num_threads=threads)
            return nibblas.linear(x, packed, compute=compute, out=out, num_threads=threads)

        return Bound(lambda: product(out), lambda: out, product)
