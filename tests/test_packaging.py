# SPDX-License-Identifier: Apache-2.0
"""The distribution: one version everywhere, NumPy alone at run time, a small typed package."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import nibblas
import nibblas._nibblas as native

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = Path(nibblas.__file__).parent
WHEEL_LIMIT = 2_200_000


def distribution() -> importlib.metadata.Distribution:
    """What pip installed; a plain CMake build (the sanitizer presets) has none."""
    try:
        return importlib.metadata.distribution("nibblas")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed by pip")


def test_one_version():
    changes = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert PROJECT["version"] == nibblas.__version__ == native.build_info()["version"]
    assert changes[0] == PROJECT["version"], "the newest entry of CHANGELOG.md is another version"
    assert distribution().version == PROJECT["version"]


def test_numpy_is_the_only_runtime_dependency():
    requirements = [Requirement(text) for text in distribution().requires or ()]
    assert [r.name for r in requirements if "extra" not in str(r.marker)] == ["numpy"]
    assert importlib.metadata.version("numpy") in requirements[0].specifier


def test_licence_and_metadata():
    metadata = distribution().metadata
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_package_is_typed():
    names = {path.name for path in INSTALLED.iterdir()}
    assert {"py.typed", "_nibblas.pyi"} <= names
    assert Path(native.__file__).name.startswith("_nibblas")
    assert Path(native.__file__).parent == INSTALLED


def test_every_file_is_installed():
    in_source = {
        path.relative_to(ROOT / "python" / "nibblas")
        for path in (ROOT / "python" / "nibblas").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    missing = [path for path in in_source if not (INSTALLED / path).is_file()]
    assert not missing


def test_wheel_is_small():
    build = native.build_info()
    if build["build_type"] != "Release" or build.get("sanitizers"):
        pytest.skip("only a release build is stripped")
    files = [path for path in INSTALLED.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    compressed = sum(len(zlib.compress(path.read_bytes(), 6)) for path in files)
    assert compressed <= WHEEL_LIMIT


@pytest.mark.parametrize("version", ["LAYOUT_VERSION", "CONTRACT_VERSION"])
def test_versions_of_formats_are_integers(version):
    assert getattr(native, version) >= 1


def test_every_public_name_is_documented_in_place():
    assert nibblas.__all__ == sorted(set(nibblas.__all__))
    for name in nibblas.__all__:
        value = getattr(nibblas, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), f"nibblas.{name} has no docstring"


def test_command_line_starts():
    commands = [[sys.executable, "-m", "nibblas"]]
    if not os.environ.get("NIBBLAS_EMULATED_CPU"):  # its interpreter has no scripts beside it
        commands.append([str(script())])
    for command in commands:
        done = subprocess.run([*command, "info", "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert nibblas.__version__ in json.dumps(json.loads(done.stdout))


def script() -> Path:
    distribution()
    return Path(sys.executable).parent / "nibblas"


def test_numpy_of_this_run_is_supported():
    major, minor = (int(part) for part in np.__version__.split(".")[:2])
    assert (major, minor) >= (1, 26)
