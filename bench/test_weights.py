# SPDX-License-Identifier: Apache-2.0
"""Weights: quantize, dequantize, take, pack, unpack. GB/s are of the dense matrix or its codes."""

from __future__ import annotations

import numpy as np
import pytest

import nibblas
from nibblas.schemes import get_scheme

TAKEN = 128


@pytest.mark.parametrize("rule", ["mse", "absmax"])
def test_quantize(measure, data, shape, scheme, rule, threads):
    if rule == "absmax" and get_scheme(scheme.scheme).bits == 8:
        pytest.skip("8-bit schemes have one rule")
    dense = data.dense(shape)
    measure(
        lambda: nibblas.quantize(
            dense,
            scheme.scheme,
            scheme.group_size,
            rule=rule,
            offset=scheme.offset,
            num_threads=threads,
        ),
        f"quantize {shape}",
        nbytes=dense.nbytes,
        moved=dense.nbytes + data.packed(shape, scheme).nbytes,
        fresh=True,
        shape=shape,
        scheme=scheme.label,
        rule=rule,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dequantize(measure, data, shape, scheme, dtype, threads):
    weight = data.packed(shape, scheme)
    out = np.empty(weight.shape, dtype)
    measure(
        lambda: weight.dequantize(out=out, num_threads=threads),
        f"dequantize {shape}",
        nbytes=out.nbytes,
        moved=weight.nbytes + out.nbytes,
        shape=shape,
        scheme=scheme.label,
        dtype=dtype,
    )


def test_take(measure, data, shape, scheme, threads):
    weight = data.packed(shape, scheme)
    indices = np.random.default_rng(3).integers(0, shape.cols, TAKEN)
    out = np.empty((TAKEN, shape.depth), np.float32)
    measure(
        lambda: weight.take(indices, out=out, num_threads=threads),
        f"take {TAKEN} of {shape}",
        nbytes=out.nbytes,
        moved=round(out.nbytes + weight.nbytes * TAKEN / shape.cols),
        shape=shape,
        rows=TAKEN,
        scheme=scheme.label,
    )
    assert np.array_equal(out, weight.dequantize()[indices])


def test_pack(measure, data, shape, scheme, threads):
    weight = data.packed(shape, scheme)
    parts = weight.unpack()
    packed = [weight]

    def call():
        packed[0] = nibblas.pack(
            parts["codes"],
            parts["scales"],
            parts.get("zero_points"),
            mins=parts.get("mins"),
            scheme=scheme.scheme,
            group_size=weight.group_size,
            num_threads=threads,
        )

    measure(
        call,
        f"pack {shape}",
        nbytes=parts["codes"].nbytes,
        moved=parts["codes"].nbytes + weight.nbytes,
        fresh=True,
        shape=shape,
        scheme=scheme.label,
    )
    for name, plane in weight.planes.items():
        assert np.array_equal(packed[0].planes[name], plane)


def test_unpack(measure, data, shape, scheme, threads):
    weight = data.packed(shape, scheme)
    measure(
        lambda: weight.unpack(num_threads=threads),
        f"unpack {shape}",
        nbytes=shape.cols * shape.depth,
        moved=shape.cols * shape.depth + weight.nbytes,
        fresh=True,
        shape=shape,
        scheme=scheme.label,
    )
