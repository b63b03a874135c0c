# SPDX-License-Identifier: Apache-2.0
"""matmul_integer: exact products of bytes, with b as a plain matrix and packed before."""

from __future__ import annotations

import numpy as np
import pytest

import nibblas
from nibblas.cli._bench import parse_schemes

CHECKED_COLS = 64
ZERO_POINT = 128  # of unsigned operands


def codes(shape, dtype):
    limits = np.iinfo(dtype)
    return np.random.default_rng(2).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def zero_point(dtype):
    return np.dtype(dtype).type(ZERO_POINT if np.dtype(dtype).kind == "u" else 0)


def run(measure, a, b, a_zero, b_zero, plain_b, name, shape, threads):
    rows = len(a)
    out = np.empty((rows, shape.cols), np.int32)
    measure(
        lambda: nibblas.matmul_integer(a, b, a_zero, b_zero, out=out, num_threads=threads),
        f"matmul_integer {shape}, rows {rows}",
        operations=2.0 * rows * shape.cols * shape.depth,
        nbytes=b.nbytes,
        shape=shape,
        rows=rows,
        scheme=name,
        compute="integer",
    )
    expected = (a.astype(np.int64) - int(a_zero)) @ plain_b[:, :CHECKED_COLS].astype(np.int64)
    assert np.array_equal(out[:, :CHECKED_COLS], expected)


@pytest.mark.parametrize("b_type", ["int8", "uint8"])
@pytest.mark.parametrize("a_type", ["int8", "uint8"])
def test_matrix(measure, shape, rows, a_type, b_type, threads):
    a, b = codes((rows, shape.depth), a_type), codes((shape.depth, shape.cols), b_type)
    a_zero, b_zero = zero_point(a_type), zero_point(b_type)
    plain_b = b.astype(np.int16) - np.int16(b_zero)
    run(measure, a, b, a_zero, b_zero, plain_b, f"{a_type}*{b_type}", shape, threads)


@pytest.mark.parametrize("a_type", ["int8", "uint8"])
def test_packed(measure, data, shape, rows, a_type, threads):
    (scheme,) = parse_schemes("int8")
    a, b = codes((rows, shape.depth), a_type), data.packed(shape, scheme)
    plain_b = b.unpack()["codes"].T
    run(measure, a, b, zero_point(a_type), None, plain_b, f"{a_type}*packed", shape, threads)
