# SPDX-License-Identifier: Apache-2.0
"""Run a command in which no library knows of an instruction set above AVX2.

    python bench/peers/hold_avx2.py nibblas bench --peers --shapes 4096x4096

Libraries ask the CPU what it has with the instruction CPUID, each with its own copy of it, and few
of them have a switch for less. So their copies are replaced in memory, as the dynamic linker maps
them and before any of their code runs: by UD2, which is as long and raises SIGILL, whose handler
executes CPUID and clears the bits of AVX-512, AVX-VNNI and AMX. No file of a package changes.

Where the instructions are is found out from the libraries' files beforehand: two bytes that may be
part of another instruction, too, hence decoded (objdump) from many places before them. ggml has
no such choice at run time and is built for AVX2: see build_ggml.py.

Linux on x86-64 with glibc; needs gcc and binutils. CPUs that can fault on CPUID would make this
simpler, but many, and most virtual machines, cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("nibblas", "numpy", "onnxruntime", "torch", "openvino", "ai_edge_litert")

CPUID = b"\x0f\xa2"
BEFORE = range(48, 112)
"""Decoding starts so many bytes before; wrong starts fall into step within a few instructions."""
TAIL = b"\x90" * 24  # one-byte instructions, so that the next window starts afresh
ENOUGH = 0.5  # of the starts lead to CPUID there

VARIABLES = {
    "NIBBLAS_TARGET": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
"""Switches that do exist: they agree with the above."""


def libraries() -> list[Path]:
    """The shared objects of the packages that are installed, and of wheels' folders of them."""
    folders = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            folders.append(Path(spec.origin).parent)
    site = Path(sysconfig.get_path("platlib"))
    folders += site.glob("*.libs")
    found = {path.resolve() for folder in folders for path in folder.rglob("*.so*")}
    return sorted(path for path in found if path.is_file())


def code_sections(image: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(offset in the file, size, address) of the machine code in a 64-bit ELF file.

    Sections, not segments: a segment that is mapped executable may begin with tables.
    """
    if image[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count = struct.unpack_from("<HH", image, 58)
    for at in range(table, table + size * count, size):
        _, kind, flags, address, offset, length = struct.unpack_from("<IIQQQQ", image, at)
        if kind == 1 and flags & 4:  # SHT_PROGBITS, SHF_EXECINSTR
            yield offset, length, address


def candidates(path: Path) -> list[tuple[int, list[bytes]]]:
    """(address, the bytes before it from each start) wherever the two bytes occur."""
    found = []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        for offset, size, address in code_sections(image):
            at = image.find(CPUID, max(offset, max(BEFORE)), offset + size)
            while at >= 0:
                windows = [image[at - before : at] for before in BEFORE]
                found.append((address + at - offset, windows))
                at = image.find(CPUID, at + 1, offset + size)
    return found


def confirmed(windows: list[list[bytes]]) -> list[float]:
    """For each candidate the share of its starts from which decoding arrives at the CPUID."""
    code, places = bytearray(), []
    for number, starts in enumerate(windows):
        for start in starts:
            places.append((len(code) + len(start), number))
            code += start + CPUID + TAIL
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        command = ["objdump", "-D", "-z", "-b", "binary", "-m", "i386:x86-64", file.name]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    decoded = {int(at, 16) for at in re.findall(r"^ *([0-9a-f]+):\t0f a2 +\tcpuid", lines, re.M)}
    hits = [0] * len(windows)
    for place, number in places:
        hits[number] += place in decoded
    return [hit / len(BEFORE) for hit in hits]


def write_sites(file: Path) -> dict[str, int]:
    """Write "address path" of every CPUID; how many each library has."""
    where, windows = [], []
    for path in libraries():
        for address, starts in candidates(path):
            where.append((address, path))
            windows.append(starts)
    counts: dict[str, int] = {}
    with open(file, "w") as out:
        for (address, path), share in zip(where, confirmed(windows), strict=True):
            if share >= ENOUGH:
                out.write(f"{address:x} {path}\n")
                counts[path.name] = counts.get(path.name, 0) + 1
    return counts


def environment(folder: Path) -> tuple[dict[str, str], dict[str, int]]:
    """The variables that hold a process to AVX2, made of files in `folder`; and what they hide."""
    sites, library = folder / "sites", folder / "hold_avx2.so"
    counts = write_sites(sites)
    gcc = shutil.which("gcc") or "cc"
    source = HERE / "hold_avx2.c"
    subprocess.run([gcc, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    own = {"LD_AUDIT": str(library.resolve()), "HOLD_AVX2_SITES": str(sites.resolve())}
    return {**VARIABLES, **own}, counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verbose", action="store_true", help="say what is replaced")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("no command given")
    with tempfile.TemporaryDirectory() as scratch:
        held, counts = environment(Path(scratch))
        if arguments.verbose:
            for name, count in counts.items():
                print(f"{count:4} CPUID in {name}", file=sys.stderr)
        done = subprocess.run(arguments.command, env={**os.environ, **held})
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
