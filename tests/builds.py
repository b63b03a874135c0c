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
# Set by tools/emulate/cpu.py. A compiler that is found there is the host's, for another CPU.
EMULATED = bool(os.environ.get("NIBBLAS_EMULATED_CPU"))
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or ""
COMPILER = "" if EMULATED else COMPILER

# Build directories of CMake, separated by colons: release, sanitizers, another compiler.
BUILDS = [Path(path) for path in os.environ.get("NIBBLAS_BUILDS", "").split(":") if path]


def this_arch() -> str:
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def target_of(path: Path) -> str:
    """NAME of NAME.cpp and NAME_*.cpp: neon_dotprod.cpp is not neon's."""
    names = [n for n in TARGETS["targets"] if path.stem == n or path.stem.startswith(f"{n}_")]
    return max(names, key=len, default="")


def target_sources() -> list[tuple[str, Path]]:
    """(target, file) for every file of csrc/targets that this architecture compiles."""
    files = [(target_of(path), path) for path in sorted((CSRC / "targets").glob("*.cpp"))]
    archs = {name: target["arch"] for name, target in TARGETS["targets"].items()}
    return [(name, path) for name, path in files if archs.get(name) in ("any", this_arch())]


def arch_of(build: Path) -> str:
    cache = (build / "CMakeCache.txt").read_text()
    return "x86_64" if "NIBBLAS_COMPILES_X86_64:INTERNAL=1" in cache else "aarch64"


def run(*command: object) -> str:
    words = [str(part) for part in command]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
