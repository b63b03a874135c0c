# SPDX-License-Identifier: Apache-2.0
"""Importers given anything: a TypeError or ValueError, or a weight that can be used."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import awq, bitsandbytes, compressed_tensors, gptq, hqq, mxfp4, nvfp4
from nibblas.io import onnx as onnx_importer

from .onnx_cases import model_of, random_weight
from .test_io_bitsandbytes import STATE, random_state
from .test_io_compressed_tensors import random_weight as random_compressed
from .test_io_gptq import awq_weight, gptq_weight
from .test_io_hqq import random_weight as random_hqq

DTYPES = ("u1", "i1", "u2", "i4", "i8", "f2", "f4", ">f4", "f8", "?", "O", "S3")
SEEDS = st.integers(0, 2**32)


def anything(rng: np.random.Generator) -> Any:
    """An argument of any kind, small as it is."""
    kind = rng.integers(8)
    if kind < 5:
        shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 4, 16, 17], int(rng.integers(4))))
        array = np.frombuffer(rng.bytes(int(np.prod(shape)) * 8), "u8").reshape(shape)
        with np.errstate(all="ignore"):
            return array.astype(DTYPES[rng.integers(len(DTYPES))])
    return [None, True, -1, 0, 3, 1 << 70, 2.5, float("nan"), "x", b"x", [1], {}][rng.integers(12)]


def bent(rng: np.random.Generator, value: Any) -> Any:
    """A value much like this one."""
    if not isinstance(value, np.ndarray) or rng.random() < 0.3:
        return anything(rng)
    kind = rng.integers(5)
    if kind == 0:
        return value[1:] if value.ndim else value
    if kind == 1:
        return value[..., np.newaxis]
    if kind == 2:
        return value.T
    if kind == 3:
        return np.zeros((*value.shape[:-1], 0), value.dtype)
    data = np.frombuffer(rng.bytes(value.nbytes), np.uint8)  # as it is, but for the values
    return data.view(value.dtype).reshape(value.shape)


def mxfp4_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    rows, groups = int(rng.integers(1, 20)), int(rng.integers(1, 4))
    blocks = rng.integers(0, 256, (rows, groups, 16), np.uint8)
    return [blocks, rng.integers(0, 256, (rows, groups), np.uint8)], {}


def nvfp4_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    rows, groups = int(rng.integers(1, 20)), int(rng.integers(1, 4))
    packed = rng.integers(0, 256, (rows, 8 * groups), np.uint8)
    scales = rng.integers(0, 256, (rows, groups), np.uint8)
    return [packed, scales, np.float32(3)], {"convention": "divide"}


def onnx_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    bits = int(rng.choice([4, 8]))
    weight = random_weight(rng, 5, int(rng.integers(1, 50)), bits, 16, "packed", ordered=False)
    return [], {**weight.arrays, **weight.attributes}


def bitsandbytes_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    tensors, _, _ = random_state(rng, (4, 48), 32, nested=bool(rng.integers(2)))
    for key in tensors:
        if rng.random() < 0.2:
            tensors[key] = bent(rng, tensors[key])
    if rng.random() < 0.3:
        state = bytearray(bytes(tensors[STATE])) if isinstance(tensors[STATE], np.ndarray) else b"{"
        for _ in range(int(rng.integers(1, 4))):
            if state and isinstance(state, bytearray):
                state[rng.integers(len(state))] = int(rng.choice(list(b'0123456789-.e[]{}",:n')))
        tensors[STATE] = np.frombuffer(bytes(state) or b" ", np.uint8)
    return [tensors, ""], {}


def gptq_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    bits = int(rng.choice(gptq.BITS))
    order = str(rng.choice(["none", "shuffled"]))
    weight = gptq_weight(rng, (16, 64), 32, bits, "gptq_v2", order=order)
    return [], {**weight.arguments, "wrap_zeros": False}


def awq_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    return [], {**awq_weight(rng, (16, 64), 32).arguments, "bits": 4}


def hqq_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    bits, axis = int(rng.choice(hqq.BITS)), int(rng.integers(2))
    return [], random_hqq(rng, (16, 64), 32 if axis else 512, bits, axis).arguments


def compressed_arguments(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    bits = int(rng.choice(compressed_tensors.BITS))
    zeros = str(rng.choice(["none", "packed", "int8"]))
    layout = str(rng.choice(compressed_tensors.LAYOUTS))
    ordered = bool(rng.integers(2))
    weight = random_compressed(rng, (17, 60), 32, bits, zeros, layout, ordered=ordered)
    return [], weight.arguments


IMPORTERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "awq": (awq.from_arrays, awq_arguments),
    "bitsandbytes": (bitsandbytes.from_state_dict, bitsandbytes_arguments),
    "compressed_tensors": (compressed_tensors.from_arrays, compressed_arguments),
    "gptq": (gptq.from_arrays, gptq_arguments),
    "hqq": (hqq.from_arrays, hqq_arguments),
    "mxfp4": (mxfp4.from_arrays, mxfp4_arguments),
    "nvfp4": (nvfp4.from_arrays, nvfp4_arguments),
    "onnx": (onnx_importer.from_matmul_nbits, onnx_arguments),
}


def use(value: Any) -> None:
    for weight in value if isinstance(value, list) else [value]:
        assert isinstance(weight, nibblas.PackedWeight)
        assert weight.dequantize().shape == weight.shape
        nibblas.linear(np.ones((1, weight.shape[1]), np.float32), weight)


@pytest.mark.parametrize("name", IMPORTERS)
@hypothesis.settings(max_examples=100)
@given(seed=SEEDS)
def test_arguments(name, seed):
    rng = np.random.default_rng(seed)
    importer, arguments = IMPORTERS[name]
    positional, named = arguments(rng)
    for i in range(len(positional)):
        if rng.random() < 0.2:
            positional[i] = bent(rng, positional[i])
    for key in named:
        if rng.random() < 0.1:
            named[key] = bent(rng, named[key])
    try:
        weight = importer(*positional, **named)
    except (TypeError, ValueError):
        return
    use(weight)


@pytest.mark.parametrize("name", IMPORTERS)
def test_good_arguments(name, rng):
    """What the arguments above are made from is right: the test would prove nothing else."""
    importer, arguments = IMPORTERS[name]
    done = 0
    for _ in range(20):
        positional, named = arguments(rng)
        try:
            use(importer(*positional, **named))
            done += 1
        except (TypeError, ValueError):
            assert name == "bitsandbytes"  # of which some are bent
    assert done > 3


# --- files


@pytest.fixture(scope="module")
def model() -> bytes:
    pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    nodes = {
        "a": random_weight(rng, 5, 40, 4, 16, "packed", ordered=False),
        "b": random_weight(rng, 5, 40, 8, 16, "float", np.float16),
    }
    return bytes(model_of(nodes, {"c": np.ones((2, 3), np.float32)}).SerializeToString())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "model.onnx"


def check_names(error: ValueError, path: Path) -> None:
    """The error says which file is meant; else it is raised again, as a failure."""
    if not str(error).startswith(f"{path}: "):
        raise error


def read(path: Path) -> None:
    """Read all of a file, which may be refused; with memory in proportion to the file."""
    tracemalloc.start()
    try:
        source = onnx_importer.load(path)
        for name in source:
            entry = source.describe(name)
            assert entry.kind in ("weight", "array")
            try:
                value = source[name]
            except ValueError as error:
                check_names(error, path)
                continue
            if entry.kind == "weight":
                use(value)
                source.rows(name, 0, entry.shape[0])
    except ValueError as error:
        check_names(error, path)
    except OSError:
        pass  # a name of external data that there is not
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 22


@hypothesis.settings(max_examples=100)
@given(seed=SEEDS)
def test_damaged_onnx_files(seed, model, path):
    rng = np.random.default_rng(seed)
    data = bytearray(model)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(data)))
        kind = rng.integers(4)
        if kind == 0:
            data[place] ^= 1 << rng.integers(8)
        elif kind == 1:
            data[place] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del data[place : place + int(rng.integers(1, 20))]
        else:
            data[place:place] = rng.bytes(int(rng.integers(1, 20)))
        data = data or bytearray(1)
    path.write_bytes(data)
    read(path)


@hypothesis.settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_an_onnx_file(data, path):
    pytest.importorskip("onnx")
    path.write_bytes(data)
    read(path)


def test_a_good_onnx_file(model, path):
    path.write_bytes(model)
    assert list(onnx_importer.load(path)) == ["a.B", "b.B", "c"]
    read(path)
