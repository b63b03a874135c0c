# SPDX-License-Identifier: Apache-2.0
"""linear is one function of its inputs: same bits on every target, thread count, batch, place.

`numerics` is the oracle; the scalar target is the oracle where NumPy would be too slow.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import nibblas

from .cases import (
    ACTIVATIONS,
    BFLOAT16,
    COMPUTES,
    FLOATS,
    GROUPS,
    TARGETS,
    VARIANTS,
    Variant,
    all_variants,
    assert_same_bits,
    bits,
    computes,
    contract,
    floats,
    random_bits,
    random_weight,
    random_x,
    stored_group,
    tail_depth,
    variants,
    variants_and_groups,
)


def seeded(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


class Problem(NamedTuple):
    x: np.ndarray
    weight: nibblas.PackedWeight
    arguments: dict[str, Any]
    expected: np.ndarray


def random_problem(
    rng: np.random.Generator, variant: Variant, group: int | None, rows: int, cols: int, depth: int
) -> tuple[np.ndarray, nibblas.PackedWeight, dict[str, Any]]:
    """x, a weight, and everything that an epilogue may be asked for."""
    codes = str(rng.choice(["any", "ends", "low", "high"], p=[0.55, 0.15, 0.15, 0.15]))
    w = random_weight(
        rng, variant, (cols, depth), group, codes=codes, ordered=bool(rng.random() < 0.8)
    )
    dtype = FLOATS[rng.integers(3)]
    make = random_bits if rng.random() < 0.15 else random_x
    arguments: dict[str, Any] = {
        "bias": random_x(rng, (cols,), FLOATS[rng.integers(3)]) if rng.random() < 0.5 else None,
        "activation": ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
        "dtype": FLOATS[rng.integers(3)] if rng.random() < 0.5 else None,
    }
    return make(rng, (rows, depth), dtype), w, arguments


# --- against the contract


@functools.lru_cache(maxsize=8)
def contract_problems(variant: Variant, group: int | None, compute: str) -> list[Problem]:
    rng = seeded(variant, group, compute)
    deep = tail_depth(group)
    shallow = 1 if group is None else group + 1
    problems = []
    for rows, cols, depth in (
        (1, 1, shallow),
        (1, 69, deep),
        (2, 70, shallow),
        (3, 16, shallow),
        (4, 40, deep),
        (5, 23, deep),
        (13, 65, deep),
    ):
        x, w, arguments = random_problem(rng, variant, group, rows, cols, depth)
        arguments["compute"] = compute
        assert w.group_size == stored_group(variant.scheme, group, depth)
        problems.append(Problem(x, w, arguments, contract(w, x, **arguments)))
    return problems


@pytest.mark.parametrize("name", TARGETS)  # on top: varies first, so the problems stay cached
@variants_and_groups
@computes
def test_linear_is_the_contract(variant, group, compute, name):
    with nibblas.use_target(name):
        for x, w, arguments, expected in contract_problems(variant, group, compute):
            for _ in range(2 if len(x) <= 2 else 1):  # few rows of a weight that was read lately
                y = nibblas.linear(x, w, **arguments, num_threads=1)
                assert_same_bits(y, expected, (x.shape, w, arguments))


@functools.cache
def out_of_the_caches() -> nibblas.PackedWeight:
    """9 MB of codes: after a product with it other weights count as not read lately."""
    codes, scales = np.zeros((4096, 2304), np.int8), np.ones((4096, 1), np.float32)
    return nibblas.pack(codes, scales, scheme="int8", group_size=None)


@pytest.mark.parametrize("scheme", ["int4", "int8", "uint4", "q4_k", "q6_k"])
@pytest.mark.parametrize("rows", [1, 2])
def test_read_lately_or_not(scheme, rows, rng, target):
    w = nibblas.quantize(rng.standard_normal((70, 256), np.float32), scheme)
    x = random_x(rng, (rows, 256))
    expected = contract(w, x)
    other = np.ones((1, 2304), np.float32)
    nibblas.linear(other, out_of_the_caches())
    for _ in range(2):
        assert_same_bits(nibblas.linear(x, w), expected, w)


depths = st.integers(1, 70) | st.sampled_from([127, 128, 129, 257, 511, 512, 513, 777])


@all_variants
@computes
@hypothesis.settings(max_examples=30)
@hypothesis.given(
    rows=st.integers(1, 20),
    cols=st.integers(1, 40),
    depth=depths,
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(variant, compute, rows, cols, depth, group, seed):
    rng = np.random.default_rng(seed)
    x, w, arguments = random_problem(rng, variant, group, rows, cols, depth)
    expected = contract(w, x, compute=compute, **arguments)
    for name, threads in zip(TARGETS, itertools.cycle((1, 2, 3)), strict=False):
        with nibblas.use_target(name):
            y = nibblas.linear(x, w, compute=compute, **arguments, num_threads=threads)
            assert_same_bits(y, expected, (name, w, arguments))


@computes
@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data(), variant=st.sampled_from(VARIANTS))
def test_any_values(compute, data, variant):
    width = data.draw(st.sampled_from([16, 32]), "width")
    row = st.lists(st.floats(width=width), min_size=35, max_size=35)
    x = np.array(data.draw(st.lists(row, min_size=1, max_size=6), "x"), f"float{width}")
    w = random_weight(seeded(variant, compute, len(x)), variant, (18, 35), 16)
    expected = contract(w, x, compute=compute)
    for name in TARGETS:
        with nibblas.use_target(name):
            assert_same_bits(nibblas.linear(x, w, compute=compute), expected, name)


@pytest.mark.emulated
@variants
@computes
def test_one_by_one_and_primes(variant, compute, rng, target):
    for rows, cols, depth in itertools.product((1, 2, 7), (1, 17), (1, 2, 67)):
        for group in (None, 16):
            x, w, arguments = random_problem(rng, variant, group, rows, cols, depth)
            y = nibblas.linear(x, w, compute=compute, **arguments)
            expected = contract(w, x, compute=compute, **arguments)
            assert_same_bits(y, expected, (x.shape, w, arguments))


# --- batch size and place in the batch


@variants
@computes
@pytest.mark.parametrize("group", [16, 128, 1024, None], ids=lambda group: f"g{group}")
def test_batch_and_place_do_not_matter(variant, compute, group, rng, target):
    """513 rows are more than a block of rows (510 or 512), whose last rows take another kernel."""
    depth = {16: 50, 128: 300, 1024: 1100, None: 300}[group]
    x = random_x(rng, (513, depth))
    x[::7] = random_bits(rng, x[::7].shape, np.float32)
    w = random_weight(rng, variant, (23, depth), group)
    bias = random_x(rng, (23,))

    def linear(rows: np.ndarray) -> np.ndarray:
        return nibblas.linear(rows, w, bias, compute=compute, activation="silu")

    together = linear(x)
    alone = [0, 1, 2, 5, 6, 255, 256, 509, 510, 511, 512]
    assert_same_bits(np.stack([linear(x[i]) for i in alone]), together[alone], "alone")
    for size in (*range(1, 21), 37):
        for place in {0, size // 2, size - 1}:  # of row 300
            these = slice(300 - place, 300 - place + size)
            assert_same_bits(linear(x[these]), together[these], (size, place))
    assert_same_bits(linear(x[::-1]), together[::-1], "backwards")
    assert_same_bits(linear(x[:511]), together[:511], "511 rows")
    assert_same_bits(linear(np.repeat(x[300:301], 9, 0)), together[[300] * 9], "one row, 9 times")


# --- inputs and outputs of any arrangement


def misaligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts one byte after an address that its type could have."""
    memory = np.zeros(array.nbytes + array.itemsize + 1, np.uint8)
    start = -memory.ctypes.data % array.itemsize + 1
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def every_second(array: np.ndarray) -> np.ndarray:
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


ARRANGEMENTS = {
    "C order": np.copy,
    "Fortran order": np.asfortranarray,
    "backwards": lambda a: np.flip(np.flip(a).copy()),
    "backwards rows": lambda a: a[::-1].copy()[::-1],
    "every second": every_second,
    "misaligned": misaligned,
    "misaligned and backwards": lambda a: np.flip(misaligned(np.flip(a))),
    "read-only": read_only,
}


@computes
@floats
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 13])
def test_any_arrangement_of_inputs(compute, dtype, ordered, rows, rng, target):
    for depth in (64, 83):  # one that is read in place, one that is padded
        x, bias = random_x(rng, (rows, depth), dtype), random_x(rng, (19,), dtype)
        w = random_weight(rng, Variant("int4", "symmetric"), (19, depth), 16, ordered=ordered)
        expected = contract(w, x, bias=bias, compute=compute)
        for name, arrange in ARRANGEMENTS.items():
            y = nibblas.linear(arrange(x), w, arrange(bias), compute=compute)
            assert_same_bits(y, expected, name)
        for name, there in (
            ("one row", np.broadcast_to(x[0], (rows, depth))),
            ("one number a row", np.broadcast_to(x[:, :1], (rows, depth))),
            ("overlapping rows", np.lib.stride_tricks.sliding_window_view(x[0], depth - 2)),
        ):
            v = w
            if there.shape[1] != depth:
                v = random_weight(rng, Variant("uint8", "min"), (7, depth - 2), None)
            y = nibblas.linear(there, v, compute=compute)
            assert_same_bits(y, contract(v, there.copy(), compute=compute), name)


@computes
@floats
def test_any_arrangement_of_batches_and_outputs(compute, dtype, rng, target):
    x = random_x(rng, (3, 4, 5, 83), np.float32)
    w = random_weight(rng, Variant("uint4", "zero_point"), (19, 83), 32)
    expected = contract(w, x, compute=compute, dtype=dtype)
    for axes in itertools.permutations(range(4)):
        inverse = np.argsort(axes)
        x_there = x.transpose(axes).copy().transpose(inverse)
        out = np.zeros([x.shape[:3][i] if i < 3 else 19 for i in axes], dtype).transpose(inverse)
        assert nibblas.linear(x_there, w, compute=compute, out=out) is out
        assert_same_bits(out, expected, axes)
    for name, arrange in ARRANGEMENTS.items():
        if name == "read-only":
            continue
        out = arrange(np.zeros_like(expected))
        nibblas.linear(x[:, ::-1], w, compute=compute, out=out[:, ::-1])
        assert_same_bits(out, expected, name)
        if name == "every second":
            memory = out.base
            memory[1::2, 1::2, 1::2, 1::2] = 0
            assert not bits(memory).any()  # and nothing between the elements was written


# --- threads


@functools.lru_cache(maxsize=4)
def large_problem(variant: Variant, group: int | None, shape: tuple[int, int, int]) -> Problem:
    rng = seeded(variant, group, shape)
    rows, cols, depth = shape
    x = random_x(rng, (rows, depth), BFLOAT16 if rows == 1 else np.float32)
    w = random_weight(rng, variant, (cols, depth), group)
    arguments = {"bias": random_x(rng, (cols,)), "activation": "gelu"}
    with nibblas.use_target("scalar"):
        expected = [
            nibblas.linear(x, w, **arguments, compute=compute, num_threads=1)
            for compute in COMPUTES
        ]
    return Problem(x, w, arguments, np.stack(expected))


# A thread is worth 2^20 multiplications, so each of these is work for three: many panels for one
# row, both for some rows, and many rows (two blocks of them) for few panels.
@variants
@pytest.mark.parametrize("group", [32, 512, None], ids=lambda group: f"g{group}")
@pytest.mark.parametrize("shape", [(1, 2100, 1530), (37, 170, 523), (520, 33, 190)], ids=str)
def test_threads_do_not_matter(variant, group, shape, target):
    x, w, arguments, expected = large_problem(variant, group, shape)
    info = nibblas.cpu_info()
    cpus = min(info["logical"], math.ceil(info["quota"] or info["logical"]))
    for compute, same in zip(COMPUTES, expected, strict=True):
        for threads in (1, 2, 3):
            running = nibblas.explain(x.shape, w, compute, num_threads=threads)["threads"]
            assert running == min(threads, cpus)
            y = nibblas.linear(x, w, **arguments, compute=compute, num_threads=threads)
            assert_same_bits(y, same, (compute, threads))


@computes
def test_many_more_threads_than_tasks(compute, rng, target):
    x = random_x(rng, (5, 8300))
    w = random_weight(rng, Variant("int4", "symmetric"), (40, 8300), 32)
    expected = nibblas.linear(x, w, compute=compute, num_threads=1)
    for threads in (7, 64):
        assert_same_bits(nibblas.linear(x, w, compute=compute, num_threads=threads), expected)
