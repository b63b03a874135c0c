# SPDX-License-Identifier: Apache-2.0
"""Files and results of earlier builds: the committed bits are still what comes out.

Each folder of tests/golden was written by tools/make_golden.py for one format and contract version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import nibblas
from nibblas import _nibblas
from nibblas.io import packed

from .cases import assert_same_bits

FOLDERS = sorted(path for path in (Path(__file__).parent / "golden").iterdir() if path.is_dir())


class Golden(NamedTuple):
    folder: Path
    manifest: dict[str, Any]
    weights: dict[str, nibblas.PackedWeight]
    values: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = request.param
    return Golden(
        folder,
        json.loads((folder / "manifest.json").read_text(encoding="utf-8")),
        nibblas.load(folder / "weights.safetensors"),
        nibblas.load(folder / "values.safetensors"),
    )


def test_there_is_a_folder_of_the_current_versions():
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in FOLDERS]
    current = {
        "format_version": packed.FORMAT_VERSION,
        "layout_version": _nibblas.LAYOUT_VERSION,
        "contract_version": _nibblas.CONTRACT_VERSION,
    }
    assert any(current.items() <= manifest.items() for manifest in manifests)


def test_linear_gives_the_committed_bits(golden, target):
    if golden.manifest["contract_version"] != _nibblas.CONTRACT_VERSION:
        pytest.skip("results of another contract version")
    names = [name for name in golden.values if name.startswith("linear.")]
    assert len(names) == 2 * len(golden.weights)
    for name in names:
        _, weight, compute, activation = name.split(".")
        for threads in (1, 2):
            y = nibblas.linear(
                golden.values["x"],
                golden.weights[weight],
                golden.values["bias"],
                compute=compute,
                activation=activation,
                num_threads=threads,
            )
            assert_same_bits(y, golden.values[name], (name, threads))


def test_dequantize_gives_the_committed_bits(golden, target):
    for name, w in golden.weights.items():
        assert_same_bits(w.dequantize(), golden.values[f"dequantize.{name}"], name)


def test_activations_give_the_committed_bits(golden, target):
    if golden.manifest["contract_version"] != _nibblas.CONTRACT_VERSION:
        pytest.skip("results of another contract version")
    names = [name for name in golden.values if name.startswith("activation.")]
    assert names
    for name in names:
        y = _nibblas.activate(golden.values["activation"], name.split(".")[1])
        assert_same_bits(y, golden.values[name], name)


def test_quantize_gives_the_committed_planes(golden, target):
    if golden.manifest["contract_version"] != _nibblas.CONTRACT_VERSION:
        pytest.skip("results of another contract version")
    for name, arguments in golden.manifest["quantized"].items():
        w = nibblas.quantize(golden.values["weight"], **arguments)
        expected = golden.weights[name].planes
        assert w.planes.keys() == expected.keys()
        for plane, array in expected.items():
            assert_same_bits(w.planes[plane], array, (name, plane))


def test_a_file_written_again_is_the_same_file(golden, tmp_path):
    if golden.manifest["format_version"] != packed.FORMAT_VERSION:
        pytest.skip("a file of another format version")
    for name, content in (("weights", golden.weights), ("values", golden.values)):
        again = tmp_path / f"{name}.safetensors"
        nibblas.save(again, content)
        assert again.read_bytes() == (golden.folder / again.name).read_bytes()


@pytest.mark.parametrize("field", ["format_version", "layout_version"])
def test_a_newer_file_is_refused(golden, tmp_path, field):
    data = (golden.folder / "weights.safetensors").read_bytes()
    now = f'\\"{field}\\":{golden.manifest[field]}'.encode()
    spaced = now.replace(b":", b": ")
    found = now if now in data else spaced
    assert data.count(found) == 1
    newer = found[:-1] + str(golden.manifest[field] + 1).encode()
    path = tmp_path / "newer.safetensors"
    path.write_bytes(data.replace(found, newer))
    with pytest.raises(ValueError, match=rf"newer\.safetensors.*{field}"):
        nibblas.load(path)
