# SPDX-License-Identifier: Apache-2.0
"""MatMulNBits weights against the operator's formula and ONNX Runtime, and ONNX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import onnx as importer

from .cases import assert_same_bits, same_planes
from .io_cases import UNIT, check_linear, check_size
from .onnx_cases import BFLOAT16, Weight, model_of, random_weight

ZEROS = ("none", "packed", "one", "float")
BLOCKS = (16, 32, 64, 128, 256)
bits_ = pytest.mark.parametrize("bits", [2, 4, 8])
zeros_ = pytest.mark.parametrize("zeros", ZEROS)


def import_weight(weight: Weight, **changes: Any) -> nibblas.PackedWeight:
    return importer.from_matmul_nbits(**{**weight.arrays, **weight.attributes, **changes})


def assert_values(w: nibblas.PackedWeight, weight: Weight, zeros: str) -> None:
    if zeros != "float":
        # The integer is exact in float32, so there is one rounding.
        expected = (weight.codes.astype(np.float32) - weight.zeros.astype(np.float32)) * (
            weight.scales.astype(np.float32)
        )
        assert np.array_equal(w.dequantize(), expected)
    else:
        error = np.abs(w.dequantize() - weight.values)
        assert (error <= 4 * UNIT * weight.magnitudes).all()


@bits_
@zeros_
@given(
    N=st.integers(1, 40),
    K=st.integers(1, 300),
    block_size=st.sampled_from(BLOCKS),
    dtype=st.sampled_from([np.float32, np.float16, BFLOAT16]),
    ordered=st.booleans(),
    flat=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_formula(N, K, bits, block_size, zeros, dtype, ordered, flat, seed):
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, N, K, bits, block_size, zeros, dtype, ordered)
    changes = {}
    if flat:
        names = weight.arrays.keys() - {"g_idx"}
        changes = {name: weight.arrays[name].reshape(-1) for name in names}
    w = import_weight(weight, **changes)
    assert w.shape == (N, K)
    assert w.scheme == ("int" if zeros == "none" else "uint") + str(bits)
    assert_values(w, weight, zeros)


@bits_
@zeros_
def test_is_computed_with(rng, bits, zeros):
    weight = random_weight(rng, 48, 512, bits, 32, zeros, np.float16)
    w = import_weight(weight)
    check_linear(rng, w, weight.values, weight.magnitudes)
    check_size(w, *weight.arrays.values())
    weight = random_weight(rng, 20, 75, bits, 32, zeros, ordered=False)
    check_linear(rng, import_weight(weight), weight.values, weight.magnitudes)


def test_shapes_of_a_runtime(rng):
    """Arrays may have their last two sizes as one, and g_idx may be padded to whole blocks."""
    weight = random_weight(rng, 5, 75, 4, 32, "packed", ordered=False)
    expected = import_weight(weight).dequantize()
    padded = np.append(weight.arrays["g_idx"], np.int32([0] * 21))
    w = import_weight(weight, B=weight.arrays["B"].reshape(5, 48), g_idx=padded)
    assert_same_bits(w.dequantize(), expected)


def test_g_idx_that_sorts_nothing(rng):
    weight = random_weight(rng, 5, 75, 4, 32)
    index = (np.arange(75) // 32).astype(np.int32)
    assert same_planes(import_weight(weight, g_idx=index), import_weight(weight))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bits": 3}, ValueError, "bits must be 2, 4 or 8, got 3"),
        ({"bits": 4.0}, TypeError, "bits must be an int"),
        ({"block_size": 48}, ValueError, "block_size must be a power of two, got 48"),
        ({"block_size": 8}, ValueError, "block_size must be at least 16, got 8"),
        ({"N": True}, TypeError, "N must be an int"),
        ({"N": -1}, ValueError, "N must be at least 0"),
        ({"K": 0}, ValueError, "K must be at least 1"),
        ({"N": 21}, ValueError, r"B must have shape \(21, 3, 16\)"),
        ({"K": 97}, ValueError, r"B must have shape \(20, 4, 16\)"),
        ({"B": np.zeros((20, 3, 16), np.int8)}, TypeError, "B must be uint8, got int8"),
        ({"scales": np.ones((20, 4), np.float32)}, ValueError, r"scales must have shape \(20, 3\)"),
        ({"scales": np.ones((20, 3))}, TypeError, "scales must be float32"),
        ({"scales": np.full((20, 3), np.nan, np.float32)}, ValueError, "scales must be finite"),
        ({"zero_points": np.ones((20, 3), np.uint8)}, ValueError, "zero_points must have shape"),
        ({"zero_points": np.ones((20, 2), np.int8)}, TypeError, "zero_points must be uint8 or"),
        (
            {"g_idx": np.zeros(95, np.int32)},
            ValueError,
            r"g_idx must have shape \(90,\) or \(96,\)",
        ),
        ({"g_idx": np.zeros(90, np.int32)}, ValueError, "group_index must have 32 inputs"),
        ({"g_idx": np.zeros(90)}, TypeError, "group_index must be integers"),
    ],
)
def test_errors(rng, changes, error, words):
    weight = random_weight(rng, 20, 90, 4, 32, "packed")
    with pytest.raises(error, match=words):
        import_weight(weight, **changes)


# --- ONNX Runtime


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("K", [512, 300])
def test_against_the_runtime(rng, bits, zeros, block_size, K):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    weight = random_weight(rng, 24, K, bits, block_size, zeros)
    data = model_of({"w": weight}).SerializeToString()
    x = rng.standard_normal((3, K), dtype=np.float32)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, {"w.x": x})
    except Exception as error:
        if bits == 2 or zeros == "float":
            pytest.skip(f"this runtime has no such kernel: {str(error)[-150:]}")
        raise
    found = nibblas.linear(x, import_weight(weight), compute="float32")
    # Both sum at most K + K / block terms of these magnitudes in float32.
    bound = 2 * (2 * K + 8) * UNIT * (np.abs(x) @ weight.magnitudes.T)
    assert (np.abs(found - expected) <= bound).all()
    assert np.abs(expected).max() > 1


# --- files


@pytest.fixture
def nodes(rng) -> dict[str, Weight]:
    return {
        "a": random_weight(rng, 40, 75, 4, 32, "packed", ordered=False),
        "b": random_weight(rng, 33, 128, 8, 64, "one", np.float16),
        "c": random_weight(rng, 20, 64, 2, 16, "none"),
        "d": random_weight(rng, 20, 64, 4, 16, "float"),
    }


@pytest.fixture
def others(rng) -> dict[str, np.ndarray]:
    return {
        "dense": rng.standard_normal((5, 7), dtype=np.float32),
        "half": rng.standard_normal(9).astype(np.float16),
        "brain": rng.standard_normal(9).astype(BFLOAT16),
        "ids": np.arange(6).reshape(2, 3),
        "scalar": np.array(3, np.int32),
        "empty": np.zeros((0, 3), np.float32),
    }


def save(model: Any, path: Path, external: str | None = None) -> Path:
    import onnx

    options = {"save_as_external_data": True, "location": external, "size_threshold": 0}
    onnx.save(model, path, **(options if external else {}))
    return path


@pytest.mark.parametrize("external", [None, "weights.bin"])
def test_load(nodes, others, tmp_path, external):
    pytest.importorskip("onnx")
    path = save(model_of(nodes, others), tmp_path / "m.onnx", external)
    found = importer.load(path)
    assert list(found) == ["a.B", "b.B", "c.B", "d.B", *others]
    assert len(found) == 10
    for name, weight in nodes.items():
        w = found[f"{name}.B"]
        assert isinstance(w, nibblas.PackedWeight)
        assert same_planes(w, import_weight(weight))
        nbytes = sum(array.nbytes for array in weight.arrays.values())
        kind = f"MatMulNBits-{weight.attributes['bits']}bit"
        assert found.describe(f"{name}.B") == ("weight", kind, w.shape, nbytes)
    for name, array in others.items():
        assert_same_bits(found[name], array)
        assert not found[name].flags.writeable
        entry = found.describe(name)
        assert (entry.kind, entry.shape, entry.nbytes) == ("array", array.shape, array.nbytes)
    assert found.describe("half").type == "FLOAT16"
    assert found.metadata["producer_name"] == "tests"
    assert found.metadata["opset_import"]["com.microsoft"] == 1
    assert found.metadata["metadata_props"] == {"kind": "small"}
    for name in ("a.scales", "nothing"):
        assert name not in found
        with pytest.raises(KeyError):
            found[name]
        with pytest.raises(KeyError):
            found.describe(name)


def test_rows(nodes, others, tmp_path):
    pytest.importorskip("onnx")
    found = importer.load(save(model_of(nodes, others), tmp_path / "m.onnx"))
    # Only the first rows of it have one zero.
    for name in nodes:
        whole = found[f"{name}.B"]
        rows = whole.shape[0]
        pieces = [found.rows(f"{name}.B", i, min(i + 16, rows)) for i in range(0, rows, 16)]
        for plane, array in whole.planes.items():
            parts = [piece.planes[plane] for piece in pieces]
            joined = parts[0] if array.ndim == 1 else np.concatenate(parts)
            assert np.array_equal(joined, array)
        assert {piece._zero for piece in pieces} == {whole._zero}
    with pytest.raises(ValueError, match="expected rows from a multiple of 16"):
        found.rows("a.B", 8, 16)
    with pytest.raises(ValueError, match="at most 40"):
        found.rows("a.B", 0, 41)
    with pytest.raises(TypeError, match="no packed weight"):
        found.rows("dense", 0, 0)


@bits_
def test_zero_points_that_some_rows_share(rng, tmp_path, bits):
    """A piece with one zero point has a plane of them if the whole weight has."""
    pytest.importorskip("onnx")
    weight = random_weight(rng, 32, 64, bits, 16, "one")
    weight.arrays["zero_points"][20] = 0x72
    found = importer.load(save(model_of({"w": weight}), tmp_path / "m.onnx"))
    pieces = [found.rows("w.B", 0, 16), found.rows("w.B", 16, 32)]
    joined = np.concatenate([piece.planes["zero_points"] for piece in pieces])
    assert np.array_equal(joined, found["w.B"].planes["zero_points"])


def test_nodes_that_are_no_weights(rng, tmp_path):
    """A node whose scales are computed, and one of another domain, leave B an array."""
    pytest.importorskip("onnx")
    weight = random_weight(rng, 16, 32, 4, 16)
    model = model_of({"w": weight, "v": weight})
    model.graph.node[0].input[2] = "w.x"
    model.graph.node[1].domain = "else"
    found = importer.load(save(model, tmp_path / "m.onnx"))
    assert {found.describe(name).kind for name in found} == {"array"}
    assert_same_bits(found["w.B"], weight.arrays["B"])


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret", "outside the model's folder"),
        ("sub/../../secret", "outside the model's folder"),
        ("/etc/passwd", "expected a relative location"),
        ("link", "outside the model's folder"),
        ("", "expected a relative location"),
        ("a\0b", "expected a relative location"),
    ],
)
def test_external_data_stays_in_the_folder(rng, tmp_path, location, words):
    onnx = pytest.importorskip("onnx")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    os.symlink(tmp_path / "secret", home / "link")
    path = save(model_of({}, {"w": np.zeros(8, np.float32)}), home / "m.onnx", "data")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=rf"m.onnx: tensor 'w': .*{words}"):
        importer.load(path)["w"]


def test_external_data_beside_a_linked_model(rng, tmp_path):
    """As caches of downloads have it: links in one folder to files in another."""
    pytest.importorskip("onnx")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    array = rng.standard_normal(8, dtype=np.float32)
    save(model_of({}, {"w": array}), blobs / "m.onnx", "data")
    for name in ("m.onnx", "data"):
        os.symlink(blobs / name, snapshot / name)
    assert_same_bits(importer.load(snapshot / "m.onnx")["w"], array)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("offset", "-1", "offset: expected a number"),
        ("offset", "9" * 30, "offset: expected a number"),
        ("offset", "4", "32 bytes from 4 on, in a file of 32 bytes"),
        ("length", "31", "expected 32 bytes"),
        ("length", str(1 << 60), "in a file of 32 bytes"),
        ("location", "none", "none"),
    ],
)
def test_damaged_external_data(rng, tmp_path, key, value, words):
    onnx = pytest.importorskip("onnx")
    path = save(model_of({}, {"w": np.zeros(8, np.float32)}), tmp_path / "m.onnx", "data")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises((ValueError, OSError), match=words):
        importer.load(path)["w"]


def test_damaged_files(rng, nodes, tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "m.onnx"

    def refuses(model: Any, words: str) -> None:
        path.write_bytes(model.SerializeToString() if hasattr(model, "graph") else model)
        with pytest.raises(ValueError, match=rf"m\.onnx: .*{words}"):
            dict(importer.load(path))

    refuses(b"", "no graph")
    refuses(b"GGUF", "no ONNX model")
    refuses(b"\xff" * 100, "no ONNX model")
    good = model_of(nodes)
    refuses(good.SerializeToString()[:-5], "no ONNX model")
    for name, value, words in (
        ("bits", 3, "bits must be 2, 4 or 8"),
        ("N", 41, "B must have shape"),
        ("block_size", 0, "block_size must be at least 16"),
        ("weight_prepacked", 1, "packed for a GPU"),
    ):
        model = model_of({"a": nodes["a"]})
        attributes = {a.name: a for a in model.graph.node[0].attribute}
        attribute = attributes.get(name) or model.graph.node[0].attribute.add(name=name)
        attribute.i = value
        refuses(model, f"tensor 'a.B': .*{words}")
    model = model_of({"a": nodes["a"]})
    model.graph.initializer.append(model.graph.initializer[0])
    refuses(model, "initializer 'a.B': expected a name of its own")
    model = model_of({}, {"w": np.zeros(3, np.float32)})
    model.graph.initializer[0].dims[0] = 1 << 61
    refuses(model, "tensor 'w': expected")
    model.graph.initializer[0].dims[0] = -3
    refuses(model, "initializer 'w': dims")
    model.graph.initializer[0].dims[0] = 3
    model.graph.initializer[0].data_type = 8
    refuses(model, "tensor 'w': data_type: cannot read STRING")
    model.graph.initializer[0].data_type = 77
    refuses(model, "tensor 'w': data_type: cannot read 77")


def test_typed_data(tmp_path):
    """Numbers may stand in the message one by one instead of as bytes."""
    onnx = pytest.importorskip("onnx")
    model = model_of({})
    make = onnx.helper.make_tensor
    model.graph.initializer.append(make("f", onnx.TensorProto.FLOAT, (3,), [1.0, 2.0, 3.0]))
    model.graph.initializer.append(make("b", onnx.TensorProto.BFLOAT16, (2,), [1.5, 2.0]))
    found = importer.load(save(model, tmp_path / "m.onnx"))
    assert_same_bits(found["f"], np.float32([1, 2, 3]))
    assert_same_bits(found["b"], np.array([1.5, 2], BFLOAT16))
