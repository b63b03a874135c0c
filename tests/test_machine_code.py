# SPDX-License-Identifier: Apache-2.0
"""The machine code of products, in the release builds that NIBBLAS_BUILDS names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .builds import BUILDS, TARGETS, arch_of, run, this_arch


class Machine(NamedTuple):
    """What the machine code of an architecture looks like in objdump's text."""

    objdump: str
    branch: str
    """A conditional branch, with the address as its group."""
    dot: str
    stack: str
    most_stack: int
    """Accesses of the stack in a loop of a tile."""


MACHINES = {
    "x86_64": Machine(
        "objdump",
        r"j[a-z]+ +([0-9a-f]+) ",
        r"(\{vex\} )?vpdpbusd |vpmaddubsw |vpmaddwd |vfmadd",
        r"^(?!lea ).*%r[sb]p\)",
        0,
    ),
    # The last sum goes to the stack where GCC 12 finds no better register for the third word of x.
    "aarch64": Machine(
        "objdump" if this_arch() == "aarch64" else "aarch64-linux-gnu-objdump",
        r"(?:b\.[a-z]+|cbn?z\s+\w+,)\s+([0-9a-f]+) ",
        r"usmmla|sdot|smlal|smull|fmla",
        r"\[sp",
        2,
    ),
}


def optimized_products() -> list[tuple[Machine, Path]]:
    """The objects of vector products in the release builds."""
    found: list[tuple[Machine, Path]] = []
    for build in BUILDS:
        cache = (build / "CMakeCache.txt").read_text()
        if re.search("^CMAKE_BUILD_TYPE:.*=Release$", cache, re.M) and not re.search(
            "^NIBBLAS_SANITIZE:.*=.", cache, re.M
        ):
            arch = arch_of(build)
            for name, target in TARGETS["targets"].items():
                if target["arch"] == arch and name != "amx":
                    folder = build / f"CMakeFiles/nibblas_{name}.dir/csrc/targets"
                    paths = [folder / f"{name}.cpp.o", *folder.glob(f"{name}_floats.cpp.o")]
                    found += [(MACHINES[arch], path) for path in paths]
    return found


def loops_of(listing: str, branch: str) -> list[tuple[str, list[str]]]:
    """The innermost loops of a disassembly: (function, instructions up to the jump back)."""
    loops = []
    function = ""
    addresses: list[int] = []
    texts: list[str] = []
    for line in listing.splitlines():
        if line.endswith(">:"):
            function, addresses, texts = line, [], []
            continue
        match = re.match(r" *([0-9a-f]+):\s+(.*)", line)
        if not match:
            continue
        addresses.append(int(match[1], 16))
        texts.append(match[2])
        jump = re.match(branch, match[2])
        if jump and int(jump[1], 16) in addresses:
            body = texts[addresses.index(int(jump[1], 16)) :]
            if not any(re.match(branch, text) for text in body[:-1]):
                loops.append((function, body))
    return loops


def test_prefetches_survive_the_compiler():
    """GCC takes a function that only prefetches for one without effect; calls of it vanished."""
    for machine, path in optimized_products():
        listing = run(machine.objdump, "-d", "--no-show-raw-insn", path)
        for into in ("prefetcht0 ", "prefetcht1 ") if "%r" in listing else ("pldl1", "pldl2"):
            assert listing.count(into) > 20, path


def test_hot_loops_keep_their_sums_in_registers():
    """The tiles that sweep expanded weights: 6 rows, with neon and bytes 3 or 2.

    On AVX-512 two-level schemes have one of 4 rows. On AVX2 tiles of pairs have 5, of the planes.
    """
    for machine, path in optimized_products():
        rows = "[23]" if path.name == "neon.cpp.o" else "6"
        listing = run(machine.objdump, "-d", "-C", "--no-show-raw-insn", path)
        loops = loops_of(listing, machine.branch)
        check_tiles(machine, path, loops, rf"multiply_\w+<[^<]*, {rows}, [^<]*BlockSource<", 12, 4)
        if re.fullmatch(r"avx512(vnni)?\.cpp\.o", path.name):
            check_tiles(
                machine, path, loops, "multiply_super_blocks<[^<]*, 4, [^<]*BlockSource<", 8, 1
            )
        rows = {"avx2.cpp.o": 5, "avx512.cpp.o": 6}.get(path.name)
        if rows:
            check_tiles(machine, path, loops, f"multiply_part<[^<]*, {rows}, .*PairDot<", 20, 1)


def check_tiles(
    machine: Machine,
    path: Path,
    loops: list[tuple[str, list[str]]],
    function: str,
    dots: int,
    least: int,
) -> None:
    """No stack in the loops of so many dot products of these functions, at least so many loops."""
    tiles = [
        body
        for name, body in loops
        if re.search(function, name)
        and sum(bool(re.match(machine.dot, text)) for text in body) >= dots
    ]
    assert len(tiles) >= least, path
    for body in tiles:
        stack = [text for text in body if re.search(machine.stack, text)]
        assert len(stack) <= machine.most_stack, (path, stack)
