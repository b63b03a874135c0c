# SPDX-License-Identifier: Apache-2.0
"""The compiler, its flags for each target, and the builds whose objects are looked at."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
TARGETS = json.loads((ROOT / "cmake" / "targets.json").read_text())
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or ""

# Build directories of CMake, separated by colons: release, sanitizers, another compiler.
BUILDS = [Path(path) for path in os.environ.get("NIBBLAS_BUILDS", "").split(":") if path]


def this_arch() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def target_sources() -> list[tuple[str, Path]]:
    """(target, file) for every file of csrc/targets that this architecture compiles."""
    found = []
    for name, target in TARGETS["targets"].items():
        if target["arch"] in ("any", this_arch()):
            for pattern in (f"{name}.cpp", f"{name}_*.cpp"):
                found += [(name, path) for path in sorted((CSRC / "targets").glob(pattern))]
    return found


def run(*command: object) -> str:
    words = [str(part) for part in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
