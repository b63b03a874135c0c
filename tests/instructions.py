# SPDX-License-Identifier: Apache-2.0
"""Which extension of its architecture each instruction of a disassembly belongs to."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from .builds import run

# What code compiled for a target may hold, by the classes below.
AVX2 = {"base", "sse4", "avx2", "bmi2"}
ALLOWED = {
    "scalar": {"base"},
    "avx2": AVX2,
    "avxvnni": AVX2 | {"avxvnni"},
    "avx512": AVX2 | {"avx512"},
    "avx512vnni": AVX2 | {"avx512", "avx512vnni"},
    "amx": AVX2 | {"avx512", "avx512vnni", "amx"},
    "neon": {"base"},
    "neon_dotprod": {"base", "dotprod"},
    "neon_i8mm": {"base", "dotprod", "i8mm"},
}

PREFIXES = {"66", "f2", "f3", "f0", "2e", "36", "3e", "26", "64", "65", "67"}
# SSE3 and above outside the opcode maps 0F 38 and 0F 3A, which hold nothing of x86-64 itself.
# (tzcnt is there: an older CPU runs it as bsf, which compilers know.)
LATER_SSE = re.compile(
    r"addsubp[sd]|h(add|sub)p[sd]|lddqu|mov(d|sh|sl)dup|fisttp.*|popcnt.*|lzcnt.*|extrq|insertq"
    r"|monitorx?|mwaitx?|cmpxchg16b|rdrand.*|rdseed.*|x(save|rstor).*|rd[fg]sbase.*|wr[fg]sbase.*"
    r"|xbegin|xend|xabort|xtest|clwb|clflushopt"
)
BMI2 = re.compile(r"(bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx)[lq]?")
BMI1 = re.compile(r"(andn|bextr|blsi|blsmsk|blsr)[lq]?")
TILES = re.compile(r"(ld|st)tilecfg|tile(release|zero|stored|load.*)|tdpb[su][su]d")
MASKS = re.compile(r"k(add|and|andn|mov|not|or|ortest|shiftl|shiftr|test|unpck|xnor|xor)[bwdq]+")
DOTS = re.compile(r"vpdp(busd|wssd)")
# With VEX: beside AVX, AVX2, FMA and F16C.
OTHER_VEX = re.compile(
    r"vpdp.*|vpmadd52.*|vaes.*|vpclmul.*|vgf2p8.*|vsha.*|vsm[34].*|vbcstne.*|vcvtne.*|t.*|k.*"
    r"|cmp.*xadd"
)
# With EVEX: beside F, BW, VL and DQ.
OTHER_EVEX = re.compile(
    r"vpdp.*|vperm(b|i2b|t2b)|vpmultishiftqb|vp(compress|expand)[bw]|vpsh[lr]d.*|vpopcnt.*"
    r"|vpshufbitqmb|vpmadd52.*|vdpbf16ps|vcvtne.*|vpconflict.*|vplzcnt.*|vpbroadcastm.*|vexp2.*"
    r"|vr(cp|sqrt)28.*|v(gather|scatter)pf.*|vp2intersect.*|vgf2p8.*|vaes.*|vpclmul.*|v4f.*|vp4dp.*"
)


def x86_class(code: list[str], text: str) -> str:
    """The class of one instruction: by its encoding, and by its name where that is not enough."""
    name = re.sub(r"^(\{\w+\} |rep[a-z]* |lock |bnd |notrack |data16 |[c-gs]s |addr32 )*", "", text)
    name = name.split()[0] if name.split() else text
    while code and code[0] in PREFIXES:
        code = code[1:]
    if code and re.fullmatch("4[0-9a-f]", code[0]):
        code = code[1:]
    if not code:
        return "base"
    if code[0] == "62":
        if DOTS.fullmatch(name):
            return "avx512vnni"
        half_floats = int(code[1], 16) & 7 >= 5  # opcode maps 5 and 6
        return f"evex {name}" if half_floats or OTHER_EVEX.fullmatch(name) else "avx512"
    if code[0] in ("c4", "c5"):
        for pattern, kind in ((BMI2, "bmi2"), (BMI1, "bmi1"), (TILES, "amx"), (MASKS, "avx512"),
                              (DOTS, "avxvnni")):  # fmt: skip
            if pattern.fullmatch(name):
                return kind
        return f"vex {name}" if OTHER_VEX.fullmatch(name) else "avx2"
    if code[0] == "0f" and code[1:2] in (["38"], ["3a"]):
        other = re.match("aes|pclmul|sha|gf2p8|movbe|adcx|adox|movdir|enq|wr?ussd?|invpcid", name)
        return f"other {name}" if other else "sse4"
    if LATER_SSE.fullmatch(name):
        return "sse4" if re.match("popcnt|lddqu|mov|h|addsub", name) else f"other {name}"
    return "base"


# Above armv8-a with NEON. Loads, stores, moves and conversions of half floats belong to it.
ARM_CLASSES = (
    ("dotprod", r"[su]dot\b.*"),
    ("i8mm", r"(usdot|sudot|[su]mmla|usmmla)\b.*"),
    ("sve", r".*\b[zp]\d+(\.[bhsdq]|/[mz]).*|(ptrue|cnt[bhwd]|rdvl|addvl|while\w+)\b.*"),
    ("bf16", r"bf(dot|mmla|mlal[bt]|cvtn?2?)\b.*"),
    ("lse", r"(swp|casp?|(ld|st)(add|clr|eor|set|[su]max|[su]min))(a|l|al)?[bh]?\b.*"),
    ("rdm", r"sqrdml[as]h\b.*"),
    ("rcpc", r"ldapu?r\w*\b.*"),
    ("crc", r"crc32\w+\b.*"),
    ("crypto", r"(aes|sha)\w+\b.*|pmull2?\s.*\.1q.*"),
    ("complex", r"fc(mla|add)\b.*|fjcvtzs\b.*|frint(32|64)\w\b.*"),
    ("fp16", r"fml[as]l2?\b.*"),
    ("fp16", r"(?!fcvt[ln]2?\b|fcvtxn)f\w+\s.*\bv\d+\.[48]h.*|[su]cvtf\s.*\bv\d+\.[48]h.*"),
    ("fp16", r"(?!fcvt\s|fmov\s+h\d+, #?h)f\w+\s.*\bh\d+\b.*|[su]cvtf\s+h\d+.*"),
)


def arm_class(text: str) -> str:
    return next((kind for kind, pattern in ARM_CLASSES if re.fullmatch(pattern, text)), "base")


def instructions(path: Path, arch: str, objdump: str = "objdump") -> Counter[tuple[str, str]]:
    """How often a file holds each (class, name) above the base of the architecture."""
    found: Counter[tuple[str, str]] = Counter()
    before = ""
    for line in run(objdump, "-d", "-w", path).splitlines():
        parts = line.split("\t")
        if len(parts) < 3:
            continue
        text = "\t".join(parts[2:]).split(" <")[0].split("//")[0].strip()
        if arch == "x86_64":
            kind = x86_class(parts[1].split(), text)
        else:
            kind = arm_class(text)
            if kind == "lse" and before.startswith("cbz\tw16,"):
                kind = "base"  # in libgcc's atomics, which ask the CPU first
            before = text
        found[kind, re.sub(r"^\{\w+\} ", "", text).split()[0] if text else ""] += 1
    return found


def above(found: Counter[tuple[str, str]], target: str) -> list[str]:
    """What of this code the target's CPU may lack."""
    return sorted({f"{name} ({kind})" for kind, name in found if kind not in ALLOWED[target]})
