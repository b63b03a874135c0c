# SPDX-License-Identifier: Apache-2.0
"""Make an aarch64 Python with the packages that the tests want, for qemu's user mode.

    python tools/emulate/aarch64_python.py FOLDER [--packages few|all]

FOLDER gets `sys`, a sysroot with Debian's Python of this interpreter's version, its headers and
libraries, and `site`, wheels for it (numpy, pytest, ...). FOLDER/sys/usr/bin/python then runs like
any other interpreter, and so do the processes that it starts through sys.executable:

    QEMU_CPU=cortex-a53 FOLDER/sys/usr/bin/python -c 'import platform; print(platform.machine())'

Needs Debian's apt-get and dpkg (as any user: apt gets settings and lists of its own in FOLDER, the
system's stay as they are) and qemu-aarch64-static. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

MINOR = sys.version_info[1]
DEBIAN_PACKAGES = (f"python3.{MINOR}", f"libpython3.{MINOR}-dev", "libstdc++6", "libgomp1")
GLIBC = 36  # of Debian 12, the oldest Debian with a Python 3.11: wheels for older ones run, too

# The first ones suffice for what CI runs on emulated CPUs; tests that want others are skipped.
# (onnxruntime's import ends with a segmentation fault under qemu 7.2.)
PACKAGES = {
    "few": ("numpy", "pytest", "hypothesis", "ml_dtypes", "safetensors"),
    "all": (
        *("gguf", "matplotlib", "onnx", "packaging", "pybind11"),
        *("pytest-benchmark", "scipy", "threadpoolctl", "tokenizers"),
    ),
}

# argv[0] is this script, so sys.executable is, too: a child process gets the emulator as well.
COMMAND = f"""#!/bin/sh
# Written by tools/emulate/aarch64_python.py.
here=$(dirname "$(readlink -f "$0")")
exec qemu-aarch64-static -L "$here/../.." -0 "$here/python" "$here/python3.{MINOR}" "$@"
"""


def command(folder: Path) -> Path:
    """The interpreter, to be run like a native one; the variable QEMU_CPU chooses the CPU."""
    return folder / "sys/usr/bin/python"


def make(folder: Path, packages: str = "all") -> None:
    """Make what is missing in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sys").exists():
        make_sysroot(folder)
    wanted = PACKAGES["few"] + (PACKAGES["all"] if packages == "all" else ())
    there = {path.name.partition("-")[0].lower() for path in folder.glob("site/*.dist-info")}
    missing = [name for name in wanted if name.replace("-", "_").lower() not in there]
    if missing:
        install(folder, *missing)


def make_sysroot(folder: Path) -> None:
    """Unpack Debian's packages for arm64, with all that they depend on, into folder/sys."""
    apt, made = folder / "apt", folder / "sys.new"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("")  # nothing is installed: every dependency gets downloaded
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    # A source without packages for arm64 may be among the system's: what counts is the download.
    subprocess.run(["apt-get", *options, "-qq", "update"], check=False)
    subprocess.run(
        ["apt-get", *options, "-qq", "-y", "--download-only", "install", *DEBIAN_PACKAGES],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    archives = sorted((apt / "archives").glob("*.deb"))
    shutil.rmtree(made, ignore_errors=True)
    for archive in archives:
        subprocess.run(["dpkg", "-x", archive, made], check=True)
    written = command(folder).name
    (made / "usr/bin" / written).write_text(COMMAND)
    (made / "usr/bin" / written).chmod(0o755)
    # Debian's Python looks there for packages; a path in a .pth file counts from the file's folder.
    (made / "usr/lib/python3/dist-packages/site.pth").write_text("../../../../../site\n")
    made.rename(folder / "sys")
    shutil.rmtree(apt)
    print(f"{folder / 'sys'}: {len(archives)} packages of Debian")


def install(folder: Path, *requirements: str | Path, dependencies: bool = True) -> None:
    """Install wheels for aarch64 into folder/site."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC, 16, -1)]
    tags += ["manylinux2014_aarch64", "linux_aarch64"]
    abis = (f"cp3{MINOR}", "abi3", "none")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("--target", folder / "site", "--upgrade", "--only-binary=:all:"),
            *("--python-version", f"3.{MINOR}", "--implementation", "cp"),
            *(f"--platform={tag}" for tag in tags),
            *(f"--abi={abi}" for abi in abis),
            *(() if dependencies else ("--no-deps",)),
            *requirements,
        ],
        check=True,
    )
    print(f"{folder / 'site'}: {', '.join(Path(name).name for name in requirements)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", choices=tuple(PACKAGES), default="all")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    make(folder, arguments.packages)
    code = "import numpy, platform; print(platform.machine(), platform.python_version())"
    subprocess.run([command(folder), "-c", code], check=True, env={**os.environ})


if __name__ == "__main__":
    main()
