# SPDX-License-Identifier: Apache-2.0
"""No illegal instruction: a file of a build holds what its target has, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter

import pytest

from .builds import BUILDS, COMPILER, TARGETS, arch_of, this_arch
from .instructions import ALLOWED, above, arm_class, instructions

X86 = this_arch() == "x86_64"
needs_tools = pytest.mark.skipif(
    not COMPILER or not shutil.which("objdump"), reason="needs a compiler and objdump"
)


def objdump_for(arch: str) -> str:
    return "objdump" if arch == this_arch() else f"{arch}-linux-gnu-objdump"


def test_every_target_says_what_it_may_hold():
    assert set(TARGETS["targets"]) <= set(ALLOWED)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_instructions_of_a_build(build):
    """The baseline is plain, a target has its own, and the library has no other than its files."""
    arch = arch_of(build)
    objdump = objdump_for(arch)
    folders = {"_nibblas": "scalar"} | {
        f"nibblas_{name}": name
        for name, target in TARGETS["targets"].items()
        if target["arch"] in ("any", arch)
    }
    wrong = {}
    parts: Counter[tuple[str, str]] = Counter()
    for folder, target in folders.items():
        objects = sorted((build / "CMakeFiles" / f"{folder}.dir" / "csrc").rglob("*.o"))
        assert objects, f"no objects in {folder}.dir of {build}"
        for path in objects:
            found = instructions(path, arch, objdump)
            if bad := above(found, target):
                wrong[f"{folder}: {path.name}"] = bad
            parts += found
    assert not wrong
    (library,) = build.glob("_nibblas*.so")
    extra = instructions(library, arch, objdump) - parts
    assert not above(extra, "scalar"), "what the library has and no object has"


# One instruction of each class, for x86-64, with the targets that may hold it.
PLANTED = {
    "addps %xmm0, %xmm1": set(ALLOWED),
    "haddps %xmm0, %xmm1": {"avx2", "avxvnni", "avx512", "avx512vnni", "amx"},
    "pshufb %xmm0, %xmm1": {"avx2", "avxvnni", "avx512", "avx512vnni", "amx"},
    "popcnt %eax, %ecx": {"avx2", "avxvnni", "avx512", "avx512vnni", "amx"},
    "vaddps %xmm0, %xmm1, %xmm2": {"avx2", "avxvnni", "avx512", "avx512vnni", "amx"},
    "shlx %eax, %ecx, %edx": {"avx2", "avxvnni", "avx512", "avx512vnni", "amx"},
    "andn %eax, %ecx, %edx": set(),
    "aesenc %xmm0, %xmm1": set(),
    "{vex} vpdpbusd %ymm0, %ymm1, %ymm2": {"avxvnni"},
    "vpdpbusd %zmm0, %zmm1, %zmm2": {"avx512vnni", "amx"},
    "vpdpbusds %zmm0, %zmm1, %zmm2": set(),  # it saturates
    "vaddps %zmm0, %zmm1, %zmm2": {"avx512", "avx512vnni", "amx"},
    "vaddps %xmm16, %xmm1, %xmm2": {"avx512", "avx512vnni", "amx"},
    "kmovw %k1, %eax": {"avx512", "avx512vnni", "amx"},
    "vpermb %zmm0, %zmm1, %zmm2": set(),
    "vplzcntd %zmm0, %zmm1": set(),
    "vaddph %zmm0, %zmm1, %zmm2": set(),
    "tdpbusd %tmm0, %tmm1, %tmm2": {"amx"},
    "tilezero %tmm0": {"amx"},
}


@needs_tools
@pytest.mark.skipif(not X86, reason="of x86-64")
def test_planted_instructions_are_found(tmp_path):
    for number, (text, allowed) in enumerate(PLANTED.items()):
        output = tmp_path / f"{number}.o"
        source = f'void f() {{ __asm__ volatile("{text}"); }}\n'
        subprocess.run(
            [*COMPILER.split(), "-O1", "-x", "c++", "-c", "-", "-o", str(output)],
            input=source, check=True, text=True,
        )  # fmt: skip
        found = instructions(output, "x86_64")
        for target in ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"):
            assert bool(above(found, target)) == (target not in allowed), (text, target, found)


@needs_tools
@pytest.mark.skipif(not X86, reason="of x86-64")
@pytest.mark.parametrize("target", ["avx2", "avxvnni", "avx512", "avx512vnni"])
def test_flags_of_a_higher_target_are_found(target, tmp_path):
    """Ordinary code, compiled with a target's flags, is above every target that has fewer."""
    output = tmp_path / "wrong.o"
    source = "void f(float* a, const float* b) { for (int i = 0; i < 4096; ++i) a[i] += b[i] * 3; }"
    flags = TARGETS["targets"][target]["flags"]["gnu"]
    subprocess.run(
        [*COMPILER.split(), "-O3", *flags, "-x", "c++", "-c", "-", "-o", str(output)],
        input=source, check=True, text=True,
    )  # fmt: skip
    found = instructions(output, "x86_64")
    assert not above(found, target)
    assert above(found, "scalar")
    assert bool(above(found, "avx2")) == target.startswith("avx512")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("add\tv0.4s, v1.4s, v2.4s", "base"),
        ("smlal\tv0.4s, v1.4h, v2.4h", "base"),
        ("fcvtl\tv0.4s, v1.4h", "base"),
        ("fcvtn\tv0.4h, v1.4s", "base"),
        ("fcvt\ts0, h1", "base"),
        ("ldr\th0, [x1]", "base"),
        ("ldaxr\tw0, [x1]", "base"),
        ("bfxil\tw0, w1, #0, #8", "base"),
        ("bfdot\tv0.4s, v1.8h, v2.8h", "bf16"),
        ("stp\tx29, x30, [sp, #-16]!", "base"),
        ("fmla\tv0.4s, v1.4s, v2.s[0]", "base"),
        ("sdot\tv0.4s, v1.16b, v2.4b[0]", "dotprod"),
        ("udot\tv0.4s, v1.16b, v2.16b", "dotprod"),
        ("usdot\tv0.4s, v1.16b, v2.16b", "i8mm"),
        ("usmmla\tv0.4s, v1.16b, v2.16b", "i8mm"),
        ("smmla\tv0.4s, v1.16b, v2.16b", "i8mm"),
        ("fadd\tv0.8h, v1.8h, v2.8h", "fp16"),
        ("fmul\th0, h1, h2", "fp16"),
        ("fmlal\tv0.4s, v1.4h, v2.4h", "fp16"),
        ("ldaddal\tw0, w1, [x2]", "lse"),
        ("cas\tw0, w1, [x2]", "lse"),
        ("swpal\tw0, w1, [x2]", "lse"),
        ("ld1b\t{z0.b}, p0/z, [x0]", "sve"),
        ("add\tz0.s, z1.s, z2.s", "sve"),
        ("crc32b\tw0, w1, w2", "crc"),
    ],
)
def test_classes_of_arm(text, kind):
    assert arm_class(text) == kind


def test_arm_text_is_what_objdump_prints(tmp_path):
    """The classes above are held to a real disassembly where its tools are installed."""
    tool = shutil.which("aarch64-linux-gnu-as")
    if tool is None:
        pytest.skip("needs binutils for aarch64")
    planted = {
        "add v0.4s, v1.4s, v2.4s": "base",
        "sdot v0.4s, v1.16b, v2.4b[0]": "dotprod",
        "usmmla v0.4s, v1.16b, v2.16b": "i8mm",
        "fadd v0.8h, v1.8h, v2.8h": "fp16",
        "ldaddal w0, w1, [x2]": "lse",
        "add z0.s, z1.s, z2.s": "sve",
        "ldr h0, [x1]": "base",
    }
    for text, kind in planted.items():
        source = f".arch armv8.6-a+dotprod+i8mm+fp16+lse+sve\n{text}\n"
        output = tmp_path / "planted.o"
        subprocess.run([tool, "-o", str(output), "-"], input=source, check=True, text=True)
        found = instructions(output, "aarch64", "aarch64-linux-gnu-objdump")
        kinds = {kind for kind, name in found if re.match(r"\w", name)}
        assert kinds == {kind}, (text, found)
