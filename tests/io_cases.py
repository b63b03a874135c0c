# SPDX-License-Identifier: Apache-2.0
"""What the tests of importers share: bounds of linear, and weights that must not change."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import nibblas

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


def join_bits(rng: np.random.Generator, codes: np.ndarray, bits: int, per_word: int = 0):
    """Rows of codes as int32 words, lowest bits first; what no code fills is random.

    Each row is one long integer, from word to word; or with per_word so many codes in each word.
    """
    rows = []
    for row in codes.tolist():
        runs = [row[i : i + per_word] for i in range(0, len(row), per_word)] if per_word else [row]
        words = []
        for run in runs:
            size = -(-len(run) * bits // 32) * 32
            number = int(rng.integers(0, 2**63)) << len(run) * bits
            for i, code in enumerate(run):
                number |= code << bits * i
            number &= (1 << size) - 1
            words += [number >> i & 0xFFFFFFFF for i in range(0, size, 32)]
        rows.append(words)
    width = len(rows[0]) if rows else 0
    return np.array(rows, np.uint32).reshape(len(rows), width).view(np.int32)


def random_scales(rng: np.random.Generator, shape: tuple[int, int], dtype: object) -> np.ndarray:
    """Of both signs, some of them 0."""
    scales = rng.uniform(-0.1, 0.1, shape)
    scales[rng.random(shape) < 0.05] = 0
    return scales.astype(np.float32).astype(dtype)


def value_of(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(code - zero) * scale in float32: of integers below 2^24 the difference is exact."""
    return (codes.astype(np.float32) - zeros.astype(np.float32)) * scales.astype(np.float32)


def file_of_package(package: str, file: str) -> ModuleType:
    """A file of a package by itself, without what the package as a whole needs; or skip."""
    pytest.importorskip("torch")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs the package {package}")
    path = Path(found.submodule_search_locations[0]) / file
    spec = importlib.util.spec_from_file_location(f"file_of_{package}", path)
    if spec is None or spec.loader is None or not path.exists():
        pytest.skip(f"this {package} has no {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
