# SPDX-License-Identifier: Apache-2.0
"""Files and results of earlier builds are those of this one (see tools/make_golden.py).

Each folder of tests/golden was written once, by some version, and is not changed afterwards. Run on
any CPU or emulator, these tests show that weights travel: what was packed elsewhere gives the
committed bits here, in every operation on every target, and packing gives the committed bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nibblas
from nibblas import _nibblas, numerics
from nibblas.io.packed import FORMAT_VERSION
from nibblas.schemes import LAYOUT_VERSION, SCHEMES

from .cases import INTEGER_SCHEMES, assert_same_bits

ROOT = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent for path in ROOT.glob("*/manifest.json"))
MOST_BYTES = 500_000  # of all folders together: they are in every clone and sdist for ever

pytestmark = pytest.mark.emulated  # these bits are pinned: every CPU has to give them

every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def tensors_of(folder: Path) -> dict[str, Any]:
    return nibblas.load(folder / manifest_of(folder)["file"])


def weights_of(folder: Path) -> list[tuple[str, dict[str, Any], nibblas.PackedWeight]]:
    tensors = tensors_of(folder)
    return [(name, how, tensors[name]) for name, how in manifest_of(folder)["weights"].items()]


def needs_same_contract(folder: Path) -> None:
    version = manifest_of(folder)["contract_version"]
    if version != _nibblas.CONTRACT_VERSION:
        pytest.skip(f"results of contract version {version}; the file itself still has to load")


def test_there_are_golden_files_of_this_version():
    assert FOLDERS
    versions = [
        (m["format_version"], m["layout_version"], m["contract_version"])
        for m in map(manifest_of, FOLDERS)
    ]
    assert (FORMAT_VERSION, LAYOUT_VERSION, _nibblas.CONTRACT_VERSION) in versions
    assert (1, 1, 1) in versions
    assert numerics.CONTRACT_VERSION == _nibblas.CONTRACT_VERSION
    assert _nibblas.LAYOUT_VERSION == LAYOUT_VERSION
    weights = [how for f in FOLDERS for how in manifest_of(f)["weights"].values()]
    seen = {how["quantize"]["scheme"] for how in weights}
    assert seen == set(SCHEMES), "tools/make_golden.py --schemes makes a folder for a new scheme"


def test_golden_files_are_small():
    assert sum(p.stat().st_size for p in ROOT.rglob("*") if p.is_file()) < MOST_BYTES


@every_folder
def test_files_are_as_committed(folder):
    """The checksum tells a changed golden file from a changed result."""
    manifest = manifest_of(folder)
    found = hashlib.sha256((folder / manifest["file"]).read_bytes()).hexdigest()
    assert found == manifest["file_sha256"]


@every_folder
def test_quantizing_gives_the_file_again(folder, target, tmp_path):
    manifest, tensors = manifest_of(folder), tensors_of(folder)
    again = dict(tensors)
    for name, how, w in weights_of(folder):
        made = nibblas.quantize(tensors["dense"], **how["quantize"])
        assert made.planes.keys() == w.planes.keys()
        if manifest["contract_version"] == _nibblas.CONTRACT_VERSION:
            for plane, values in w.planes.items():
                assert_same_bits(made.planes[plane], values, (name, plane))
            again[name] = made
        packed = nibblas.pack(**w.unpack())
        for plane, values in w.planes.items():
            assert_same_bits(packed.planes[plane], values, (name, plane))
        if how["quantize"]["group_size"] is None:  # by turns, so that both are written
            again[name] = packed
    nibblas.save(tmp_path / "again", {name: again[name] for name in manifest["tensors"]})
    if (manifest["format_version"], manifest["layout_version"]) == (FORMAT_VERSION, LAYOUT_VERSION):
        committed = (folder / manifest["file"]).read_bytes()
        assert (tmp_path / "again").read_bytes() == committed


@every_folder
def test_planes_are_the_written_layout(folder):
    for name, _, w in weights_of(folder):
        scheme, parts = SCHEMES[w.scheme], w._raw_parts()
        planes = numerics.pack_planes(
            parts["codes"], scheme.bits, w.group_size, two_level=scheme.two_level
        )
        for plane, same in zip(scheme.code_planes, planes, strict=True):
            assert_same_bits(w.planes[plane], same, name)


@every_folder
def test_outputs(folder, target):
    needs_same_contract(folder)
    tensors = tensors_of(folder)
    x = tensors["x"]
    for name, how, w in weights_of(folder):
        bias = tensors["bias"] if how["bias"] else None
        for compute in ("int8", "float32"):
            expected = tensors[f"{name}/{compute}"]
            y = nibblas.linear(x, w, bias, compute=compute, activation=how["activation"])
            assert_same_bits(y, expected, (name, compute))
            for row in range(len(x)):
                y = nibblas.linear(x[row], w, bias, compute=compute, activation=how["activation"])
                assert_same_bits(y, expected[row], (name, compute, row))
        half = nibblas.linear(x, w, bias, activation=how["activation"], dtype="float16")
        assert_same_bits(half, tensors[f"{name}/float16"], name)


@every_folder
def test_outputs_of_the_reference(folder):
    """The contract in NumPy is the same, too: results cannot move both at once unseen."""
    needs_same_contract(folder)
    tensors = tensors_of(folder)
    for name, how, w in weights_of(folder):
        bias = tensors["bias"] if how["bias"] else None
        for compute in ("int8", "float32"):
            y = numerics.linear(tensors["x"], w._raw_parts(), bias, compute, how["activation"])
            assert_same_bits(y, tensors[f"{name}/{compute}"], (name, compute))


@every_folder
def test_dequantize(folder, target):
    needs_same_contract(folder)
    for name, how, w in weights_of(folder):
        found = hashlib.sha256(w.dequantize().tobytes()).hexdigest()
        assert found == how["dequantized_sha256"], name


@every_folder
def test_take(folder, target):
    """Rows in any order, each again as `dequantize` gives it; all of them have its checksum."""
    needs_same_contract(folder)
    for name, how, w in weights_of(folder):
        dense = w.take(np.arange(w.shape[0]))
        assert hashlib.sha256(dense.tobytes()).hexdigest() == how["dequantized_sha256"], name
        indices = np.array([w.shape[0] - 1, 3, 0, 3, 16])
        assert_same_bits(w.take(indices), dense[indices], name)


@every_folder
def test_activations(folder, target):
    needs_same_contract(folder)
    tensors = tensors_of(folder)
    for group in manifest_of(folder)["groups"]:
        key = "channel" if group is None else f"g{group}"
        codes, scales = nibblas.quantize_activations(tensors["x"], group)
        assert_same_bits(codes, tensors[f"activation-codes/{key}"], key)
        assert_same_bits(scales, tensors[f"activation-scales/{key}"], key)
    functions = [name for name in tensors if name.startswith("activation/")]
    assert functions
    for name in functions:
        found = _nibblas.activate(tensors["z"], name.removeprefix("activation/"))
        assert_same_bits(found, tensors[name], name)


# --- matmul_integer, exact and so of no version


INTEGERS = sorted(ROOT.glob("*/integers.json"))


@pytest.mark.parametrize("path", INTEGERS, ids=lambda path: path.parent.name)
def test_integer_products(path, target, tmp_path):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    content = (path.parent / manifest["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest["file_sha256"]
    tensors = nibblas.load(path.parent / manifest["file"])
    assert list(manifest["weights"]) == [
        name for name in manifest["tensors"] if isinstance(tensors[name], nibblas.PackedWeight)
    ]
    compared = 0
    for key in (key for key in manifest["tensors"] if key.startswith(("c/", "packed/"))):
        kind, a, b, *zeros = key.split("/")
        packed = kind == "packed"
        operand = tensors[b if packed else f"b/{b}"]
        zero_points = [tensors[f"a_zero/{a}"]] if zeros else []
        if zeros and not packed:
            zero_points.append(tensors[f"b_zero/{b}"])
        c = nibblas.matmul_integer(tensors[f"a/{a}"], operand, *zero_points)
        assert_same_bits(c, tensors[key], key)
        for row in (0, 2):
            of_row = [zero_points[0][row], *zero_points[1:]] if zeros else []
            c = nibblas.matmul_integer(tensors[f"a/{a}"][row], operand, *of_row)
            assert_same_bits(c, tensors[key][row], (key, row))
        compared += 1
    assert compared == 8 + 4 * len(manifest["weights"])
    if (manifest["format_version"], manifest["layout_version"]) == (FORMAT_VERSION, LAYOUT_VERSION):
        again = {name: tensors[name] for name in manifest["tensors"]}
        again |= {name: nibblas.pack(**tensors[name].unpack()) for name in manifest["weights"]}
        nibblas.save(tmp_path / "again", again)
        assert (tmp_path / "again").read_bytes() == content


def test_integer_products_are_of_every_scheme():
    assert INTEGERS
    weights = {name for path in INTEGERS for name in json.loads(path.read_text())["weights"]}
    assert weights == set(INTEGER_SCHEMES), "tools/make_golden.py --integers makes a folder"


@pytest.mark.parametrize("field", ["format_version", "layout_version"])
@every_folder
def test_a_newer_file_is_refused(folder, field, tmp_path):
    manifest = manifest_of(folder)
    content = (folder / manifest["file"]).read_bytes()
    path = tmp_path / "newer.safetensors"

    def with_version(version: int) -> Path:
        old = rf"\"{field}\":{manifest[field]}".encode()  # JSON inside of a JSON string
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, rf"\"{field}\":{version}".encode()))
        return path

    nibblas.load(with_version(manifest[field]))
    with pytest.raises(ValueError, match=rf"{field} is 9, .* a newer nibblas"):
        nibblas.load(with_version(9))
    with pytest.raises(ValueError, match=rf"{field}: expected"):
        nibblas.load(with_version(0))


# --- the tool


@pytest.fixture(scope="module")
def make_golden() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@every_folder
def test_the_tool_makes_the_same_file_again(folder, make_golden, tmp_path, capsys):
    manifest = manifest_of(folder)
    ours = (FORMAT_VERSION, LAYOUT_VERSION, _nibblas.CONTRACT_VERSION)
    versions = ("format_version", "layout_version", "contract_version")
    if tuple(manifest[v] for v in versions) != ours:
        pytest.skip("made by an older version, which this one cannot be asked for")
    names = dict.fromkeys(how["quantize"]["scheme"] for how in manifest["weights"].values())
    assert make_golden.main([str(tmp_path / "new"), "--schemes", ",".join(names)]) == 0
    assert "bytes" in capsys.readouterr().out
    assert manifest_of(tmp_path / "new") == manifest


def test_the_tool_overwrites_nothing_unasked(make_golden, tmp_path, capsys):
    folder = tmp_path / "golden"
    assert make_golden.main([str(folder), "--schemes", "int8"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 2
    assert make_golden.main([str(folder), "--schemes", "int4"]) == 1
    assert "--force" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert make_golden.main([str(folder), "--schemes", "int4", "--force"]) == 0
    assert manifest_of(folder)["weights"].keys() != json.loads(before["manifest.json"])["weights"]
    assert all("int4" in name for name in manifest_of(folder)["weights"])
