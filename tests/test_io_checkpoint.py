# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Hugging Face: each method, in one file and in several, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import nibblas
from nibblas.io import (
    awq,
    bitsandbytes,
    compressed_tensors,
    gptq,
    hqq,
    load_checkpoint,
    mxfp4,
    nvfp4,
)
from nibblas.schemes import NF4

from .cases import same_planes

COLS, DEPTH = 80, 256
MODULE = "model.layers.0.mlp.up_proj"
NORM = np.linspace(0, 1, 7, dtype=np.float32)


def words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape, np.int32)


def halves(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float16)


def gptq_case(rng, config):
    arrays = {
        "qweight": words(rng, DEPTH // 8, COLS),
        "qzeros": words(rng, 2, COLS // 8),
        "scales": halves(rng, 2, COLS),
        "g_idx": rng.permutation(np.arange(DEPTH) // 128).astype(np.int32),
    }
    w = gptq.from_arrays(
        **arrays, bits=4, checkpoint_format=config.get("checkpoint_format", "gptq")
    )
    return {f".{name}": array for name, array in arrays.items()}, w


def symmetric_case(rng, config):
    arrays = {
        "qweight": words(rng, DEPTH // 8, COLS),
        "qzeros": np.full((2, COLS // 8), 0x77777777, np.int32),
        "scales": halves(rng, 2, COLS),
    }
    w = gptq.from_arrays(**arrays, bits=4, checkpoint_format="gptq")
    assert "zero_points" not in w.planes
    return {f".{name}": array for name, array in arrays.items()}, w


def three_bits_case(rng, config):
    arrays = {
        "qweight": words(rng, DEPTH // 32 * 3, COLS),
        "qzeros": words(rng, 2, -(-COLS * 3 // 32)),
        "scales": halves(rng, 2, COLS),
    }
    w = gptq.from_arrays(**arrays, bits=3, checkpoint_format="gptq")
    return {f".{name}": array for name, array in arrays.items()}, w


def awq_case(rng, config):
    arrays = {
        "qweight": words(rng, DEPTH, COLS // 8),
        "qzeros": words(rng, 2, COLS // 8),
        "scales": halves(rng, 2, COLS),
    }
    return {f".{name}": array for name, array in arrays.items()}, awq.from_arrays(**arrays)


def bitsandbytes_case(rng, config):
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [COLS, DEPTH], "dtype": "float16"}
    arrays = {
        ".weight": rng.integers(0, 256, (COLS * DEPTH // 2, 1), np.uint8),
        ".weight.absmax": rng.random(COLS * DEPTH // 64, np.float32),
        ".weight.quant_map": np.array(NF4, np.float32),
        ".weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), "u1"),
    }
    tensors = {f"m{name}": array for name, array in arrays.items()}
    return arrays, bitsandbytes.from_state_dict(tensors, "m")


def pack_quantized_case(rng, config):
    arrays = {
        "weight_packed": words(rng, COLS, DEPTH // 8),
        "weight_scale": halves(rng, COLS, 2),
        "weight_zero_point": words(rng, COLS // 8, 2),
    }
    w = compressed_tensors.from_arrays(**arrays, weight_shape=(COLS, DEPTH), bits=4)
    arrays["weight_shape"] = np.array([COLS, DEPTH])
    return {f".{name}": array for name, array in arrays.items()}, w


def nvfp4_arrays(rng):
    return (
        rng.integers(0, 256, (COLS, DEPTH // 2), np.uint8),
        rng.integers(0, 120, (COLS, DEPTH // 16), np.uint8),
        np.array([0.25], np.float32),
    )


def nvfp4_case(rng, config):
    arrays = nvfp4_arrays(rng)
    names = (".weight_packed", ".weight_scale", ".weight_global_scale")
    return dict(zip(names, arrays, strict=True)), nvfp4.from_arrays(*arrays, convention="divide")


def modelopt_case(rng, config):
    arrays = nvfp4_arrays(rng)
    names = (".weight", ".weight_scale", ".weight_scale_2")
    return dict(zip(names, arrays, strict=True)), nvfp4.from_arrays(*arrays, convention="multiply")


def hqq_case(rng, config):
    arrays = {
        "W_q": rng.integers(0, 256, (COLS * 2, DEPTH // 4), np.uint8),
        "scale": halves(rng, COLS * 4, 1),
        "zero": halves(rng, COLS * 4, 1),
    }
    w = hqq.from_arrays(**arrays, bits=4, shape=(COLS, DEPTH), group_size=64)
    arrays["shape"] = np.array([COLS, DEPTH])
    return {f".{name}": array for name, array in arrays.items()}, w


HQQ = {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}}
FOUR_BITS = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gptq": (gptq_case, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "gptq_v2": (
        gptq_case,
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2", "group_size": 128},
    ),
    "gptq symmetric": (symmetric_case, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "gptq 3 bits": (three_bits_case, {"quant_method": "gptq", "bits": 3, "group_size": 128}),
    "awq": (awq_case, {"quant_method": "awq", "bits": 4, "version": "gemm"}),
    "bitsandbytes": (bitsandbytes_case, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "pack-quantized": (
        pack_quantized_case,
        {"quant_method": "compressed-tensors", "format": "pack-quantized", **FOUR_BITS},
    ),
    "nvfp4": (
        nvfp4_case,
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    ),
    "modelopt": (modelopt_case, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "hqq": (hqq_case, {"quant_method": "hqq", **HQQ}),
}
cases = pytest.mark.parametrize("case", CASES)


def write_checkpoint(
    folder: Path, tensors: dict[str, np.ndarray], config: Any, files: int = 1
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {}
    for i in range(files):
        name = f"model-{i}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[i::files]}
        save_file(part, folder / name)
        where.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make(case: str, rng, folder: Path, files: int = 1) -> nibblas.PackedWeight:
    function, config = CASES[case]
    arrays, expected = function(rng, config)
    tensors = {MODULE + name: array for name, array in arrays.items()}
    write_checkpoint(folder, {**tensors, "model.norm.weight": NORM}, config, files)
    return expected


@cases
@pytest.mark.parametrize("files", [1, 3])
def test_weights_are_those_of_the_importer(case, files, rng, tmp_path):
    expected = make(case, rng, tmp_path, files)
    source = load_checkpoint(tmp_path)
    name = f"{MODULE}.weight"
    assert set(source) == {name, "model.norm.weight"}
    assert len(source) == 2
    w = source[name]
    with np.errstate(invalid="ignore"):
        assert np.array_equal(w.dequantize(), expected.dequantize(), equal_nan=True)
    assert w.nbytes >= expected.nbytes
    assert np.array_equal(source["model.norm.weight"], NORM)
    entry = source.describe(name)
    assert (entry.kind, entry.shape) == ("weight", (COLS, DEPTH))
    assert source.describe("model.norm.weight").kind == "array"
    assert source.metadata["quantization_config"] == CASES[case][1]
    with pytest.raises(KeyError):
        source[f"{MODULE}.qweight"]


@cases
def test_rows_make_up_the_weight(case, rng, tmp_path):
    make(case, rng, tmp_path)
    source = load_checkpoint(tmp_path)
    name = f"{MODULE}.weight"
    whole = source[name]
    for step in (16, 32, 48):
        pieces = [source.rows(name, i, min(i + step, COLS)) for i in range(0, COLS, step)]
        for plane, values in whole.planes.items():
            parts = [piece.planes[plane] for piece in pieces]
            same = parts[0] if values.ndim == 1 else np.concatenate(parts)
            assert same.tobytes() == values.tobytes(), (plane, step)
        assert {(p.scheme, p.group_size, p._zero) for p in pieces} == {
            (whole.scheme, whole.group_size, whole._zero)
        }
    with pytest.raises(ValueError, match="multiple of 16"):
        source.rows(name, 8, 16)


@cases
def test_one_file_with_its_configuration_beside_it(case, rng, tmp_path):
    make(case, rng, tmp_path)
    source = load_checkpoint(tmp_path / "model.safetensors")
    assert same_planes(source[f"{MODULE}.weight"], load_checkpoint(tmp_path)[f"{MODULE}.weight"])
    (tmp_path / "config.json").unlink()
    assert f"{MODULE}.weight" not in load_checkpoint(tmp_path) or case in (
        "bitsandbytes",
        "modelopt",
    )


def test_experts_of_mxfp4(rng, tmp_path):
    blocks = rng.integers(0, 256, (3, 32, 4, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 32, 4), np.uint8)
    tensors = {"experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
    write_checkpoint(tmp_path, tensors, {"quant_method": "mxfp4"})
    source = load_checkpoint(tmp_path)
    assert list(source) == ["experts.gate_up_proj"]
    assert source.describe("experts.gate_up_proj").shape == (3, 32, 128)
    found = source["experts.gate_up_proj"]
    for w, expected in zip(found, mxfp4.from_arrays(blocks, scales), strict=True):
        assert same_planes(w, expected)


def test_without_quantization_all_are_arrays(tmp_path):
    write_checkpoint(tmp_path, {"a.qweight": NORM}, None)
    source = load_checkpoint(tmp_path)
    assert list(source) == ["a.qweight"]


@pytest.mark.parametrize(
    ("config", "words_of_message"),
    [
        ([], "expected an object, got list"),
        ({}, "quant_method: expected a string, got None"),
        ({"quant_method": "fp8"}, "quant_method: expected gptq, awq.*got 'fp8'"),
        ({"quant_method": "gptq"}, "bits: expected a size, got None"),
        ({"quant_method": "gptq", "bits": "4"}, "bits: expected a size, got '4'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": 2}, "expected a string, got 2"),
        ({"quant_method": "awq", "version": "gemv"}, 'version: only "gemm"'),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "load_in_8bit"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "format: expected"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "quant_algo: only NVFP4"),
    ],
)
def test_refused_configurations(config, words_of_message, rng, tmp_path):
    tensors = {f"a.{name}": words(rng, 8, 8) for name in ("qweight", "qzeros", "scales")}
    write_checkpoint(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=f"quantization_config: .*{words_of_message}"):
        load_checkpoint(tmp_path)


def test_missing_parts_and_wrong_shapes_name_the_tensor(rng, tmp_path):
    make("gptq", rng, tmp_path)
    config = CASES["gptq"][1]
    tensors = {f"{MODULE}.qweight": words(rng, 8, 8)}
    write_checkpoint(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=f"{MODULE}.qweight' has no '{MODULE}.qzeros'"):
        load_checkpoint(tmp_path)
    tensors |= {f"{MODULE}.qzeros": words(rng, 1, 2), f"{MODULE}.scales": halves(rng, 1, 8)}
    write_checkpoint(tmp_path, tensors, config)
    source = load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: tensor '{MODULE}.weight': .*qzeros"):
        source[f"{MODULE}.weight"]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"]
)
def test_an_index_cannot_lead_out_of_the_folder(name, tmp_path):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is no name of a file in the folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, '{"weight_map": 3}', "{}"])
def test_damaged_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        load_checkpoint(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        load_checkpoint(tmp_path)
    index = {"weight_map": {"a": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="there is no file"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.safetensors")


def test_one_tensor_in_two_files(tmp_path):
    for name in ("a", "b"):
        save_file({"x": NORM}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors: tensor 'x': .*a\.safetensors has it"):
        load_checkpoint(tmp_path)
