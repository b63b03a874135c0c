# SPDX-License-Identifier: Apache-2.0
"""GGUF weights: packed from blocks and loaded from files, against the package `gguf`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import nibblas
from nibblas.io import _gguf_blocks, gguf

package = pytest.importorskip("gguf")
oracle = package.quants
QTYPES = {q.name: q for q in package.GGMLQuantizationType}
SHAPES = nibblas._nibblas.block_shapes()
BLOCK_TYPES = tuple(SHAPES)

SCHEMES = {
    "Q4_0": "int4",
    "Q4_1": "uint4",
    "Q5_0": "int5",
    "Q5_1": "uint5",
    "Q8_0": "int8",
    "TQ1_0": "ternary",
    "TQ2_0": "ternary",
}


def random_blocks(rng: np.random.Generator, name: str, rows: int, blocks: int) -> np.ndarray:
    """Any bytes, so far as a packed weight can hold them."""
    raw = rng.integers(0, 256, (rows, blocks * SHAPES[name][1]), np.uint8)
    if name == "MXFP4":
        raw[:, ::17] &= 0x7F  # not 255, which is NaN to nibblas
    if name == "TQ2_0":
        raw &= ~((raw & 0xAA) >> 1)  # no code 3
    return raw


def package_dequantize(raw: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return oracle.dequantize(raw, QTYPES[name])


def expect_same_floats(found: np.ndarray, expected: np.ndarray) -> None:
    bits = np.where(np.isnan(expected), np.uint32(0x7FC00000), expected.view(np.uint32))
    np.testing.assert_array_equal(found.view(np.uint32), bits)


# --- from_blocks


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_from_blocks_keeps_every_value(name, target, rng, monkeypatch):
    for rows, blocks in ((1, 1), (16, 2), (37, 3), (50, 9)):
        # The last in chunks of 16 rows, the others at once.
        monkeypatch.setattr(_gguf_blocks, "_CHUNK_CODES", 1 if rows == 50 else 1 << 22)
        raw = random_blocks(rng, name, rows, blocks)
        w = gguf.from_blocks(raw, name, num_threads=2)
        assert w.scheme == SCHEMES.get(name, name.lower())
        assert w.shape == (rows, blocks * SHAPES[name][0])
        expect_same_floats(w.dequantize(), package_dequantize(raw, name))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_packed_weight_takes_what_the_blocks_do(name, rng):
    raw = random_blocks(rng, name, 64, 2048 // SHAPES[name][0])
    w = gguf.from_blocks(raw, name)
    limit = 2.2 if name == "TQ1_0" else 1.04  # 2 bits for 1.6
    assert w.nbytes <= limit * raw.nbytes


def magnitudes(w: nibblas.PackedWeight) -> np.ndarray:
    """The weights' sizes, with that of the min added twice: to the product, too."""
    parts = w.unpack()
    parts["codes"] = np.zeros_like(parts["codes"])
    mins = nibblas.pack(**parts).dequantize() if w.offset == "min" else np.zeros(w.shape)
    return np.abs(w.dequantize().astype(np.float64)) + 2 * np.abs(mins.astype(np.float64))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_linear_is_within_the_bound_of_float64(name, target, rng):
    """
    float32: each of the K + 3 G roundings, of sums of products |x| (|s q| + |m|) and their like,
    errs by 2^-24 of what it rounds. int8: besides, x errs by half a step, amax / 254 of its group.
    """
    rows, depth = 37, 768
    weight = rng.standard_normal((rows, depth)).astype(np.float32)
    w = gguf.from_blocks(gguf.quantize(weight, name), name)
    dense = w.dequantize().astype(np.float64)
    x = rng.standard_normal((3, depth)).astype(np.float32)
    exact = x.astype(np.float64) @ dense.T
    group = 256 if name.endswith("_K") or name == "IQ4_XS" else SHAPES[name][0]
    amax = np.abs(x).reshape(3, -1, group).max(-1).repeat(group, -1).astype(np.float64)
    rounding = (depth + 3 * depth / 16 + 16) * 2.0**-24
    for compute, step in (("float32", 0), ("int8", amax / 254)):
        sizes = np.abs(x) + step
        bound = rounding * sizes @ magnitudes(w).T + (step + 0 * x) @ np.abs(dense).T * 1.00001
        error = np.abs(nibblas.linear(x, w, compute=compute) - exact)
        assert (error <= bound).all(), compute


def test_mxfp4_255_is_nan_in_a_packed_weight(rng):
    raw = random_blocks(rng, "MXFP4", 4, 2)
    raw[1, 17] = 255  # the second block of row 1
    values = gguf.from_blocks(raw, "MXFP4").dequantize()
    assert np.isnan(values[1, 32:]).all()
    assert np.isnan(values).sum() == 32


def test_from_blocks_says_what_is_wrong(rng):
    raw = random_blocks(rng, "TQ2_0", 4, 2)
    raw[3, 100] = 0b11
    with pytest.raises(ValueError, match="codes 0, 1 and 2 of TQ2_0, got 3"):
        gguf.from_blocks(raw, "TQ2_0")
    for bad in (raw[0], raw[:, 1:], raw[None]):
        with pytest.raises(ValueError, match=r"raw must have shape \(N, bytes\)"):
            gguf.from_blocks(bad, "TQ2_0")
    with pytest.raises(TypeError, match="uint8"):
        gguf.from_blocks(raw.view(np.int8), "TQ2_0")


def test_from_blocks_takes_views_and_nothing_at_all(rng):
    raw = random_blocks(rng, "Q4_K", 40, 2)
    w = gguf.from_blocks(raw[::2], "q4_k")
    expect_same_floats(w.dequantize(), package_dequantize(raw[::2], "Q4_K"))
    assert gguf.from_blocks(raw[:0], "Q4_K").shape == (0, 512)
    assert gguf.from_blocks(raw[:, :0], "Q4_K").shape == (40, 0)


# --- load


def write_file(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **metadata: object) -> None:
    """A file by the package: tensors are (values, type)."""
    writer = package.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        key = f"test.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint64(key, value)
        else:
            writer.add_float64(key, value)
    for name, (values, kind) in tensors.items():
        raw = gguf.quantize(values, kind) if kind in SHAPES or kind == "BF16" else values
        writer.add_tensor(name, raw, raw_dtype=QTYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_load_reads_every_type_that_the_package_writes(tmp_path, rng):
    weight = rng.standard_normal((20, 512)).astype(np.float32)
    tensors = {f"w.{name}": (weight, name) for name in BLOCK_TYPES}
    path = tmp_path / "model.gguf"
    write_file(path, tensors)
    model = gguf.load(path)
    assert list(model) == list(tensors)
    assert len(model) == len(tensors)
    for tensor in package.GGUFReader(path).tensors:
        name = tensor.tensor_type.name
        w = model[tensor.name]
        assert isinstance(w, nibblas.PackedWeight)
        assert model.describe(tensor.name)[:2] == ("weight", name)
        assert model.describe(tensor.name).shape == w.shape == (20, 512)
        np.testing.assert_array_equal(model.raw(tensor.name), tensor.data.reshape(-1))
        expect_same_floats(w.dequantize(), package_dequantize(tensor.data, name))


def test_load_gives_arrays_and_lists_of_experts(tmp_path, rng):
    norm = rng.standard_normal(512).astype(np.float32)
    experts = rng.standard_normal((3, 20, 512)).astype(np.float32)
    tensors = {
        "norm": (norm, "F32"),
        "half": (experts.astype(np.float16), "F16"),
        "brain": (experts, "BF16"),
        "double": (norm.astype(np.float64).reshape(2, 256), "F64"),
        "ids": (np.arange(7, dtype=np.int32), "I32"),
        "quantized_norm": (norm, "Q8_0"),
        "experts": (experts, "Q6_K"),
        "nested": (experts[None], "Q4_0"),
    }
    path = tmp_path / "model.gguf"
    write_file(path, tensors)
    model = gguf.load(path)
    for name in ("norm", "half", "double", "ids"):
        array = model[name]
        np.testing.assert_array_equal(array, tensors[name][0], strict=True)
        assert not array.flags.writeable
        assert not array.flags.owndata
    brain = model["brain"]
    assert brain.dtype.name == "bfloat16"
    bits = gguf.quantize(experts, "BF16").view(np.uint16)
    np.testing.assert_array_equal(brain.view(np.uint16), bits)
    raw = gguf.quantize(norm, "Q8_0")
    np.testing.assert_array_equal(model["quantized_norm"], package_dequantize(raw, "Q8_0"))
    for name, kind, parts in (
        ("experts", "Q6_K", model["experts"]),
        ("nested", "Q4_0", model["nested"]),
    ):
        assert len(parts) == 3, name
        for expert, w in zip(experts, parts, strict=True):
            values = package_dequantize(gguf.quantize(expert, kind), kind)
            np.testing.assert_array_equal(w.dequantize(), values)


def test_a_file_can_be_read_by_rows(tmp_path, rng):
    weight = rng.standard_normal((40, 256)).astype(np.float32)
    path = tmp_path / "model.gguf"
    experts = weight.reshape(2, 20, 256)
    write_file(path, {"w": (weight, "Q4_K"), "e": (experts, "Q4_K"), "norm": (weight[0], "F32")})
    model = gguf.load(path)
    assert model.describe("w") == ("weight", "Q4_K", (40, 256), 40 * 144)
    assert model.describe("e").kind == "weight"
    assert model.describe("norm") == ("array", "F32", (256,), 1024)
    for start, stop in ((0, 16), (16, 40), (32, 33), (32, 32)):
        part = model.rows("w", start, stop)
        assert part.shape == (stop - start, 256)
        np.testing.assert_array_equal(part.dequantize(), model["w"].dequantize()[start:stop])
    for start, stop in ((1, 16), (16, 0), (0, 41), (-16, 16)):
        with pytest.raises(ValueError, match="tensor 'w': expected rows"):
            model.rows("w", start, stop)
    for name in ("e", "norm"):
        with pytest.raises(TypeError, match=f"tensor '{name}'"):
            model.rows(name, 0, 16)


def test_bfloat16_without_ml_dtypes_is_float32(tmp_path, rng, monkeypatch):
    x = rng.standard_normal((3, 40)).astype(np.float32)
    path = tmp_path / "model.gguf"
    write_file(path, {"brain": (x, "BF16")})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    expected = package_dequantize(gguf.quantize(x, "BF16"), "BF16")
    np.testing.assert_array_equal(gguf.load(path)["brain"], expected, strict=True)


def test_load_gives_the_metadata(tmp_path):
    values = {
        "flag": True,
        "name": "häuser",
        "count": 2**40,
        "rate": 0.1,
        "tokens": ["a", "", "€"],
        "numbers": [1, -2, 3],
        "floats": [0.5, 0.25],
    }
    path = tmp_path / "model.gguf"
    write_file(path, {}, **values)
    model = gguf.load(str(path))
    assert len(model) == 0
    assert model.metadata["general.architecture"] == "llama"
    for key, value in values.items():
        found = model.metadata[f"test.{key}"]
        found = found.tolist() if isinstance(found, np.ndarray) else found
        assert found == value
        assert type(found) is type(value)


def test_load_is_lazy_and_needs_no_package(tmp_path, rng, monkeypatch):
    path = tmp_path / "model.gguf"
    write_file(path, {"w": (rng.standard_normal((4, 32)).astype(np.float32), "Q4_0")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    calls = []
    monkeypatch.setattr(gguf, "from_blocks", lambda *args: calls.append(args))
    model = gguf.load(path)
    assert "w" in model
    assert not calls
    model["w"]
    assert len(calls) == 1
    with pytest.raises(KeyError):
        model["v"]
