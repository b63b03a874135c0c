# SPDX-License-Identifier: Apache-2.0
"""Build ggml from the source distribution of llama-cpp-python, for `nibblas bench --peers`.

    python bench/peers/build_ggml.py FOLDER [--avx2] [--jobs 2] [--source FILE]

Its instruction set is chosen when it is compiled: this machine's, or AVX2 with --avx2. Needs cmake
and a C++ compiler; the source is downloaded by pip unless it is given. Then

    NIBBLAS_GGML=FOLDER nibblas bench --peers ggml

Without that variable the library in an installed llama-cpp-python is used.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = "llama-cpp-python>=0.3.36"
BUILD_TOOLS = ("scikit-build-core", "setuptools")
AVX2 = ("AVX", "AVX2", "FMA", "F16C", "BMI2")


def download(folder: Path) -> Path:
    """The source distribution. pip asks its build backend for metadata, hence the tools."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "-q", *BUILD_TOOLS], check=True)
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    subprocess.run([*pip, "download", "-q", *options, REQUIREMENT], check=True)
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def options(avx2: bool) -> list[str]:
    """What CMake is told."""
    flags = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "GGML_NATIVE": "OFF" if avx2 else "ON",
        "GGML_BUILD_TESTS": "OFF",
        "GGML_BUILD_EXAMPLES": "OFF",
    }
    if avx2:
        flags |= {f"GGML_{name}": "ON" for name in AVX2}
        flags |= {"GGML_AVX512": "OFF", "GGML_AVX_VNNI": "OFF"}
    return [f"-D{name}={value}" for name, value in flags.items()]


def build(source: Path, folder: Path, avx2: bool, jobs: int) -> list[Path]:
    """The libraries, moved to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        ggml = next(Path(scratch).glob("*/vendor/llama.cpp/ggml"))
        (ggml / "ggml.pc.in").touch()  # CMake fills it in, the source distribution lacks it
        made = Path(scratch, "build")
        subprocess.run(["cmake", "-S", ggml, "-B", made, *options(avx2)], check=True)
        subprocess.run(["cmake", "--build", made, "-j", str(jobs)], check=True)
        found = []
        for library in made.rglob("libggml*.so*"):
            if library.is_file():  # links too: each becomes a file of its name
                target = folder / library.name
                target.write_bytes(library.read_bytes())
                found.append(target)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--avx2", action="store_true", help="no instruction above AVX2")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--source", type=Path, help="llama_cpp_python-*.tar.gz")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = arguments.source or download(Path(scratch))
        for library in build(source, arguments.folder, arguments.avx2, arguments.jobs):
            print(library)


if __name__ == "__main__":
    main()
