# SPDX-License-Identifier: Apache-2.0
"""What `quantize` and `convert` do in pieces, and copy as it is, on files of every format."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import nibblas
from nibblas.cli import _sources, main
from nibblas.io import gguf
from nibblas.io import onnx as importer
from nibblas.io._packed_source import PackedSource

from .cases import BFLOAT16, same_planes
from .onnx_cases import model_of
from .onnx_cases import random_weight as random_node
from .test_io_gguf import write_file


@pytest.fixture(params=["whole", "in pieces"])
def _pieces(request, monkeypatch):
    """With "in pieces" 16 rows at a time."""
    if request.param == "in pieces":
        monkeypatch.setattr(_sources, "CODES", 1)


def dense(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


# --- quantize


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("scheme", ["int8", "uint4", "nf4", "mxfp4", "nvfp4", "q6_k", "ternary"])
def test_quantize(scheme, rng, report, tmp_path):
    matrices = {
        "float32": dense(rng, 70, 300),
        "float16": dense(rng, 16, 64).astype(np.float16),
        "bfloat16": dense(rng, 33, 40).astype(BFLOAT16),
    }
    nibblas.save(tmp_path / "in", matrices)
    facts = report("quantize", tmp_path / "in", tmp_path / "out", "--scheme", scheme)
    found = nibblas.load(tmp_path / "out")
    for entry in facts["tensors"]:
        matrix = matrices[entry["name"]]
        expected = nibblas.quantize(matrix, scheme)
        assert same_planes(found[entry["name"]], expected)
        assert found[entry["name"]].tensor_scale == expected.tensor_scale
        assert entry["nbytes_after"] == expected.nbytes
        assert entry["bits_per_weight"] == expected.bits_per_weight
        exact = matrix.astype(np.float64)
        error = np.linalg.norm(expected.dequantize() - exact) / np.linalg.norm(exact)
        assert entry["relative_error"] == pytest.approx(error, rel=1e-9)


@pytest.mark.usefixtures("_pieces")
def test_quantize_an_empty_matrix(report, tmp_path):
    empty = {"rows": np.zeros((0, 64), np.float32), "w": np.ones((4, 64), np.float32)}
    nibblas.save(tmp_path / "in", empty)
    for scheme in ("int4", "nf4", "nvfp4"):
        report("quantize", tmp_path / "in", tmp_path / "out", "--scheme", scheme)
        assert nibblas.load(tmp_path / "out")["rows"].shape == (0, 64)


@pytest.mark.usefixtures("_pieces")
def test_what_matmul_multiplies_by_is_turned(rng, report, tmp_path):
    """MatMul and plain Gemm have (K, N): the groups of such a weight run down its columns."""
    onnx = pytest.importorskip("onnx")
    matrices = {
        "matmul": dense(rng, 64, 40),
        "half": dense(rng, 96, 24).astype(np.float16),
        "gemm": dense(rng, 64, 40),
        "gemm_t": dense(rng, 40, 64),
        "table": dense(rng, 50, 24),
    }
    model = model_of({"low": random_node(rng, 16, 64, 4, 32)}, matrices)
    node = onnx.helper.make_node
    model.graph.node.extend(
        [
            node("MatMul", ["x", "matmul"], ["y0"]),
            node("MatMul", ["x", "half"], ["y1"]),
            node("Gemm", ["x", "gemm"], ["y2"]),
            node("Gemm", ["x", "gemm_t"], ["y3"], transB=1),
            node("Gather", ["table", "indices"], ["y4"]),
        ]
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    facts = report("quantize", path, tmp_path / "out", "--scheme", "int8")
    found = nibblas.load(tmp_path / "out")
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in facts["tensors"]}
    assert shapes.keys() == matrices.keys()
    for name, matrix in matrices.items():
        turned = matrix.T if name in ("matmul", "half", "gemm") else matrix
        assert shapes[name] == turned.shape
        assert same_planes(found[name], nibblas.quantize(turned, "int8"))
    x = dense(rng, 3, 64)
    error = np.abs(nibblas.linear(x, found["matmul"]) - x @ matrices["matmul"]).max()
    assert error < 0.5  # of sums of 64 products of about 1; turned wrongly it would not even fit


# --- what is copied


def test_bytes_are_copied_as_they_are(rng, report, tmp_path, monkeypatch):
    """bfloat16 stays that, also without ml_dtypes; of ONNX wherever the file has it."""
    values = dense(rng, 8, 64).astype(BFLOAT16)
    path = tmp_path / "model.gguf"
    write_file(path, {"w": (dense(rng, 16, 64), "Q8_0"), "b": (values.astype(np.float32), "BF16")})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        report("convert", path, tmp_path / "out")
    assert nibblas.load(tmp_path / "out")["b"].tobytes() == values.tobytes()

    pytest.importorskip("onnx")
    arrays = {"b": values, **{"i" * n: np.arange(n, dtype=np.int64) for n in range(1, 9)}}
    path = tmp_path / "model.onnx"
    model = model_of({"low": random_node(rng, 16, 64, 4, 32)}, arrays)
    path.write_bytes(model.SerializeToString())
    report("convert", path, tmp_path / "out")
    found = nibblas.load(tmp_path / "out")
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes())
    source = importer.load(path)
    with pytest.raises(TypeError, match=r"'low.B' is a packed weight"):
        source.stored("low.B")


def test_experts_are_made_one_by_one(rng, tmp_path):
    path = tmp_path / "model.gguf"
    tensors = {
        "experts": (dense(rng, 3, 20, 64), "Q4_0"),
        "more": (dense(rng, 2, 3, 16, 64), "Q8_0"),
        "matrix": (dense(rng, 16, 64), "Q4_0"),
        "floats": (dense(rng, 3, 16, 64), "F32"),
    }
    write_file(path, tensors)
    source = gguf.load(path)
    for name, count in (("experts", 3), ("more", 6)):
        experts = source.experts(name)
        assert iter(experts) is experts
        pairs = list(zip(experts, source[name], strict=True))
        assert len(pairs) == count
        assert all(same_planes(one, other) for one, other in pairs)
    for name in ("matrix", "floats"):
        with pytest.raises(TypeError, match=f"{name!r} is no list of matrices"):
            next(source.experts(name))


def test_text_that_is_not_utf_8(rng, report, capsys, tmp_path):
    path = tmp_path / "model.gguf"
    write_file(path, {"w": (dense(rng, 16, 64), "Q8_0")}, author="ABCDEFGH")
    path.write_bytes(path.read_bytes().replace(b"ABCDEFGH", b"AB\xffDEFGH"))
    assert gguf.load(path).metadata["test.author"] == "AB\udcffDEFGH"
    report("convert", path, tmp_path / "out")
    for file in (path, tmp_path / "out"):
        assert report("inspect", file)["metadata"]["test.author"] == "AB?DEFGH"
        assert main(["inspect", str(file)]) == 0
        assert "test.author: AB?DEFGH\n" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["int4", "uint3", "nf4", "nvfp4", "q2_k", "int8", "ternary"])
def test_rows_of_a_file_of_packed_weights(scheme, rng, tmp_path):
    w = nibblas.quantize(dense(rng, 70, 300), scheme)
    nibblas.save(tmp_path / "file", {"w": w, "x": np.zeros(3)})
    source = PackedSource(tmp_path / "file")
    for start, stop in ((0, 16), (16, 64), (48, 70), (0, 70), (32, 39), (64, 64)):
        rows = source.rows("w", start, stop)
        assert np.array_equal(rows.dequantize(), w.dequantize()[start:stop])
        source.release()
