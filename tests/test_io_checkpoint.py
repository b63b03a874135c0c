# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Hugging Face: small ones of each kind, whole, in pieces and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nibblas
from nibblas.io import load_checkpoint
from nibblas.io._methods import HQQ_NOTES
from nibblas.io.safetensors import spec_of

from . import checkpoint_cases as cases
from .cases import assert_same_bits, same_planes
from .checkpoint_cases import KINDS, OTHERS, write_file, write_folder, write_index


def joined(pieces: list[nibblas.PackedWeight], plane: str) -> np.ndarray:
    parts = [piece.planes[plane] for piece in pieces]
    return parts[0] if parts[0].ndim == 1 else np.concatenate(parts)


# --- every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [0, 3])
def test_whole(rng, tmp_path, kind, shards):
    """The parts of a weight may be in different files."""
    checkpoint = KINDS[kind](rng)
    tensors = {**checkpoint.tensors, **OTHERS}
    found = load_checkpoint(write_folder(tmp_path / "m", tensors, checkpoint.config, shards))
    biases = {name for name in tensors if name.endswith("_bias")}
    assert set(found) == {*checkpoint.values, *OTHERS, *biases}
    assert len(found) == len(list(found))
    for name, values in checkpoint.values.items():
        w, entry = found[name], found.describe(name)
        assert (entry.kind, entry.type) == ("weight", checkpoint.types[name])
        assert entry.shape == np.shape(values)
        dense = [one.dequantize() for one in w] if isinstance(w, list) else w.dequantize()
        assert np.array_equal(dense, values)
        if isinstance(w, list):
            assert all(map(same_planes, found.experts(name), w))
    assert sum(found.describe(name).nbytes for name in found) == sum(
        array.nbytes for array in tensors.values()
    )
    for name, array in OTHERS.items():
        assert_same_bits(found[name], array)
        assert found.describe(name)[:3] == ("array", spec_of(array).dtype, array.shape)
        spec, raw = found.stored(name)
        assert (spec, raw.tobytes()) == (spec_of(array), array.tobytes())
    if checkpoint.config is not None:
        assert found.metadata["quantization_config"] == checkpoint.config
        assert found.metadata["eps"] == 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [16, 32])
def test_pieces(rng, tmp_path, kind, step):
    """Planes of the pieces, one after the other, are those of the whole."""
    checkpoint = KINDS[kind](rng)
    found = load_checkpoint(write_folder(tmp_path / "m", checkpoint.tensors, checkpoint.config))
    for name in checkpoint.values:
        whole = found[name]
        if isinstance(whole, list):
            with pytest.raises(TypeError, match="it has no rows"):
                found.rows(name, 0, 16)
            continue
        rows = whole.shape[0]
        pieces = []
        for start in range(0, rows, step):
            pieces.append(found.rows(name, start, min(start + step, rows)))
            found.release()
        for plane, array in whole.planes.items():
            assert np.array_equal(joined(pieces, plane), array), (name, plane)
        assert {piece._zero for piece in pieces} == {whole._zero}
        assert {tuple(piece.planes) for piece in pieces} == {tuple(whole.planes)}
        last = found.rows(name, 16, 21)
        assert_same_bits(last.dequantize(), whole.dequantize()[16:21])


def test_one_zero_point_costs_nothing(rng, tmp_path):
    for kind in (cases.gptq(rng), cases.awq(rng)):
        found = load_checkpoint(write_folder(tmp_path / "m", kind.tensors, kind.config))
        offsets = {found[name].offset for name in found}
        assert offsets == {"symmetric", "zero_point"}


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_names_of_the_version_of_gptq(rng, tmp_path, form):
    """Some files say it as "format" alone; else what that says does not count."""
    kind = cases.gptq(rng, checkpoint_format=form)
    rest = {k: v for k, v in kind.config.items() if k != "checkpoint_format"}
    for config in ({**rest, "format": form}, {**kind.config, "format": "other"}):
        found = load_checkpoint(write_folder(tmp_path / "m", kind.tensors, config))
        for name, values in kind.values.items():
            assert_same_bits(found[name].dequantize(), values)
    folder = write_folder(tmp_path / "m", kind.tensors, {**rest, "format": "marlin"})
    with pytest.raises(ValueError, match="'gptq' or 'gptq_v2', got 'marlin'"):
        load_checkpoint(folder)["a.weight"]


def test_empty_g_idx_is_none(rng, tmp_path):
    kind = cases.gptq(rng, order="plain")
    empty = {name: np.zeros(0, np.int32) for name in kind.tensors if name.endswith(".g_idx")}
    folder = write_folder(tmp_path / "m", {**kind.tensors, **empty}, kind.config)
    found = load_checkpoint(folder)
    for name, values in kind.values.items():
        assert found.describe(name).shape == values.shape
        assert_same_bits(found.rows(name, 16, 40).dequantize(), values[16:])


@pytest.mark.parametrize(
    ("name", "make", "inner"),
    [
        ("quantize_config.json", cases.gptq, None),
        ("quant_config.json", cases.awq, None),
        ("hf_quant_config.json", cases.modelopt, "quantization"),
    ],
)
def test_configurations_of_older_tools(rng, tmp_path, name, make, inner):
    kind = make(rng)
    folder = write_folder(tmp_path / "m", kind.tensors)
    fields = {k: v for k, v in kind.config.items() if k != "quant_method"}
    (folder / name).write_text(json.dumps({inner: fields} if inner else fields))
    (folder / "config.json").write_text("{}")
    for path in (folder, folder / "model.safetensors"):
        found = load_checkpoint(path)
        assert list(found) == list(kind.values)
        assert found.metadata["quantization_config"] == kind.config


def test_configuration_of_the_inner_model(rng, tmp_path):
    kind = cases.awq(rng)
    folder = write_folder(tmp_path / "m", kind.tensors)
    (folder / "config.json").write_text(
        json.dumps({"text_config": {"quantization_config": kind.config}})
    )
    assert list(load_checkpoint(folder)) == list(kind.values)


def test_without_a_configuration_all_are_arrays(rng, tmp_path):
    kind = cases.gptq(rng)
    path = write_folder(tmp_path / "m", kind.tensors, kind.config) / "model.safetensors"
    assert list(load_checkpoint(path)) == list(kind.values)
    (tmp_path / "m" / "config.json").unlink()
    assert set(load_checkpoint(path)) == kind.tensors.keys()


def test_names_that_there_are_not(rng, tmp_path):
    kind = cases.gptq(rng)
    found = load_checkpoint(write_folder(tmp_path / "m", {**kind.tensors, **OTHERS}, kind.config))
    for name in ("a.qweight", "a", ""):
        assert name not in found
        for call in (found.__getitem__, found.describe, found.stored):
            with pytest.raises(KeyError):
                call(name)
    with pytest.raises(TypeError, match="no packed weight"):
        found.rows("norm.weight", 0, 0)
    with pytest.raises(ValueError, match="expected rows from a multiple of 16"):
        found.rows("a.weight", 8, 16)
    with pytest.raises(TypeError, match="no list of matrices"):
        list(found.experts("a.weight"))


# --- damaged ones


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "fp8"}, "quant_method: expected gptq or awq .* got 'fp8'"),
        ({"quant_method": ["gptq"]}, "quant_method: expected a string"),
        ({}, "quant_method: expected a string, got None"),
        ([], "expected an object, got list"),
        ({"quant_method": "gptq"}, "'a.qweight': bits: expected a size, got None"),
        ({"quant_method": "gptq", "bits": "4"}, "bits: expected a size, got '4'"),
        ({"quant_method": "gptq", "bits": True}, "bits: expected a size, got True"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size: expected a size"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "packed for Marlin"),
        ({"quant_method": "awq", "version": "gemv"}, 'version: only "gemm" can be read'),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "load_in_8bit: only 4-bit"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "float-quantized"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "only NVFP4 can be read, got 'FP8'"),
    ],
)
def test_configurations_that_are_refused(rng, tmp_path, config, words):
    folder = write_folder(tmp_path / "m", cases.gptq(rng).tensors, config)
    with pytest.raises(ValueError, match=f"m: quantization_config: .*{words}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 8}, "tensor 'a.weight': qzeros must have shape"),
        ({"bits": 5}, "tensor 'a.weight': bits must be one of"),
        ({"checkpoint_format": "marlin"}, "tensor 'a.weight': checkpoint_format must be"),
    ],
)
def test_weights_that_are_refused(rng, tmp_path, changes, words):
    kind = cases.gptq(rng)
    found = load_checkpoint(write_folder(tmp_path / "m", kind.tensors, {**kind.config, **changes}))
    for read in (found.__getitem__, lambda name: found.rows(name, 0, 16)):
        with pytest.raises(ValueError, match=f"m: {words}"):
            read("a.weight")


def test_bits_that_no_words_fit(rng, tmp_path):
    kind = cases.compressed(rng)
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}
    folder = write_folder(tmp_path / "m", kind.tensors, {**kind.config, "config_groups": groups})
    with pytest.raises(
        ValueError, match=r"config_groups: expected .* 'a.weight_packed' .* got \[8"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_is_needed(rng, tmp_path, kind):
    """Without one of its tensors a weight is not silently something else."""
    optional = (".g_idx", ".weight_g_idx", "_bias", *(f".{note}" for note in HQQ_NOTES))
    checkpoint = KINDS[kind](rng)
    for name in checkpoint.tensors:
        if name.endswith((*optional, "zero_point")):
            continue
        rest = {key: array for key, array in checkpoint.tensors.items() if key != name}
        folder = write_folder(tmp_path / "m", rest, checkpoint.config)
        try:
            found = dict(load_checkpoint(folder))
        except ValueError as error:
            check_names(error, folder)
            continue
        # Where it was what tells a weight, the weight's other tensors are arrays.
        assert found.keys() & rest.keys() - set(checkpoint.values), name


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "a/x.safetensors", "/etc/passwd", "..", ".", "", "a\\x", "a\0b", "none"],
)
def test_index_stays_in_the_folder(tmp_path, name):
    folder = write_folder(tmp_path / "m", OTHERS, shards=2)
    write_file(tmp_path / "x.safetensors", OTHERS)
    write_index(folder, {"norm.weight": name})
    with pytest.raises(ValueError, match=r"index.json: weight_map: (expected names|there is no)"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (None, "expected a map"),
        (["a"], "expected a map"),
        ({"a": 3}, "expected a map"),
        ({"norm.weight": "model-1.safetensors"}, "has no tensor 'norm.weight'"),
        ({"other": "model-0.safetensors"}, "has no tensor 'other'"),
    ],
)
def test_damaged_index(tmp_path, weight_map, words):
    folder = write_folder(tmp_path / "m", OTHERS, shards=2)
    write_index(folder, weight_map)
    with pytest.raises(ValueError, match=f"index.json: weight_map: .*{words}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"3"])
def test_damaged_json(tmp_path, name, text):
    folder = write_folder(tmp_path / "m", OTHERS, {}, shards=2)
    (folder / name).write_bytes(text)
    with pytest.raises(ValueError, match=rf"{name}: (no JSON|expected a JSON object)"):
        load_checkpoint(folder)


def test_files(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no .safetensors file in this folder"):
        load_checkpoint(tmp_path)
    write_file(tmp_path / "a.safetensors", {"x": OTHERS["norm.weight"]})
    write_file(tmp_path / "b.safetensors", OTHERS)
    assert set(load_checkpoint(tmp_path)) == {"x", *OTHERS}
    write_file(tmp_path / "c.safetensors", {"x": OTHERS["norm.weight"]})
    with pytest.raises(ValueError, match=r"c.safetensors: tensor 'x': .*a.safetensors has it, too"):
        load_checkpoint(tmp_path)
    assert list(load_checkpoint(os.fsencode(tmp_path / "a.safetensors"))) == ["x"]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_fuzz(tmp_path, kind, seed):
    """Tensors of other types and shapes, and other values in the configuration."""
    rng = np.random.default_rng(seed)
    checkpoint = KINDS[kind](rng)
    tensors, config = dict(checkpoint.tensors), dict(checkpoint.config or {})
    junk = [None, 0, 1, 3, -1, 4, 64, 1 << 40, 1e400, "x", [], {}, {"a": 1}, True]
    for name in list(tensors):
        if rng.random() < 0.1:
            tensors[name] = bent(rng, tensors[name])
    for key in [*config, "bits", "group_size", "dynamic", "config_groups"]:
        if rng.random() < 0.1:
            config[key] = junk[rng.integers(len(junk))]
    folder = write_folder(tmp_path / "m", tensors, config)
    try:
        found = load_checkpoint(folder)
    except ValueError as error:
        check_names(error, folder)
        return
    for name in found:
        try:
            entry = found.describe(name)
            value = found[name]
        except ValueError as error:
            check_names(error, folder)
            continue
        if isinstance(value, nibblas.PackedWeight):
            assert value.shape == entry.shape
            assert_same_bits(found.rows(name, 0, value.shape[0]).dequantize(), value.dequantize())


def check_names(error: ValueError, folder: Path) -> None:
    """The error says which file is meant; else it is raised again, as a failure."""
    if not str(error).startswith(str(folder)):
        raise error


def bent(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """An array much like this one."""
    kind = rng.integers(5)
    if kind == 0:
        return array[1:] if array.ndim else np.zeros(3, array.dtype)
    if kind == 1:
        return array[np.newaxis]
    if kind == 2:
        return array.T
    if kind == 3:
        return np.zeros(array.shape, rng.choice([np.uint8, np.int64, np.float32]))
    data = rng.integers(0, 256, array.nbytes, np.uint8)
    return data.view(array.dtype).reshape(array.shape)
