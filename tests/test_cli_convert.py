# SPDX-License-Identifier: Apache-2.0
"""nibblas convert, and quantize and inspect on files of other formats."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nibblas
from nibblas.cli import _sources
from nibblas.io import gguf
from nibblas.io import onnx as onnx_importer
from nibblas.io._source import Entry, Source
from nibblas.io.packed import KEY
from nibblas.io.safetensors import SafetensorsFile
from nibblas.schemes import PANEL, SCHEMES

from .cases import ALL_VARIANTS, BFLOAT16, random_weight, same_planes
from .onnx_cases import model_of
from .onnx_cases import random_weight as random_node
from .test_io_gguf import write_file


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(_sources, "CODES", 32 * 512)


class Made(Source):
    """A source of weights and arrays in memory."""

    def __init__(self, tensors: dict[str, Any], **metadata: Any) -> None:
        self._tensors, self._metadata = tensors, metadata
        self.most_rows = 0

    @property
    def metadata(self) -> dict[str, Any]:
        return self._metadata

    def describe(self, name: str) -> Entry:
        value = self._tensors[name]
        if isinstance(value, np.ndarray):
            return Entry("array", str(value.dtype), value.shape, value.nbytes)
        if isinstance(value, list):
            nbytes = sum(part.nbytes for part in value)
            return Entry("weight", "experts", (len(value), *value[0].shape), nbytes)
        return Entry("weight", "made", value.shape, value.nbytes)

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, name: str, start: int, stop: int) -> nibblas.PackedWeight:
        self.check_rows(name, start, stop)
        self.most_rows = max(self.most_rows, stop - start)
        w = self._tensors[name]
        planes = {
            key: plane if plane.ndim == 1 else plane[start // PANEL : -(-stop // PANEL)]
            for key, plane in w.planes.items()
        }
        return nibblas.weights.make_weight(
            SCHEMES[w.scheme], (stop - start, w.shape[1]), w.group_size, planes, w._zero,
            w.tensor_scale, w.tensor_divisor,
        )  # fmt: skip


@pytest.fixture
def convert(monkeypatch, report, tmp_path):
    """convert(source, options...) -> (report, what was written)."""

    def call(source: Source, *options: object) -> tuple[dict, Any]:
        monkeypatch.setattr("nibblas.cli.convert.open_source", lambda path: source)
        facts = report("convert", "made", tmp_path / "out", *options)
        return facts, nibblas.load(tmp_path / "out")

    return call


# --- convert


def test_convert_keeps_every_plane_of_every_scheme(rng, convert):
    weights = {
        f"{variant}{ordered}": random_weight(rng, variant, (70, 512), 64, ordered=ordered)
        for variant in ALL_VARIANTS
        for ordered in (False, True)
    }
    source = Made(weights)
    facts, found = convert(source)
    assert source.most_rows == 32
    assert found.keys() == weights.keys()
    for name, w in weights.items():
        assert same_planes(found[name], w)
        assert repr(found[name]) == repr(w)
        for field in ("shape", "_zero", "tensor_scale", "tensor_divisor"):
            assert getattr(found[name], field) == getattr(w, field)
    for entry in facts["tensors"]:
        w = weights[entry["name"]]
        assert entry["scheme"] == w.scheme
        assert entry["group_size"] == w.group_size
        assert entry["nbytes_after"] == w.nbytes
        assert entry["bits_per_weight"] == w.bits_per_weight
    assert facts["nbytes_after"] == sum(w.nbytes for w in weights.values())


@pytest.mark.parametrize("shape", [(0, 64), (1, 16), (15, 16), (33, 5000), (16, 16)])
def test_convert_shapes(rng, convert, shape):
    w = random_weight(rng, ALL_VARIANTS[0], shape, None)
    _, found = convert(Made({"w": w}))
    assert found["w"].shape == shape
    assert same_planes(found["w"], w)


def test_convert_copies_what_is_no_weight(rng, convert):
    w = nibblas.quantize(rng.standard_normal((32, 64), dtype=np.float32))
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "h": np.ones(3, np.float16),
        "b": np.ones(3, BFLOAT16),
        "i": np.array(3),
        "e": np.zeros((0, 4)),
    }
    facts, found = convert(Made({"w": w, **arrays}))
    assert facts["copied"] == 5
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_convert_experts(rng, convert):
    parts = [nibblas.quantize(rng.standard_normal((20, 64), dtype=np.float32)) for _ in range(3)]
    facts, found = convert(Made({"w": parts}))
    assert list(found) == ["w.0", "w.1", "w.2"]
    assert all(same_planes(found[f"w.{i}"], part) for i, part in enumerate(parts))
    assert facts["tensors"][0]["shape"] == [3, 20, 64]
    assert facts["tensors"][0]["nbytes_after"] == sum(part.nbytes for part in parts)


def test_convert_patterns(rng, convert):
    w = nibblas.quantize(rng.standard_normal((32, 64), dtype=np.float32))
    source = Made({"a.w": w, "a.b": np.ones(3), "b.w": w})
    assert convert(source, "--include", "a.*")[1].keys() == {"a.w", "a.b"}
    assert convert(source, "--exclude", "a.*")[1].keys() == {"b.w"}


def test_convert_metadata(rng, convert, tmp_path):
    w = nibblas.quantize(rng.standard_normal((32, 64), dtype=np.float32))
    convert(
        Made(
            {"w": w},
            name="llama",
            layers=np.uint32(3),
            eps=0.5,
            on=True,
            tokens=["a"],
            **{KEY: "x"},
        )
    )
    metadata = SafetensorsFile(tmp_path / "out").metadata
    assert metadata.pop(KEY).startswith("{")
    assert metadata == {"name": "llama", "layers": "3", "eps": "0.5", "on": "true"}


def test_convert_errors(rng, monkeypatch, run, tmp_path):
    w = nibblas.quantize(rng.standard_normal((64, 512), dtype=np.float32))
    out = tmp_path / "out"

    def fails(source: Source, words: str) -> None:
        monkeypatch.setattr("nibblas.cli.convert.open_source", lambda path: source)
        code, printed, err = run("convert", "made", out)
        assert (code, printed) == (1, "")
        assert words in err
        assert list(tmp_path.iterdir()) == []

    fails(Made({"a": np.ones(3)}), "made: no low-bit weight matches")
    fails(Made({"a": w, "a.codes": np.ones(3)}), "two tensors would have the name 'a.codes'")
    fails(
        Made({"a": w, "a.codes": w}), "a packed weight and a tensor would have the name 'a.codes'"
    )

    class Uneven(Made):
        def rows(self, name, start, stop):
            piece = super().rows(name, start, stop)
            return piece if start == 0 else nibblas.quantize(piece.dequantize(), "int8")

    fails(Uneven({"a": w}), "tensor 'a': its rows from 32 on are packed differently")


def test_convert_text_and_threads(rng, run, monkeypatch, tmp_path):
    w = nibblas.quantize(rng.standard_normal((32, 64), dtype=np.float32))
    monkeypatch.setattr("nibblas.cli.convert.open_source", lambda path: Made({"w": w}))
    threads = nibblas.get_num_threads()
    code, out, err = run("convert", "made", tmp_path / "out", "--threads", str(threads + 1))
    assert (code, err) == (0, "")
    assert nibblas.get_num_threads() == threads
    assert "1 weights converted, 0 tensors copied" in out
    assert "int4" in out


# --- files of other formats


@pytest.fixture
def gguf_file(rng, tmp_path) -> Path:
    def dense(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    path = tmp_path / "model.gguf"
    tensors = {
        "q4": (dense(70, 512), "Q4_K"),
        "q8": (dense(70, 512), "Q8_0"),
        "experts": (dense(3, 20, 64), "Q4_0"),
        "norm": (dense(64), "F32"),
        "head": (dense(40, 64).astype(np.float16), "F16"),
    }
    write_file(path, tensors, layers=7, tokens=["a", "b"])
    return path


@pytest.fixture
def onnx_file(rng, tmp_path) -> Path:
    pytest.importorskip("onnx")
    nodes = {
        "a": random_node(rng, 70, 512, 4, 32, "packed", ordered=False),
        "b": random_node(rng, 70, 512, 8, 64, "none"),
    }
    nodes["a"].arrays["zero_points"][:64] = 0x11  # of these rows, all zero points are the same
    path = tmp_path / "model.onnx"
    dense = {"dense": rng.standard_normal((40, 64), dtype=np.float32)}
    path.write_bytes(model_of(nodes, dense).SerializeToString())
    return path


def test_convert_gguf(gguf_file, report, tmp_path):
    facts = report("convert", gguf_file, tmp_path / "out")
    found, expected = nibblas.load(tmp_path / "out"), gguf.load(gguf_file)
    assert found.keys() == {"q4", "q8", "experts.0", "experts.1", "experts.2", "norm", "head"}
    for name in ("q4", "q8"):
        assert same_planes(found[name], expected[name])
    for i, part in enumerate(expected["experts"]):
        assert same_planes(found[f"experts.{i}"], part)
    for name in ("norm", "head"):
        assert np.array_equal(found[name], expected[name])
    types = {entry["name"]: entry["type"] for entry in facts["tensors"]}
    assert types == {"q4": "Q4_K", "q8": "Q8_0", "experts": "Q4_0"}


def test_convert_onnx(onnx_file, report, tmp_path):
    report("convert", onnx_file, tmp_path / "out")
    found, expected = nibblas.load(tmp_path / "out"), onnx_importer.load(onnx_file)
    assert found.keys() == {"a.B", "b.B", "dense"}
    for name in ("a.B", "b.B"):
        assert same_planes(found[name], expected[name])


def test_convert_what_was_converted(gguf_file, report, tmp_path):
    """It is its own fixed point: all is copied."""
    report("convert", gguf_file, tmp_path / "one")
    report("convert", tmp_path / "one", tmp_path / "two")
    one, two = SafetensorsFile(tmp_path / "one"), SafetensorsFile(tmp_path / "two")
    assert one.metadata == two.metadata
    assert one.tensors.keys() == two.tensors.keys()
    for name in one.tensors:
        assert np.array_equal(one.raw(name), two.raw(name))


@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_quantize_gguf(gguf_file, report, tmp_path, scheme):
    facts = report("quantize", gguf_file, tmp_path / "out", "--scheme", scheme)
    assert [entry["name"] for entry in facts["tensors"]] == ["head"]
    assert facts["copied"] == 4
    found, expected = nibblas.load(tmp_path / "out"), gguf.load(gguf_file)
    wanted = nibblas.quantize(expected["head"], scheme)
    assert same_planes(found["head"], wanted)
    assert found["head"].tensor_scale == wanted.tensor_scale
    assert same_planes(found["q4"], expected["q4"])
    assert np.array_equal(found["norm"], expected["norm"])


def test_quantize_onnx(onnx_file, report, tmp_path):
    report("quantize", onnx_file, tmp_path / "out")
    found, expected = nibblas.load(tmp_path / "out"), onnx_importer.load(onnx_file)
    assert same_planes(found["dense"], nibblas.quantize(expected["dense"]))
    assert same_planes(found["a.B"], expected["a.B"])


def test_inspect_gguf(gguf_file, report, run):
    facts = report("inspect", gguf_file)
    entries = {entry["name"]: entry for entry in facts["tensors"]}
    assert entries["q4"]["dtype"] == "Q4_K"
    assert entries["q4"]["bits_per_weight"] == 4.5
    assert entries["experts"]["shape"] == [3, 20, 64]
    assert entries["head"]["type"] == "tensor"
    assert facts["metadata"]["test.layers"] == 7
    assert facts["metadata"]["test.tokens"] == ["a", "b"]
    code, out, err = run("inspect", gguf_file)
    assert (code, err) == (0, "")
    for words in (
        "Q4_K",
        "70x512",
        "4.50",
        "test.layers: 7",
        "0 packed weights, 3 low-bit weights",
    ):
        assert words in out


def test_inspect_onnx(onnx_file, run):
    code, out, err = run("inspect", onnx_file)
    assert (code, err) == (0, "")
    for words in ("MatMulNBits-4bit", "producer_name: tests", "FLOAT", "2 low-bit weights"):
        assert words in out


@pytest.mark.parametrize(
    "name",
    ["a.qweight", "a.weight_packed", "a.W_q", "a.weight.quant_state.bitsandbytes__nf4", "folder"],
)
def test_checkpoints_of_other_tools(rng, report, tmp_path, monkeypatch, name):
    """A folder, and a file whose names tell that other tools have made low-bit weights."""
    w = nibblas.quantize(rng.standard_normal((32, 64), dtype=np.float32))
    module = types.ModuleType("nibblas.io.checkpoint")
    module.load_checkpoint = lambda path: Made({"a.weight": w}, path=path)
    monkeypatch.setattr(nibblas.io, "checkpoint", module, raising=False)
    monkeypatch.setitem(sys.modules, "nibblas.io.checkpoint", module)
    path = tmp_path / "in"
    if name == "folder":
        path.mkdir()
    else:
        save_file({name: np.zeros(3, np.uint8)}, path)
    report("convert", path, tmp_path / "out")
    assert same_planes(nibblas.load(tmp_path / "out")["a.weight"], w)
    assert report("inspect", tmp_path / "out")["metadata"] == {"path": str(path)}


def test_a_name_that_only_looks_like_one(report, tmp_path):
    save_file({"down_blocks.0.weight": np.ones((16, 16), np.float32)}, tmp_path / "in")
    assert len(report("quantize", tmp_path / "in", tmp_path / "out")["tensors"]) == 1
