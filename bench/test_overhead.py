# SPDX-License-Identifier: Apache-2.0
"""What a call costs: 1 x 64 by 16 x 64 with `out` given, where there is next to nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
import shapes

import nibblas

SIZES = shapes.OVERHEAD


def test_numpy_float32(measure, data, shape, rows, threads):
    x, weight = data.activations(rows, shape.depth), data.dense(shape).T
    out = np.empty((rows, shape.cols), np.float32)
    measure(
        lambda: np.matmul(x, weight, out=out),
        "call overhead",
        shape=shape,
        rows=rows,
        scheme="float32",
        compute="float32",
    )


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_linear(measure, data, shape, rows, scheme, compute, threads):
    x, weight = data.activations(rows, shape.depth), data.packed(shape, scheme)
    out = np.empty((rows, shape.cols), np.float32)
    measure(
        lambda: nibblas.linear(x, weight, compute=compute, out=out, num_threads=threads),
        "call overhead",
        shape=shape,
        rows=rows,
        scheme=scheme.label,
        compute=compute,
    )
