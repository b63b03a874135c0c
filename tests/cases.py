# SPDX-License-Identifier: Apache-2.0
"""Weights, inputs and comparisons for the kernel tests, all driven by the registry of schemes.

A scheme added to `nibblas.schemes.SCHEMES` appears in every list here, and so in every test that
is parametrized by them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import nibblas
from nibblas import numerics
from nibblas.schemes import SCHEMES

from .conftest import TARGETS as TARGETS  # for the tests

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)
COMPUTES = ("int8", "float32")
ACTIVATIONS = (None, *numerics.ACTIVATIONS)

# All that the kernels tell apart: groups inside a block of codes that is expanded at once (256 or
# 1024), longer ones, and rows without groups.
GROUPS = (16, 32, 64, 128, 256, 512, 4096, None)


class Variant(NamedTuple):
    """A scheme, and what its groups have besides a scale."""

    scheme: str
    offset: str
    """One of the scheme's own, "zero": a zero point that serves the whole matrix, or "float_zero":
    float zero points."""

    def __str__(self) -> str:
        return f"{self.scheme}-{self.offset}"


def _offsets(name: str) -> tuple[str, ...]:
    own = SCHEMES[name].offsets
    more = ("zero", "float_zero") if name in ("uint4", "uint8") else ()
    return (*own, *more)


ALL_VARIANTS = tuple(Variant(name, offset) for name in SCHEMES for offset in _offsets(name))

# Plain integers with one scale a group. (matmul_integer takes the codes of two-level ones, too.)
INTEGER_SCHEMES = tuple(
    name for name, scheme in SCHEMES.items() if scheme.codebook is None and not scheme.two_level
)

# Schemes whose planes are just codes, scales and offsets, to try what is no matter of the codes.
PLAIN = ("int8", "uint8", "int4", "uint4")
PLAIN_OFFSETS = tuple((name, offset) for name in PLAIN for offset in SCHEMES[name].offsets)
OFFSETS = tuple((name, offset) for name, scheme in SCHEMES.items() for offset in scheme.offsets)

# Of each way that a kernel goes one: for what does not depend on the codes' meaning. (All of them
# where NIBBLAS_TEST_ALL_VARIANTS is set, three times as many tests.)
VARIANTS = tuple(
    variant
    for variant in ALL_VARIANTS
    if os.environ.get("NIBBLAS_TEST_ALL_VARIANTS")
    or variant.scheme in (*PLAIN, "nf4", "nvfp4", "q2_k", "q6_k")
    or str(variant) in ("int3-symmetric", "uint5-zero_point", "iq4_xs-symmetric")
)


def groups_of(variant: Variant) -> tuple[int | None, ...]:
    """Group sizes to test: every one with the codes that kernels read in most ways."""
    scheme = SCHEMES[variant.scheme]
    if scheme.fixed_group is not None:
        return (scheme.fixed_group,)
    return GROUPS if variant.scheme in PLAIN else (16, 512, None)


variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)
all_variants = pytest.mark.parametrize("variant", ALL_VARIANTS, ids=str)
variants_and_groups = pytest.mark.parametrize(
    ("variant", "group"),
    [
        pytest.param(variant, group, id=f"{variant}-g{group}")
        for variant in ALL_VARIANTS
        for group in groups_of(variant)
    ],
)


def some_emulated(values: Iterable[Any], chosen: Container[Any]) -> list[Any]:
    """Parameters, of which emulated CPUs, each many times slower, take only the chosen ones."""
    mark = pytest.mark.emulated
    return [pytest.param(v, marks=mark) if v in chosen else v for v in values]


groups = pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"g{group}")
computes = pytest.mark.parametrize("compute", COMPUTES)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)


def random_codes(
    rng: np.random.Generator, scheme: str, shape: tuple[int, int], kind: str = "any"
) -> np.ndarray:
    """Integers (N, K) as `nibblas.pack` takes them: any, only the two ends, or one end alone."""
    low, high = SCHEMES[scheme].code_min, SCHEMES[scheme].code_max
    if kind == "any":
        codes = rng.integers(low, high, shape, endpoint=True)
    elif kind == "ends":
        codes = rng.choice([low, high], shape)
    else:
        codes = np.full(shape, {"low": low, "high": high}[kind])
    return codes.astype(SCHEMES[scheme].code_dtype)


def random_scales(rng: np.random.Generator, shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Of both signs, over twelve binades, some of them 0."""
    scales = rng.uniform(-1, 1, shape) * 2.0 ** rng.integers(-10, 3, shape)
    scales[rng.random(shape) < 0.05] = 0
    return scales.astype(np.float32).astype(BFLOAT16 if dtype == "bfloat16" else dtype)


def stored_group(scheme: str, group: int | None, depth: int) -> int | None:
    """The group size of a weight of this depth that was asked for `group`."""
    fixed = SCHEMES[scheme].fixed_group
    if SCHEMES[scheme].two_level:
        return fixed
    group = fixed or group
    return None if group is None or group >= depth else group


def random_weight(
    rng: np.random.Generator,
    variant: Variant,
    shape: tuple[int, int],
    group: int | None,
    *,
    codes: str = "any",
    scale_dtype: str | None = None,
    ordered: bool = True,
) -> nibblas.PackedWeight:
    """A weight of random codes, scales and offsets; with an input_order unless `ordered`.

    `group` is not looked at where the scheme has its own.
    """
    depth = shape[1]
    scheme = SCHEMES[variant.scheme]
    group = stored_group(variant.scheme, group, depth)
    given = random_parameters(rng, variant, shape, group, scale_dtype)
    if not ordered:
        given["input_order"] = rng.permutation(depth)
    return nibblas.pack(
        random_codes(rng, variant.scheme, shape, codes),
        scheme=variant.scheme,
        group_size=scheme.fixed_group or group,
        **given,
    )


def random_parameters(
    rng: np.random.Generator,
    variant: Variant,
    shape: tuple[int, int],
    group: int | None,
    scale_dtype: str | None = None,
) -> dict[str, Any]:
    """All that `pack` takes besides codes, scheme and group_size."""
    cols, depth = shape
    scheme = SCHEMES[variant.scheme]
    per_group = (cols, 1 if group is None else -(-depth // group))
    if scale_dtype is None or scale_dtype not in scheme.scale_types:
        scale_dtype = str(rng.choice(scheme.scale_types))
    given: dict[str, Any] = {}
    top_nibble = 16 if scheme.nibble_mins else 256
    if scheme.two_level:
        low, high = (-128, 128) if scale_dtype == "int8" else (0, top_nibble)
        given["scales"] = rng.integers(low, high, per_group, scale_dtype)
        per_super = (cols, -(-depth // 256))
        given["super_scales"] = random_scales(rng, per_super, np.float16)
        if variant.offset == "min":
            given["mins"] = rng.integers(0, top_nibble, per_group, np.uint8)
            given["super_mins"] = random_scales(rng, per_super, np.float16)
        return given
    if scale_dtype == "e8m0":
        given["scales"] = rng.integers(100, 145, per_group, np.uint8)
    elif scale_dtype == "e4m3":
        given["scales"] = rng.integers(0, 127, per_group, np.uint8)
        name = str(rng.choice(["tensor_scale", "tensor_divisor"]))
        given[name] = float(np.float32(rng.uniform(0.001, 0.1)))
    else:
        given["scales"] = random_scales(rng, per_group, scale_dtype)
    if variant.offset == "zero":
        given["zero_points"] = int(rng.integers(0, scheme.code_max, endpoint=True))
    elif variant.offset == "zero_point":
        # One more than the greatest code is what GPTQ files may have.
        top = min(scheme.code_max + 1, scheme.top_zero)
        zero_points = rng.integers(0, top, per_group, np.uint8, endpoint=True)
        if zero_points.size > 1 and (zero_points == zero_points.flat[0]).all():
            zero_points.flat[-1] ^= 1  # or it would be stored as one zero of the whole matrix
        given["zero_points"] = zero_points
    elif variant.offset == "float_zero":
        zeros = rng.uniform(-1, scheme.code_max + 1, per_group)
        given["zero_points"] = zeros.astype(FLOATS[rng.integers(3)])
    elif variant.offset == "min":
        given["mins"] = 8 * random_scales(rng, per_group, np.float32)
    if scheme.codebook_dtype == "float32" and rng.random() < 0.5:
        given["codebook"] = rng.uniform(-1, 1, 16).astype(np.float32)
    return given


def random_x(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """Normal numbers; each row has a size of its own."""
    size = 2.0 ** rng.integers(-6, 6, (*shape[:-1], 1))
    return (rng.standard_normal(shape) * size).astype(np.float32).astype(dtype)


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Any bit patterns: half of all exponents are far from 1, and NaN and infinities occur."""
    dtype = np.dtype(dtype)
    unsigned = f"u{dtype.itemsize}"
    return rng.integers(0, 1 << 8 * dtype.itemsize, shape, unsigned).view(dtype)


def dense(rng: np.random.Generator, cols: int = 20, depth: int = 100) -> np.ndarray:
    """A matrix to quantize."""
    return rng.standard_normal((cols, depth), dtype=np.float32)


def same_planes(one: nibblas.PackedWeight, other: nibblas.PackedWeight) -> bool:
    """Whether two weights have the same planes, byte for byte."""
    assert one.planes.keys() == other.planes.keys()
    return all(
        plane.dtype == other.planes[name].dtype and plane.tobytes() == other.planes[name].tobytes()
        for name, plane in one.planes.items()
    )


def tail_depth(group: int | None) -> int:
    """A depth with whole groups, then a part of one (or, without groups, no round number)."""
    if group is None:
        return 777
    return group + 77 if group >= 512 else 2 * group + 13


def bits(array: np.ndarray) -> np.ndarray:
    """The bit patterns of an array's elements."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def assert_same_bits(found: np.ndarray, expected: np.ndarray, context: object = "") -> None:
    """Same type, same shape, same bits: signs of zero and NaN included."""
    assert found.dtype == expected.dtype, context
    assert found.shape == expected.shape, context
    differs = bits(found) != bits(expected)
    if differs.any():
        first = tuple(int(i) for i in np.argwhere(differs)[0])
        raise AssertionError(
            f"{context}: {int(differs.sum())} of {differs.size} differ, first at {first}: "
            f"{found[first]!r} ({bits(found)[first]:#x}), "
            f"expected {expected[first]!r} ({bits(expected)[first]:#x})"
        )


def contract(w: nibblas.PackedWeight, x: np.ndarray, **arguments: Any) -> np.ndarray:
    """What `numerics` says that linear gives for these arguments of it."""
    arguments["dtype"] = arguments.get("dtype") or x.dtype
    return numerics.linear(x, w._raw_parts(num_threads=1), **arguments)


def in_fresh_python(code: str, timeout: float = 120, **environment: str) -> str:
    """The output of `code` in an interpreter of its own, which must end with return code 0."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLAS_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        timeout=timeout,
    )
    assert done.returncode == 0, f"return code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


_MXCSR = struct.Struct("<I")
_MXCSR_OFFSET = 28  # in glibc's fenv_t on x86-64, after the 28 bytes of the x87 unit
FLUSH_TO_ZERO, SUBNORMALS_ARE_ZERO = 0x8000, 0x0040
ROUND_DOWN, ROUND_UP, ROUND_TO_ZERO = 0x2000, 0x4000, 0x6000


def read_mxcsr() -> int:
    """This thread's word that controls SSE and AVX arithmetic."""
    return int(_MXCSR.unpack_from(_fenv(), _MXCSR_OFFSET)[0])


@contextlib.contextmanager
def mxcsr_bits(added: int) -> Iterator[None]:
    """Set bits of this thread's MXCSR, as a library built with -ffast-math may have left them."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        pytest.skip("sets the control word through glibc's fenv_t of x86-64")
    before = _fenv()
    changed = ctypes.create_string_buffer(before.raw, len(before))
    _MXCSR.pack_into(changed, _MXCSR_OFFSET, read_mxcsr() | added)
    _libm.fesetenv(changed)
    try:
        yield
    finally:
        _libm.fesetenv(before)


_libm = ctypes.CDLL("libm.so.6") if platform.libc_ver()[0] == "glibc" else None


def _fenv() -> ctypes.Array[ctypes.c_char]:
    buffer = ctypes.create_string_buffer(64)
    _libm.fegetenv(buffer)
    return buffer
