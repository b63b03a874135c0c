# SPDX-License-Identifier: Apache-2.0
"""No kernel reads or writes a byte beyond its arrays: they lie against pages nobody may touch.

A fault ends the whole test run. That is loud enough, and costs nothing when there is none.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nibblas
from nibblas import _nibblas, numerics
from nibblas.io import gguf
from nibblas.schemes import SCHEMES
from nibblas.weights import make_weight

from .cases import (
    ACTIVATIONS,
    FLOATS,
    INTEGER_SCHEMES,
    TARGETS,
    Variant,
    all_variants,
    assert_same_bits,
    bits,
    computes,
    contract,
    floats,
    random_codes,
    random_weight,
    random_x,
    variants,
)
from .quantize_cases import QUANTIZED

Guard = Callable[..., np.ndarray]

at_both_ends = pytest.mark.parametrize("at", ["start", "end"])

# Tails everywhere, and none: 16 outputs to a panel, 64 codes to a run of K, groups of 16 and 32.
SHAPES = [(1, 1), (3, 5), (15, 63), (16, 64), (17, 65), (31, 96), (33, 130), (70, 257)]


def guarded_weight(w: nibblas.PackedWeight, guarded: Guard, at: str) -> nibblas.PackedWeight:
    """The same weight, each plane between pages of its own and read-only."""
    planes = {name: guarded(plane, at, readonly=True) for name, plane in w.planes.items()}
    same = make_weight(
        SCHEMES[w.scheme], w.shape, w.group_size, planes, w._zero, **w._tensor_numbers()
    )
    for name, plane in same.planes.items():
        assert plane.ctypes.data == planes[name].ctypes.data
    return same


@pytest.mark.parametrize(
    ("at", "offset", "faults"),
    [("end", 99, False), ("end", 100, True), ("start", 0, False), ("start", -1, True)],
)
def test_the_guard_works(at, offset, faults):
    """The pages do what the tests below rely on: a process that crosses the border ends."""
    code = f"""
import ctypes, sys, numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import guarded_array
array = guarded_array(np.zeros(100, np.uint8), {at!r})
assert not array.any()
print("before", flush=True)
ctypes.string_at(array.ctypes.data + {offset}, 1)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert done.stdout == "before\n", done.stderr
    assert (done.returncode != 0) == faults, done.stderr


@at_both_ends
@variants
@computes
def test_linear(at, variant, compute, rng, target, guarded):
    for (cols, depth), group, rows in zip(
        SHAPES * 3,
        itertools.cycle([16, None, 32, 128]),
        itertools.cycle([1, 2, 3, 4, 6, 7, 13]),
        strict=False,
    ):
        dtype = FLOATS[rng.integers(3)]
        w = random_weight(
            rng, variant, (cols, depth), group, ordered=bool(rng.random() < 0.7), codes="any"
        )
        x, bias = random_x(rng, (rows, depth), dtype), random_x(rng, (cols,), dtype)
        arguments: dict[str, Any] = {
            "compute": compute,
            "activation": ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
        }
        expected = contract(w, x, bias=bias, **arguments)
        out = guarded(np.zeros_like(expected), at)
        nibblas.linear(
            guarded(x, at, readonly=True),
            guarded_weight(w, guarded, at),
            guarded(bias, at, readonly=True),
            out=out,
            num_threads=2,
            **arguments,
        )
        assert_same_bits(out, expected, (w, rows))


@at_both_ends
@computes
@pytest.mark.parametrize("group", [16, 512, 1024, None], ids=lambda group: f"g{group}")
def test_linear_with_deep_rows_and_threads(at, compute, group, rng, target, guarded):
    """Blocks of several hundred codes, and work for two threads or three."""
    for scheme in SCHEMES:
        variant = Variant(scheme, SCHEMES[scheme].offsets[0])
        w = random_weight(rng, variant, (83, 2500), group)
        x = random_x(rng, (20, 2500))
        expected = nibblas.linear(x, w, compute=compute)
        out = guarded(np.zeros_like(expected), at)
        there = guarded_weight(w, guarded, at)
        x = guarded(x, at, readonly=True)
        nibblas.linear(x, there, compute=compute, out=out, num_threads=3)
        assert_same_bits(out, expected)
        assert_same_bits(nibblas.linear(x[7], there, compute=compute), expected[7])


@at_both_ends
@computes
@floats
def test_linear_with_strides(at, compute, dtype, rng, target, guarded):
    """Only the elements themselves are touched: those between them belong to somebody else."""
    w = random_weight(rng, Variant("uint4", "min"), (37, 83), 16)
    x = random_x(rng, (7, 83), dtype)
    expected = contract(w, x, compute=compute)
    # The last element of the view is the last of the memory: nothing follows it.
    memory = guarded(np.full((13, 165), np.nan, dtype), at)
    there = memory[::2, ::2]
    there[...] = x
    out_memory = guarded(np.zeros((13, 73), dtype), at)
    out = out_memory[::2, ::2]
    for x_view, out_view in ((there, out), (there[::-1, ::-1], out[::-1, ::-1])):
        out_memory[...] = 0
        y = expected
        if x_view is not there:
            y = contract(w, x[::-1, ::-1].copy(), compute=compute)
        nibblas.linear(x_view, w, compute=compute, out=out_view)
        assert_same_bits(out_view, y)
        assert not bits(out_memory[1::2]).any()
        assert not bits(out_memory[:, 1::2]).any()
    # One row that all rows are, and one number that all of a row is.
    row = guarded(x[0], at, readonly=True)
    y = nibblas.linear(np.broadcast_to(row, (9, 83)), w, compute=compute)
    assert_same_bits(y, expected[[0] * 9])
    number = guarded(x[0, :1], at, readonly=True)
    y = nibblas.linear(np.broadcast_to(number, (5, 83)), w, compute=compute)
    assert_same_bits(y, contract(w, np.full((5, 83), x[0, 0]), compute=compute))


@at_both_ends
@pytest.mark.parametrize("a_type", [np.int8, np.uint8])
@pytest.mark.parametrize("b_type", [np.int8, np.uint8])
def test_matmul_integer(at, a_type, b_type, rng, target, guarded):
    for (cols, depth), rows in zip(SHAPES, (1, 2, 3, 4, 5, 6, 7, 13), strict=True):
        a = rng.integers(0, 256, (rows, depth), np.uint8).view(a_type)
        b = rng.integers(0, 256, (depth, cols), np.uint8).view(b_type)
        za = rng.integers(0, 100, rows).astype(a_type)
        zb = rng.integers(0, 100, cols).astype(b_type)
        expected = numerics.matmul_integer(a, b, za, zb)
        out = guarded(np.zeros_like(expected), at)
        a, b = guarded(a, at, readonly=True), guarded(b, at, readonly=True)
        za, zb = guarded(za, at, readonly=True), guarded(zb, at, readonly=True)
        nibblas.matmul_integer(a, b, za, zb, out=out)
        assert np.array_equal(out, expected)
        turned = guarded(np.ascontiguousarray(b.T), at, readonly=True).T
        assert np.array_equal(nibblas.matmul_integer(a, turned, za, zb), expected)


@at_both_ends
@pytest.mark.parametrize("scheme", INTEGER_SCHEMES)
def test_matmul_integer_with_packed_weight(at, scheme, rng, target, guarded):
    for (cols, depth), rows in zip(SHAPES, (1, 2, 3, 4, 5, 6, 7, 13), strict=True):
        w = random_weight(rng, Variant(scheme, SCHEMES[scheme].offsets[0]), (cols, depth), 16)
        a = rng.integers(0, 256, (rows, depth), np.uint8)
        expected = numerics.matmul_integer(a, w.unpack()["codes"].T, 3)
        out = guarded(np.zeros_like(expected), at)
        w, a = guarded_weight(w, guarded, at), guarded(a, at, readonly=True)
        nibblas.matmul_integer(a, w, 3, out=out)
        assert np.array_equal(out, expected)


@at_both_ends
@floats
def test_quantize(at, dtype, rng, target, guarded):
    for variant, shape in itertools.product(QUANTIZED, SHAPES):
        dense = random_x(rng, shape, dtype)
        arguments = variant._asdict()
        expected = nibblas.quantize(dense, **arguments)
        turned = guarded(np.ascontiguousarray(dense.T), at, readonly=True).T
        for there in (guarded(dense, at, readonly=True), turned):
            found = nibblas.quantize(there, **arguments)
            for name, plane in expected.planes.items():
                assert_same_bits(found.planes[name], plane, name)


@at_both_ends
@pytest.mark.parametrize("width", range(1, 9))
def test_pack_codes(at, width, rng, target, guarded):
    for shape in SHAPES:
        codes = rng.integers(0, 1 << width, shape, np.uint8)
        expected = numerics.pack_planes(codes, width, None)
        found = _nibblas.pack_codes(guarded(codes, at, readonly=True), width, 0)
        for plane, same in zip(found, expected, strict=True):
            assert_same_bits(plane, same)


@at_both_ends
def test_pack_codes_in_another_order(at, rng, target, guarded):
    for shape in SHAPES:
        codes = rng.integers(0, 256, shape, np.uint8)
        order = guarded(rng.permutation(shape[1]).astype(np.int32), at, readonly=True)
        expected = numerics.pack_planes(codes[:, order], 8, None)
        there = guarded(codes, at, readonly=True)
        assert_same_bits(_nibblas.pack_codes(there, 8, 0, input_order=order)[0], expected[0])
        turned = guarded(np.ascontiguousarray(codes.T), at, readonly=True).T
        assert_same_bits(_nibblas.pack_codes(turned, 8, 0, input_order=order)[0], expected[0])


@at_both_ends
@all_variants
def test_unpack_dequantize_take(at, variant, rng, target, guarded):
    for shape, group in zip(SHAPES, itertools.cycle([16, None, 32]), strict=False):
        for ordered in (True, False):
            w = random_weight(rng, variant, shape, group, ordered=ordered)
            there = guarded_weight(w, guarded, at)
            codes = w.unpack()["codes"]
            assert_same_bits(there.unpack()["codes"], codes)
            rows = guarded(rng.integers(0, shape[0], 19), at, readonly=True)
            for dtype in FLOATS:
                expected = numerics.dequantize(w._raw_parts(), dtype)
                out = guarded(np.zeros(shape, dtype), at)
                there.dequantize(out=out)
                assert_same_bits(out, expected, w)
                out = guarded(np.zeros((19, shape[1]), dtype), at)
                there.take(rows, out=out)
                assert_same_bits(out, expected[rows], w)


@at_both_ends
@floats
def test_quantize_activations(at, dtype, rng, target, guarded):
    for depth, group in itertools.product(
        [1, 15, 16, 17, 63, 64, 65, 80, 130, 257], [16, 64, None]
    ):
        x = random_x(rng, (3, depth), dtype)
        codes, scales = nibblas.quantize_activations(guarded(x, at, readonly=True), group)
        expected_codes, expected_scales = numerics.quantize_activations(x, group)
        assert_same_bits(codes, expected_codes)
        assert_same_bits(scales, expected_scales)


@at_both_ends
@pytest.mark.parametrize("name", gguf.BLOCK_SHAPES)
def test_blocks(at, name, rng, target, guarded):
    """1 to 40 blocks: whole batches of 16 and parts of one."""
    elements, size, _ = gguf.BLOCK_SHAPES[name]
    for blocks in (1, 2, 3, 15, 16, 17, 40):
        raw = rng.integers(0, 256, blocks * size, np.uint8)
        x = random_x(rng, (blocks * elements,))
        there, x_there = guarded(raw, at, readonly=True), guarded(x, at, readonly=True)
        with nibblas.use_target("scalar"):
            values, written = gguf.dequantize(raw, name), gguf.quantize(x, name)
            parts = _nibblas.unpack_blocks(raw, name)
        out = guarded(np.zeros_like(values), at)
        gguf.dequantize(there, name, out=out)
        assert_same_bits(out, values, blocks)
        assert_same_bits(gguf.quantize(x_there, name), written, blocks)
        for part, array in _nibblas.unpack_blocks(there, name).items():
            assert_same_bits(array, parts[part], (part, blocks))


@at_both_ends
@pytest.mark.parametrize("name", numerics.ACTIVATIONS)
def test_activate(at, name, rng, target, guarded):
    for count in range(1, 40):
        x = random_x(rng, (count,))
        with nibblas.use_target("scalar"):
            expected = _nibblas.activate(x, name)
        assert_same_bits(_nibblas.activate(guarded(x, at, readonly=True), name), expected)


@at_both_ends
def test_a_mapped_file_that_ends_with_a_plane(at, rng, guarded):
    """All schemes once more, with every plane straight behind the other, as a file has them."""
    for scheme in SCHEMES:
        for offset in SCHEMES[scheme].offsets:
            w = random_weight(rng, Variant(scheme, offset), (33, 130), 16)
            sizes = [plane.nbytes for plane in w.planes.values()]
            memory = guarded(np.zeros(sum(sizes), np.uint8), at)
            planes, start = {}, 0
            for name, plane in w.planes.items():
                there = memory[start : start + plane.nbytes].view(plane.dtype)
                planes[name] = there.reshape(plane.shape)
                planes[name][...] = plane
                start += plane.nbytes
            same = make_weight(
                SCHEMES[scheme], w.shape, w.group_size, planes, w._zero, **w._tensor_numbers()
            )
            x = random_x(rng, (5, 130))
            codes = random_codes(rng, scheme, (4, 130))
            for name in TARGETS:
                with nibblas.use_target(name):
                    assert_same_bits(nibblas.linear(x, same), contract(w, x))
                    if SCHEMES[scheme].codebook is None:
                        c = nibblas.matmul_integer(codes, same)
                        assert np.array_equal(c, nibblas.matmul_integer(codes, w))
