# SPDX-License-Identifier: Apache-2.0
"""What the tests of importers share: bounds of linear, and weights that must not change."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import nibblas

from .cases import assert_same_bits

FLOATS = (np.float16, np.float32, ml_dtypes.bfloat16)

UNIT = 2.0**-24
"""Half a unit in the last place of 1 in float32: the relative error of one rounding."""


def check_linear(
    rng: np.random.Generator,
    w: nibblas.PackedWeight,
    values: np.ndarray,
    magnitudes: np.ndarray | None = None,
    codebook_scales: np.ndarray | None = None,
) -> None:
    """linear in both ways of computing is x @ values.T, up to what rounding may do.

    `values` (N, K) are exact, in float64. `magnitudes` are the sums of the absolute values of the
    terms that a value is made of, where there are more than one. `codebook_scales` (N, K) are what
    a codebook of floats is multiplied by: for "int8" it is rounded to 1/127, so that each value is
    off by up to its half.
    """
    depth = values.shape[1]
    magnitudes = np.abs(values) if magnitudes is None else magnitudes
    x = rng.standard_normal((3, depth), dtype=np.float32)
    exact = x.astype(np.float64) @ values.T
    # Each term goes through at most K + G additions, and a few products make its factor.
    gamma = (2 * depth + 8) * UNIT
    bound = gamma * (np.abs(x) @ magnitudes.T) + 1e-40
    y = nibblas.linear(x, w, compute="float32")
    assert (np.abs(y - exact) <= bound).all()

    # Codes of x are off by up to half their unit, amax / 127, in each group as the weight has it.
    order = w.planes.get("input_order", np.arange(depth))
    size = w.group_size or depth
    half = np.empty(x.shape)
    for start in range(0, depth, size):
        members = order[start : start + size]
        amax = np.abs(x[:, members]).max(axis=1, keepdims=True).astype(np.float64)
        half[:, members] = amax / 254 * (1 + 4 * UNIT)
    reach = np.abs(x) + half
    bound = half @ np.abs(values).T + gamma * (reach @ magnitudes.T) + 1e-40
    if codebook_scales is not None:
        bound += reach @ np.abs(codebook_scales).T / 254
    y = nibblas.linear(x, w, compute="int8")
    assert (np.abs(y - exact) <= bound).all()


def check_size(w: nibblas.PackedWeight, *arrays: np.ndarray) -> None:
    """A weight without padding takes at most 4 % more than the arrays of the file."""
    assert w.shape[0] % 16 == 0
    assert w.shape[1] % 256 == 0
    assert w.nbytes <= 1.04 * sum(array.nbytes for array in arrays)


def bit_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as rows of int32 words: a stream of bits, the lowest of each code first."""
    rows, count = codes.shape
    width = -(-count * bits // 32)
    stream = np.zeros((rows, width * 32), np.uint8)
    for i in range(count * bits):
        stream[:, i] = codes[:, i // bits] >> (i % bits) & 1
    packed = np.packbits(stream, axis=1, bitorder="little")
    return packed.view("<u4").view(np.int32).reshape(rows, width)


def word_by_word(codes: np.ndarray, bits: int) -> np.ndarray:
    """The same with 32 // bits codes to a word and the other bits unused."""
    rows, count = codes.shape
    in_word = 32 // bits
    words = np.zeros((rows, -(-count // in_word)), np.uint64)
    for k in range(count):
        shift = np.uint64(k % in_word * bits)
        words[:, k // in_word] |= codes[:, k].astype(np.uint64) << shift
    return words.astype(np.uint32).view(np.int32)


def exact(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray):
    """(code - zero) * scale in float64, for the group of each input."""
    return (codes.astype(np.float64) - zeros[:, groups]) * scales.astype(np.float64)[:, groups]


def random_scales(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Of both signs, in one of the types."""
    return rng.standard_normal(shape).astype(FLOATS[rng.integers(len(FLOATS))])


def check_values(w: nibblas.PackedWeight, values: np.ndarray) -> None:
    assert_same_bits(w.dequantize() + np.float32(0), values.astype(np.float32) + np.float32(0))
