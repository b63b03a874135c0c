# SPDX-License-Identifier: Apache-2.0
"""Cross-build the wheel for aarch64 and install it into the Python of aarch64_python.py.

    python tools/emulate/aarch64_wheel.py FOLDER

FOLDER/dist gets nibblas-*-linux_aarch64.whl, FOLDER/site the package. Needs g++-aarch64-linux-gnu;
build tools come from this interpreter's environment if they are there (then only what changed is
compiled again), else from PyPI.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import aarch64_python

HERE = Path(__file__).resolve().parent
BUILD_TOOLS = ("scikit_build_core", "pybind11", "cmake", "ninja")


def make(folder: Path) -> Path:
    """Build and install the wheel; give its path."""
    suffix = f".cpython-3{aarch64_python.MINOR}-aarch64-linux-gnu.so"
    headers = folder / f"sys/usr/include/python3.{aarch64_python.MINOR}"
    defines = {
        "CMAKE_TOOLCHAIN_FILE": HERE / "aarch64.cmake",
        "Python_INCLUDE_DIR": headers,
        "PYTHON_MODULE_EXTENSION": suffix,
    }
    environment = {
        **os.environ,
        "NIBBLAS_AARCH64_SYSROOT": str(folder / "sys"),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",  # scikit-build-core names the wheel after it
        "SETUPTOOLS_EXT_SUFFIX": suffix,
    }
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
    if all(importlib.util.find_spec(name) for name in BUILD_TOOLS):
        command += ["--no-build-isolation"]
        paths = (Path(sys.executable).parent, environment["PATH"])
        environment["PATH"] = os.pathsep.join(map(str, paths))
    for wheel in folder.glob("dist/nibblas-*.whl"):
        wheel.unlink()
    subprocess.run(
        [
            *(*command, "--no-deps", "-w", folder / "dist", f"-Cbuild-dir={folder / 'build'}"),
            *(f"-Ccmake.define.{name}={value}" for name, value in defines.items()),
            HERE.parents[1],
        ],
        check=True,
        env=environment,
    )
    (wheel,) = folder.glob("dist/nibblas-*-linux_aarch64.whl")
    aarch64_python.install(folder, wheel, dependencies=False)
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder.resolve())


if __name__ == "__main__":
    main()
