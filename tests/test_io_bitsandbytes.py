# SPDX-License-Identifier: Apache-2.0
"""The importer of bitsandbytes weights against the format's formula and its package."""

from __future__ import annotations

import json
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import bitsandbytes
from nibblas.schemes import FP4, NF4

from .cases import assert_same_bits, same_planes
from .io_cases import check_linear, check_size

TABLES = {"nf4": np.array(NF4, np.float32), "fp4": np.array(FP4, np.float32)}
KINDS = tuple(TABLES)


def random_state(
    rng: np.random.Generator,
    shape: tuple[int, int],
    blocksize: int = 64,
    kind: str = "nf4",
    nested: bool = False,
    name: str = "weight",
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A state dict, and the float32 values and absmax (N, K) by the formula."""
    count = shape[0] * shape[1]
    blocks = -(-count // blocksize)
    codes = rng.integers(0, 16, count + count % 2, np.uint8)  # an odd count has a code too many
    table = TABLES[kind] if rng.random() < 0.5 else rng.uniform(-1, 1, 16).astype(np.float32)
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": blocksize,
        "dtype": "bfloat16",
        "shape": list(shape),
    }
    tensors = {name: (codes[0::2] * 16 + codes[1::2])[:, np.newaxis], f"{name}.quant_map": table}
    if nested:
        nested_table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        nested_absmax = rng.uniform(0.1, 1, -(-blocks // 256)).astype(np.float32)
        offset = np.float32(rng.uniform(0, 1))
        bytes_ = rng.integers(0, 256, blocks, np.uint8)
        absmax = np.empty(blocks, np.float32)
        for i in range(blocks):
            absmax[i] = np.float32(nested_table[bytes_[i]] * nested_absmax[i // 256]) + offset
        tensors[f"{name}.absmax"] = bytes_
        tensors[f"{name}.nested_absmax"] = nested_absmax
        tensors[f"{name}.nested_quant_map"] = nested_table
        state.update(nested_blocksize=256, nested_offset=float(offset), nested_dtype="float32")
    else:
        absmax = rng.uniform(0, 2, blocks).astype(np.float32)
        absmax[rng.random(blocks) < 0.1] = 0
        tensors[f"{name}.absmax"] = absmax
    write_state(tensors, f"{name}.quant_state.bitsandbytes__{kind}", state)
    scales = absmax[np.arange(count) // blocksize].reshape(shape)
    return tensors, table[codes[:count]].reshape(shape) * scales, scales


def write_state(tensors: dict[str, np.ndarray], key: str, state: Any) -> None:
    tensors[key] = np.frombuffer(json.dumps(state).encode(), np.uint8)


STATE = "weight.quant_state.bitsandbytes__nf4"


# --- the formula


@pytest.mark.parametrize("nested", [False, True])
@given(
    rows=st.integers(1, 40),
    parts=st.integers(1, 12),
    blocksize=st.sampled_from([32, 64, 128, 256, 512, 1024, 2048, 4096]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)
def test_formula(rows, parts, blocksize, kind, nested, seed):
    """Of depths that are multiples of 16, every one can be stored."""
    rng = np.random.default_rng(seed)
    depth = 16 * parts if rng.random() < 0.5 else blocksize * (1 + parts % 3)
    tensors, values, _ = random_state(rng, (rows, depth), blocksize, kind, nested)
    w = bitsandbytes.from_state_dict(tensors, "")
    assert (w.scheme, w.shape, w.scale_dtype) == (kind, (rows, depth), "float32")
    assert_same_bits(w.dequantize(), values)


@pytest.mark.parametrize(
    ("shape", "blocksize", "group"),
    [
        ((5, 192), 64, 64),
        ((5, 96), 64, 32),  # blocks straddle rows
        ((7, 48), 64, 16),
        ((3, 8192), 4096, 4096),
        ((6, 7), 64, None),  # one block is all there is
        ((1, 333), 64, 64),  # one row, with a tail: an odd number of elements
        ((4, 17), 17 * 2, None),  # two rows a block
        ((2, 96), 48, 16),  # no power of two
        ((2, 16384), 8192, 4096),
        ((600, 64), 64, None),  # nested absmax: 600 is two blocks of 256 and a tail
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_groups(rng, shape, blocksize, group, nested):
    tensors, values, _ = random_state(rng, shape, blocksize, nested=nested)
    w = bitsandbytes.from_state_dict(tensors, "")
    assert w.group_size == group
    assert_same_bits(w.dequantize(), values)


@pytest.mark.parametrize(("shape", "blocksize"), [((5, 100), 64), ((3, 7), 8), ((3, 40), 64)])
def test_blocks_that_cannot_be_groups(rng, shape, blocksize):
    tensors, _, _ = random_state(rng, shape, blocksize)
    with pytest.raises(ValueError, match=r"'weight': blocks of \d+ straddle rows of \d+"):
        bitsandbytes.from_state_dict(tensors, "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
def test_is_computed_with(rng, kind, nested):
    tensors, values, scales = random_state(rng, (48, 256), 64, kind, nested)
    w = bitsandbytes.from_state_dict(tensors, "")
    check_linear(rng, w, values.astype(np.float64), codebook_scales=scales.astype(np.float64))
    if not nested:
        check_size(w, *(array for key, array in tensors.items() if "quant_state" not in key))


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_the_rounded_codebook(rng, kind):
    """With compute="int8" the table has steps of 1/127, which is about 6e-3 of a normal weight."""
    dense = rng.standard_normal((256, 1024), dtype=np.float32)
    w = nibblas.quantize(dense, kind)
    x = rng.choice([-1, 1], (8, 1024)).astype(np.float32)  # codes of these are exact
    exact = nibblas.linear(x, w, compute="float32")
    error = nibblas.linear(x, w, compute="int8") - exact
    assert 4e-3 < np.linalg.norm(error) / np.linalg.norm(exact) < 8e-3


# --- names and types


@pytest.mark.parametrize("prefix", ["model.up", "model.up."])
def test_prefix(rng, prefix):
    tensors, values, _ = random_state(rng, (4, 64), name="model.up.weight")
    assert_same_bits(bitsandbytes.from_state_dict(tensors, prefix).dequantize(), values)
    with pytest.raises(ValueError, match=r"'model.down.weight.quant_state.bitsandbytes__nf4'"):
        bitsandbytes.from_state_dict(tensors, "model.down")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bytes_stored_as_another_type(rng, dtype):
    tensors, values, _ = random_state(rng, (4, 64))
    tensors["weight"] = tensors["weight"].reshape(-1).view(dtype)
    assert_same_bits(bitsandbytes.from_state_dict(tensors, "").dequantize(), values)


def test_rows_are_the_whole(rng):
    tensors, _, _ = random_state(rng, (40, 48), 64)
    state = bitsandbytes.read_state(tensors, "")
    whole = bitsandbytes.from_state_dict(tensors, "")
    assert same_planes(bitsandbytes.pack_rows(state, 0, 40), whole)
    pieces = [bitsandbytes.pack_rows(state, 0, 32), bitsandbytes.pack_rows(state, 32, 40)]
    for name in ("codes", "scales"):
        found = np.concatenate([piece.planes[name] for piece in pieces])
        assert np.array_equal(found, whole.planes[name])


# --- damaged entries

FIELDS = [
    ("shape", [4]),
    ("shape", [4, -64]),
    ("shape", [4, 0]),
    ("shape", [4.0, 64]),
    ("shape", [True, 64]),
    ("shape", [1 << 60, 1 << 60]),
    ("shape", None),
    ("blocksize", 0),
    ("blocksize", -64),
    ("blocksize", "64"),
    ("blocksize", 1 << 40),
    ("blocksize", None),
    ("quant_type", "fp4"),
    ("quant_type", 3),
    ("nested_blocksize", 0),
    ("nested_blocksize", None),
    ("nested_offset", "1"),
    ("nested_offset", 1e39),
    ("nested_offset", float("nan")),
    ("nested_offset", 10**400),
    ("nested_offset", True),
]


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_damaged_json(rng, field, value):
    tensors, _, _ = random_state(rng, (4, 64), nested=True)
    state = json.loads(bytes(tensors[STATE]))
    write_state(tensors, STATE, {**state, field: value})
    with pytest.raises(ValueError, match=f"{STATE}': {field}: expected"):
        bitsandbytes.from_state_dict(tensors, "")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 60000, b" " * 70000], ids=lambda t: t[:3]
)
def test_no_json(rng, text):
    tensors, _, _ = random_state(rng, (4, 64))
    tensors[STATE] = np.frombuffer(text, np.uint8)
    with pytest.raises(ValueError, match=STATE):
        bitsandbytes.from_state_dict(tensors, "")


def test_missing_and_wrong_entries(rng):
    good, _, _ = random_state(rng, (4, 64), nested=True)
    for key in good:
        if key != "weight.nested_absmax":  # absmax would have to be float then
            with pytest.raises(ValueError, match=key):
                bitsandbytes.from_state_dict({k: v for k, v in good.items() if k != key}, "")
    for key, array in good.items():
        if key != STATE:
            with pytest.raises(ValueError, match=key):
                bitsandbytes.from_state_dict({**good, key: array.reshape(-1)[:-1]}, "")
        with pytest.raises(TypeError, match=key):
            bitsandbytes.from_state_dict({**good, key: 3}, "")
        if key != "weight":
            with pytest.raises(TypeError, match=key):
                bitsandbytes.from_state_dict({**good, key: array.astype(np.float64)}, "")
    with pytest.raises(ValueError, match=r"got 2 of them"):
        bitsandbytes.from_state_dict({**good, STATE.replace("nf4", "fp4"): good[STATE]}, "")
    with pytest.raises(ValueError, match=r"'weight': plane 'codebook': expected values"):
        bitsandbytes.from_state_dict({**good, "weight.quant_map": np.full(16, 2, np.float32)}, "")
    with pytest.raises(TypeError, match="prefix must be a string"):
        bitsandbytes.from_state_dict(good, None)
    with pytest.raises(TypeError, match="tensors must be a mapping"):
        bitsandbytes.from_state_dict([], "")


# --- the package itself


@pytest.fixture(scope="module")
def functional():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("shape", "blocksize"), [((40, 128), 64), ((300, 96), 64), ((5, 512), 256)]
)
def test_against_the_package(rng, functional, kind, nested, shape, blocksize):
    import torch

    dense = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    data, state = functional.quantize_4bit(
        dense, blocksize=blocksize, quant_type=kind, compress_statistics=nested
    )
    tensors = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    w = bitsandbytes.from_state_dict({**tensors, "weight": data}, "")
    # Of blocks that straddle rows, the package's kernel for CPUs takes each row's anew, other than
    # its kernels for GPUs and its own quantizer: as one row they are right.
    state.shape = torch.Size((1, dense.numel()))
    expected = functional.dequantize_4bit(data, state).numpy().reshape(shape)
    assert_same_bits(w.dequantize(), expected)
    error = np.linalg.norm(expected - dense.numpy()) / np.linalg.norm(dense.numpy())
    assert error < 0.15
