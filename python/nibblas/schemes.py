# SPDX-License-Identifier: Apache-2.0
"""The registry of schemes, and the sizes of a packed weight's planes.

A scheme says how stored codes become values: how many bits a code has, which integers they stand
for, and what besides the scale belongs to a group. Everything that differs between schemes is a
field of Scheme, so that a new one is one more entry of the table at the end of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from nibblas._codebooks import E2M1_DOUBLED, FP4, IQ4_NL, NF4

PANEL = 16
"""Output features that are stored together."""

MIN_GROUP = 16
MAX_GROUP = 4096

SUPER_BLOCK = 256
"""Codes under one super-scale of the two-level schemes."""

CODEBOOK = 16
"""Values of a codebook."""

LAYOUT_VERSION = 1
"""Version of the planes' layout in memory; files carry it."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the codes of a packed weight become values.

    A code c of a group with scale s stands for ``(c - zero) * s``, where zero is one number for
    the whole matrix or one of its own for each group, or for ``c * s + m`` with a minimum m. With
    a codebook it stands for ``codebook[c] * s``.

    Attributes
    ----------
    name : str
        What users write.
    bits : int
        Bits of a code. Codes are stored unsigned.
    signed : bool
        Whether `pack` takes and `unpack` returns signed integers (the code minus `zero`).
    zero : int
        The code of the value 0 for the whole matrix, unless a weight says otherwise.
    offsets : tuple of str
        What `quantize` may give a group besides its scale: "symmetric" (nothing), "zero_point" or
        "min". The first one is the default.
    default_group_size : int or None
        What group_size="auto" means; None is per channel.
    rules : tuple of str
        The rules by which `quantize` may choose scales.
    scale_types : tuple of str
        Types in which scales may be stored: a key of STORED_DTYPES.
    fixed_group : int or None
        The only group size there is, for formats that define it.
    two_level : bool
        Whether a group's scale (and min) is a small integer times a float16 that 256 codes share.
    nibble_mins : bool
        Two-level: whether a byte of the scales holds the scale in its low and the min in its high
        nibble.
    codebook : tuple of float or None
        What the 16 codes stand for.
    codebook_dtype : str or None
        "float32": a table that a weight may bring its own of. "int8": the exact integers given.
    """

    name: str
    bits: int
    signed: bool
    zero: int
    offsets: tuple[str, ...]
    default_group_size: int | None
    rules: tuple[str, ...] = ("mse", "absmax")
    scale_types: tuple[str, ...] = ("float16", "float32", "bfloat16")
    fixed_group: int | None = None
    two_level: bool = False
    nibble_mins: bool = False
    codebook: tuple[float, ...] | None = None
    codebook_dtype: str | None = None

    @property
    def slices(self) -> tuple[int, ...]:
        """Bits of each code plane, the lowest bits of the code first: 6 is 4 and 2."""
        return tuple(width for width in (8, 4, 2, 1) if self.bits & width)

    @property
    def code_planes(self) -> tuple[str, ...]:
        """Names of the code planes: "codes", or "codes_0", "codes_1" for bit-sliced widths."""
        if len(self.slices) == 1:
            return ("codes",)
        return tuple(f"codes_{i}" for i in range(len(self.slices)))

    @property
    def nibble_zeros(self) -> bool:
        """Whether integer zero points are nibbles, those of two groups in a byte.

        A byte for 32 codes would be 10 % of a weight of 2 bits.
        """
        return self.bits <= 3

    @property
    def top_zero(self) -> int:
        """The greatest integer zero point. (It may be above the greatest code.)"""
        return 15 if self.nibble_zeros else 255

    @property
    def code_min(self) -> int:
        """The least integer that `pack` takes."""
        return -self.zero if self.signed else 0

    @property
    def code_max(self) -> int:
        """The greatest integer that `pack` takes."""
        return self.code_min + self.top_code

    @property
    def top_code(self) -> int:
        """The greatest stored code."""
        return 2 * self.zero if self.name == "ternary" else (1 << self.bits) - 1

    @property
    def code_dtype(self) -> str:
        """NumPy type of the integers that `unpack` returns."""
        return "int8" if self.signed else "uint8"


class PlaneSpec(NamedTuple):
    """What a plane must be: NumPy dtype name (bfloat16 is held as its bits, uint16) and shape."""

    dtype: str
    shape: tuple[int, ...]


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes."""
    return tuple(SCHEMES)


def get_scheme(name: object) -> Scheme:
    """The scheme called `name`.

    Raises
    ------
    TypeError
        `name` is not a string.
    ValueError
        There is no such scheme; the message lists those there are.
    """
    if not isinstance(name, str):
        raise TypeError(f"scheme must be a string, got {type(name).__name__}")
    try:
        return SCHEMES[name]
    except KeyError:
        known = ", ".join(SCHEMES)
        raise ValueError(f"unknown scheme {name!r}: there are {known}") from None


def check_group_size(group_size: object) -> int | None:
    """`group_size` if it is None or a positive int."""
    if group_size is None:
        return None
    if isinstance(group_size, bool) or not hasattr(group_size, "__index__"):
        raise TypeError(f"group_size must be an int or None, got {group_size!r}")
    size = group_size.__index__()
    if size < 1:
        raise ValueError(f"group_size must be positive, got {size}")
    return int(size)


def is_stored_group_size(size: int) -> bool:
    """Whether the layout has groups of this size: powers of two from 16 to 4096."""
    return MIN_GROUP <= size <= MAX_GROUP and size & (size - 1) == 0


def resolve_group_size(group_size: object, scheme: Scheme, depth: int) -> int | None:
    """The group size that `quantize` uses for a weight with `depth` input features.

    "auto" is the scheme's default. A group as long as the depth, or longer, is per channel: None.
    """
    if group_size == "auto":
        group_size = scheme.default_group_size
    elif isinstance(group_size, str):
        raise ValueError(f'group_size must be an int, None or "auto", got {group_size!r}')
    size = check_group_size(group_size)
    check_fixed_group(size, scheme, depth)
    return size if scheme.two_level else stored_group_size(size, depth)


def check_fixed_group(group_size: int | None, scheme: Scheme, depth: int) -> None:
    """ValueError where the scheme defines its group size and this is another one."""
    fixed = scheme.fixed_group
    if fixed is None or group_size == fixed:
        return
    if group_size is None and depth <= fixed and not scheme.two_level:
        return  # one group is the whole row
    raise ValueError(f"group_size of {scheme.name} must be {fixed}, got {group_size}")


def stored_group_size(group_size: object, depth: int) -> int | None:
    """`group_size` if groups of it can be stored; None for one of at least the depth."""
    size = check_group_size(group_size)
    if size is None or size >= depth:
        return None
    if not is_stored_group_size(size):
        raise ValueError(
            f"group_size must be a power of two from {MIN_GROUP} to {MAX_GROUP}, got {size}"
        )
    return size


def divide_group_size(group_size: object, scheme: Scheme, depth: int) -> tuple[int | None, int]:
    """The stored group size for groups of any size, and how often each scale is repeated.

    Groups of 48 are stored as groups of 16 whose scales are repeated three times: 16 is the
    largest power of two that divides 48. Groups whose divisor is below 16 cannot be stored.
    """
    if scheme.fixed_group is not None or group_size == "auto":
        return resolve_group_size(group_size, scheme, depth), 1
    size = check_group_size(group_size)
    if size is None or size >= depth:
        return None, 1
    divisor = min(size & -size, MAX_GROUP)
    if divisor < MIN_GROUP:
        raise ValueError(
            f"group_size must be a multiple of {MIN_GROUP}, or at least the depth {depth}; "
            f"got {size}"
        )
    return divisor, size // divisor


def padded_depth(depth: int, group_size: int | None, two_level: bool = False) -> int:
    """Input features as stored: rounded up to whole groups and to whole runs of 64 codes.

    Two-level schemes: to whole super-blocks of 256.
    """
    unit = SUPER_BLOCK if two_level else max(group_size or 0, 64)
    return -(-depth // unit) * unit


def group_count(depth: int, group_size: int | None) -> int:
    """Groups per output that hold codes: ceil(K / group), or 1 per channel."""
    return 1 if group_size is None else -(-depth // group_size)


def super_count(depth: int) -> int:
    """Super-blocks per output of a two-level scheme: ceil(K / 256)."""
    return -(-depth // SUPER_BLOCK)


def stored_group_count(depth: int, group_size: int | None, two_level: bool = False) -> int:
    """Groups per output as stored, with those of the padding."""
    if group_size is None:
        return 1
    return padded_depth(depth, group_size, two_level) // group_size


def plane_specs(
    scheme: Scheme,
    shape: tuple[int, int],
    group_size: int | None,
    *,
    scale_type: str,
    offset: str = "symmetric",
    offset_type: str = "float32",
    has_input_order: bool = False,
) -> dict[str, PlaneSpec]:
    """Dtype and shape of every plane of such a weight, in the order in which they are stored.

    `offset_type` is that of the mins or zero points: a key of STORED_DTYPES.
    """
    cols, depth = shape
    panels = -(-cols // PANEL)
    depth_padded = padded_depth(depth, group_size, scheme.two_level)
    per_group = (panels, stored_group_count(depth, group_size, scheme.two_level), PANEL)
    per_super = (panels, super_count(depth), PANEL)
    specs = {
        name: PlaneSpec("uint8", (panels, depth_padded * bits // 32, PANEL, 4))
        for name, bits in zip(scheme.code_planes, scheme.slices, strict=True)
    }
    specs["scales"] = PlaneSpec(STORED_DTYPES[scale_type], per_group)
    if offset == "zero_point":
        groups = per_group[1]
        if scheme.nibble_zeros and offset_type == "uint8":
            groups = -(-groups // 2)
        specs["zero_points"] = PlaneSpec(STORED_DTYPES[offset_type], (panels, groups, PANEL))
    elif offset == "min" and not scheme.nibble_mins:
        specs["mins"] = PlaneSpec(STORED_DTYPES[offset_type], per_group)
    if scheme.two_level:
        specs["super_scales"] = PlaneSpec("float16", per_super)
        if offset == "min":
            specs["super_mins"] = PlaneSpec("float16", per_super)
    if scheme.codebook_dtype == "float32":
        specs["codebook"] = PlaneSpec("float32", (CODEBOOK,))
    if has_input_order:
        specs["input_order"] = PlaneSpec("int32", (depth,))
    return specs


STORED_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "float16": "float16",
        "float32": "float32",
        "bfloat16": "uint16",
        "e8m0": "uint8",
        "e4m3": "uint8",
        "uint8": "uint8",
        "int8": "int8",
    }
)
"""NumPy dtype in which scales, mins and zero points of a type are held."""


def _integer(bits: int, *, signed: bool) -> Scheme:
    return Scheme(
        name=f"{'int' if signed else 'uint'}{bits}",
        bits=bits,
        signed=signed,
        zero=1 << (bits - 1) if signed else 0,
        offsets=("symmetric",) if signed else ("zero_point", "min"),
        default_group_size=None if bits == 8 else 32,
    )


def _codebook(name: str, table: tuple[float, ...], dtype: str, group: int, **other: Any) -> Scheme:
    return Scheme(
        name=name,
        bits=4,
        signed=False,
        zero=0,
        offsets=("symmetric",),
        default_group_size=group,
        codebook=table,
        codebook_dtype=dtype,
        **other,
    )


def _two_level(name: str, bits: int, group: int, *, zero: int | None, **other: Any) -> Scheme:
    """A scheme of GGUF; `zero` is the code of 0, None where there are mins instead."""
    return Scheme(
        name=name,
        bits=bits,
        signed=False,
        zero=zero or 0,
        offsets=("min",) if zero is None else ("symmetric",),
        default_group_size=group,
        fixed_group=group,
        two_level=True,
        rules=("mse",),
        scale_types=("uint8",) if zero is None else ("int8",),
        **other,
    )


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            *(_integer(bits, signed=True) for bits in (8, 4, 2, 3, 5, 6, 7)),
            *(_integer(bits, signed=False) for bits in (8, 4, 1, 2, 3, 5, 6, 7)),
            Scheme("ternary", 2, True, 1, ("symmetric",), 256),
            _codebook("nf4", NF4, "float32", 64),
            _codebook("fp4", FP4, "float32", 64),
            _codebook("iq4_nl", IQ4_NL, "int8", 32),
            _codebook("mxfp4", E2M1_DOUBLED, "int8", 32, scale_types=("e8m0",), fixed_group=32),
            _codebook("nvfp4", E2M1_DOUBLED, "int8", 16, scale_types=("e4m3",), fixed_group=16),
            _two_level("q2_k", 2, 16, zero=None, nibble_mins=True),
            _two_level("q3_k", 3, 16, zero=4),
            _two_level("q4_k", 4, 32, zero=None),
            _two_level("q5_k", 5, 32, zero=None),
            _two_level("q6_k", 6, 16, zero=32),
            _two_level("iq4_xs", 4, 32, zero=0, codebook=IQ4_NL, codebook_dtype="int8"),
        )
    }
)
