# SPDX-License-Identifier: Apache-2.0
"""linear: quantized products, and NumPy's float32 product of the same size in the same group."""

from __future__ import annotations

import numpy as np
import pytest

import nibblas
from nibblas.cli import _measure

CHECKED_COLS = 64


def group_of(shape, rows):
    return f"linear {shape}, rows {rows}"


def test_numpy_float32(measure, data, shape, rows, threads):
    x, weight = data.activations(rows, shape.depth), data.dense(shape)
    out = np.empty((rows, shape.cols), np.float32)
    measure(
        lambda: np.matmul(x, weight.T, out=out),
        group_of(shape, rows),
        operations=2.0 * rows * shape.cols * shape.depth,
        integer=False,
        nbytes=weight.nbytes,
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
        group_of(shape, rows),
        operations=2.0 * rows * shape.cols * shape.depth,
        integer=compute == "int8",
        nbytes=weight.nbytes,
        shape=shape,
        rows=rows,
        scheme=scheme.label,
        compute=compute,
    )
    # What is fast must be right, too: 8-bit activations err by less than 1 % here.
    some = np.arange(min(CHECKED_COLS, shape.cols))
    expected = x.astype(np.float64) @ weight.take(some).T.astype(np.float64)
    error = _measure.relative_rms(out[:, : len(some)], expected)
    assert error < (2e-2 if compute == "int8" else 1e-5)
