# SPDX-License-Identifier: Apache-2.0
"""linear where values or sizes are out of the ordinary, and its error against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import nibblas
from nibblas import numerics, schemes

from .cases import (
    BFLOAT16,
    FLOATS,
    FLUSH_TO_ZERO,
    ROUND_DOWN,
    ROUND_TO_ZERO,
    ROUND_UP,
    SUBNORMALS_ARE_ZERO,
    VARIANTS,
    Variant,
    assert_same_bits,
    bits,
    computes,
    contract,
    floats,
    in_fresh_python,
    mxcsr_bits,
    random_codes,
    random_scales,
    random_weight,
    random_x,
    read_mxcsr,
    variants,
)

INT4 = Variant("int4", "symmetric")
NAN_BITS = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0}
INFINITY = np.float32(np.inf)


# --- NaN, infinities, and sizes at the ends of the range


@computes
@floats
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 3, 4, 6, 13])
def test_what_is_not_finite_stays_in_its_row(compute, dtype, bad, rows, rng, target):
    for variant in VARIANTS:
        for group in (16, None):
            x = random_x(rng, (rows, 83), dtype)
            w = random_weight(rng, variant, (19, 83), group)
            clean = nibblas.linear(x, w, compute=compute)
            row = int(rng.integers(rows))
            x[row, rng.integers(83)] = bad
            y = nibblas.linear(x, w, compute=compute)
            assert_same_bits(y, contract(w, x, compute=compute), (w, row))
            others = np.arange(rows) != row
            assert_same_bits(y[others], clean[others], (w, row))
            if compute == "int8":
                assert (bits(y[row]) == NAN_BITS[dtype.name]).all()


@pytest.mark.emulated
@computes
@pytest.mark.parametrize("activation", [None, *numerics.ACTIVATIONS])
@floats
def test_every_nan_is_the_canonical_one(compute, activation, dtype, rng, target):
    """NaNs of any payload and sign, from x, from inf - inf, from the bias."""
    patterns = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FABCDEF], np.uint32)
    x = np.repeat(random_x(rng, (1, 40)), 7, axis=0)
    x[:5, 3] = patterns.view(np.float32)
    x[5, :2] = INFINITY, -INFINITY
    w = random_weight(rng, INT4, (18, 40), 16)
    bias = random_x(rng, (18,))
    bias[4] = patterns[3:4].view(np.float32)[0]
    bias[5] = -INFINITY
    y = nibblas.linear(x, w, bias, compute=compute, activation=activation, dtype=dtype)
    nan = np.isnan(y)
    assert nan[:6].sum() >= 5 * 18
    assert nan[6, 4]
    assert not nan[6, :4].any()
    assert (bits(y)[nan] == NAN_BITS[dtype.name]).all()
    expected = contract(w, x, bias=bias, compute=compute, activation=activation, dtype=dtype)
    assert_same_bits(y, expected)


SIZES = {
    "subnormal": 1e-41,
    "where r overflows": 3.7e-37,
    "just above": 3.8e-37,
    "where a is subnormal": 1e-36,
    "tiny": 1e-30,
    "huge": 1e30,
    "near the end": 3e38,
}


@computes
@variants
@pytest.mark.parametrize("size", SIZES)
def test_sizes_at_the_ends_of_the_range(compute, variant, size, rng, target):
    for group in (16, None):
        x = np.clip(rng.standard_normal((6, 50)), -1, 1).astype(np.float32)
        x *= np.float32(SIZES[size])
        x[1, 20:] = 0
        x[2] = np.abs(x[2])
        x[3, ::2] *= np.float32(1e-3)
        w = random_weight(rng, variant, (18, 50), group, codes=str(rng.choice(["any", "high"])))
        for dtype in FLOATS:
            y = nibblas.linear(x, w, compute=compute, dtype=dtype)
            assert_same_bits(y, contract(w, x, compute=compute, dtype=dtype), (w, dtype))
        if compute == "int8" and size in ("subnormal", "where r overflows"):
            assert not bits(y).any()  # +0: a and all codes are 0


@pytest.mark.emulated
@computes
def test_rows_of_zeros_and_signed_zeros(compute, rng, target):
    x = np.zeros((6, 70), np.float32)
    x[1::2] = -0.0
    x[4, 3] = 1e-45
    for variant in VARIANTS:
        for group in (16, None):
            w = random_weight(rng, variant, (17, 70), group)
            y = nibblas.linear(x, w, compute=compute)
            assert_same_bits(y, contract(w, x, compute=compute), w)
            assert not bits(y[[0, 1, 2, 3, 5]]).any()
            minus = np.full(17, -0.0, np.float32)  # +0 + -0 is +0
            assert not bits(nibblas.linear(x[:2], w, minus, compute=compute)).any()


@pytest.mark.parametrize("scale_dtype", ["float16", "float32", "bfloat16"])
@computes
def test_scales_at_the_ends_of_their_range(compute, scale_dtype, rng, target):
    ends = {
        "float16": [2.0**-24, 2.0**-14, 65504, -65504],
        "float32": [2.0**-149, 2.0**-126, 3.4e38, -3.4e38],
        "bfloat16": [2.0**-133, 2.0**-126, 3.38e38, -3.38e38],
    }[scale_dtype]
    dtype = BFLOAT16 if scale_dtype == "bfloat16" else scale_dtype
    scales = rng.choice(ends, (20, 5)).astype(np.float32).astype(dtype)
    codes = random_codes(rng, "int4", (20, 70))
    w = nibblas.pack(codes, scales, scheme="int4", group_size=16)
    for size in (1e-30, 1, 1e30):
        x = random_x(rng, (9, 70)) * np.float32(size)
        y = nibblas.linear(x, w, compute=compute)
        assert_same_bits(y, contract(w, x, compute=compute), size)
    assert_same_bits(w.dequantize(), numerics.dequantize(w._raw_parts()))


# --- the caller's floating-point environment


@computes
@pytest.mark.parametrize(
    "word",
    [FLUSH_TO_ZERO | SUBNORMALS_ARE_ZERO, ROUND_UP, ROUND_DOWN, ROUND_TO_ZERO | FLUSH_TO_ZERO],
    ids=hex,
)
def test_the_environment_of_the_caller_does_not_matter(compute, word, rng, target):
    scales = random_scales(rng, (260, 17), np.float32) * np.float32(1e-3)
    codes = random_codes(rng, "int4", (260, 530))
    w = nibblas.pack(codes, scales, scheme="int4", group_size=32)
    x = rng.standard_normal((40, 530), dtype=np.float32) * np.float32(1e-36)
    bias = rng.standard_normal(260, dtype=np.float32) * np.float32(1e-38)
    half = bias.astype(np.float16)
    dense = rng.standard_normal((33, 70), dtype=np.float32) * np.float32(1e-37)

    codes = rng.integers(0, 16, (33, 70), np.uint8)
    book = rng.uniform(-1, 1, 16).astype(np.float32)

    def results() -> list[np.ndarray]:
        planes = nibblas.quantize(dense, "int4", 32, scale_dtype="float32").planes
        table = nibblas.pack(codes, dense[:, :1], scheme="nf4", group_size=None, codebook=book)
        return [
            nibblas.linear(dense, table),
            nibblas.linear(x[:1], w, bias, compute=compute, num_threads=1),
            nibblas.linear(x, w, half, compute=compute, activation="gelu", num_threads=3),
            *nibblas.quantize_activations(x, 16),
            *planes.values(),
            w.dequantize(),
            w.dequantize("float16"),
            w.take([3, 1, 250]),
        ]

    expected = results()
    subnormal = (bits(expected[1]) & 0x7F800000) == 0  # or flushing would change nothing
    assert subnormal.mean() > 0.1
    before = read_mxcsr() & ~0x3F
    with mxcsr_bits(word):
        found = results()
        inside = read_mxcsr() & ~0x3F  # without the sticky flags
    assert inside == before | word  # the caller has the word that it came with
    assert read_mxcsr() & ~0x3F == before
    for one, same in zip(found, expected, strict=True):
        assert_same_bits(one, same)


@pytest.mark.parametrize("word", [0, FLUSH_TO_ZERO | SUBNORMALS_ARE_ZERO])
def test_workers_do_not_inherit_an_environment(word, tmp_path, rng):
    """Threads start with their creator's control word, so the pool is made under a foreign one."""
    with mxcsr_bits(0):
        pass  # skips where it cannot be set
    w = random_weight(rng, INT4, (800, 530), 32)
    x = random_x(rng, (250, 530)) * np.float32(1e-37)  # work for three threads, on one CPU too
    w.save(tmp_path / "w.safetensors")
    np.save(tmp_path / "x.npy", x)
    code = f"""
import ctypes, struct, numpy as np, nibblas
libm = ctypes.CDLL("libm.so.6")
w, x = nibblas.load({str(tmp_path / "w.safetensors")!r}), np.load({str(tmp_path / "x.npy")!r})
buffer = ctypes.create_string_buffer(64)
libm.fegetenv(buffer)
struct.pack_into("<I", buffer, 28, struct.unpack_from("<I", buffer, 28)[0] | {word})
libm.fesetenv(buffer)
y = [nibblas.linear(x, w, num_threads=4) for _ in range(20)]
libm.fesetenv(ctypes.c_void_p(-1))
assert all(np.array_equal(one.view("u4"), y[0].view("u4")) for one in y)
np.save({str(tmp_path / "y.npy")!r}, y[0])
"""
    in_fresh_python(code)
    assert_same_bits(np.load(tmp_path / "y.npy"), nibblas.linear(x, w, num_threads=1))


@pytest.mark.emulated
@pytest.mark.parametrize("scheme", ["int8", "uint8"])
@pytest.mark.parametrize("group", [None, 16, 32])
def test_every_activation_code_with_the_ends_of_the_weight_codes(scheme, group, target):
    """One row, whose sums in 16 bits must hold: its first value makes the others its codes."""
    depth = 256
    low, high = schemes.SCHEMES[scheme].code_min, schemes.SCHEMES[scheme].code_max
    codes = np.full((17, depth), high, schemes.SCHEMES[scheme].code_dtype)
    codes[::2] = low
    codes[5, ::3] = low
    scales = np.ones((17, depth // group if group else 1), np.float32)
    w = nibblas.pack(codes, scales, scheme=scheme, group_size=group)
    for code in range(-127, 128):
        x = np.full((1, depth), code, np.float32)
        x[0, :: group or depth] = 127
        assert np.array_equal(nibblas.linear(x, w), x @ codes.T.astype(np.float32)), code


# --- sizes


# A segment is 65,536 codes, and 65,536 * 127 * 255 = 2,122,383,360 < 2^31: the largest sum there
# is. One more code than a segment, and one less; three segments; and a round number.
@pytest.mark.parametrize("depth", [65_535, 65_536, 65_537, 70_000, 131_072, 131_073])
def test_deep_rows_without_groups(depth, rng, target):
    for variant, codes in (
        (Variant("uint8", "zero"), "high"),
        (Variant("int8", "symmetric"), "low"),
        (Variant("uint8", "min"), "ends"),
        (Variant("uint4", "zero_point"), "any"),
    ):
        w = random_weight(rng, variant, (17, depth), None, codes=codes)
        x = np.full((6, depth), 3.0, np.float32)  # every code is 127
        x[1] = -3.0
        x[2:5] = rng.choice(np.float32([-3, 3]), (3, depth))
        x[5] = rng.standard_normal(depth)
        y = nibblas.linear(x, w)
        assert_same_bits(y, contract(w, x), w)
        assert_same_bits(nibblas.linear(x[4], w), y[4], w)


@functools.lru_cache
def very_deep_problem(compute: str) -> tuple[np.ndarray, nibblas.PackedWeight, np.ndarray]:
    rng = np.random.default_rng(9)
    depth = {"int8": 140_000, "float32": 33_000}[compute]
    w = random_weight(rng, Variant("uint4", "min"), (1, depth), 4096)
    x = random_x(rng, (2, depth))
    return x, w, contract(w, x, compute=compute)


@computes
def test_rows_that_are_packed_in_several_passes(compute, target):
    """Rows are packed 64 MB at a time, but at least 510 of them: these take two passes."""
    x, w, expected = very_deep_problem(compute)
    strides = (0, x.itemsize)
    rows = np.lib.stride_tricks.as_strided(x, (513, x.shape[1]), strides, writeable=False)
    y = nibblas.linear(rows, w, compute=compute, dtype=np.float16)
    assert_same_bits(y, numerics.round_to(expected[:1], np.float16).repeat(513, axis=0))
    # Rows at irregular distances, into an output of the same kind.
    there = np.broadcast_to(x, (257, *x.shape))
    out = np.zeros((257, 3, 5), np.float32)[:, :2, 2:3]
    nibblas.linear(there, w, compute=compute, out=out)
    assert_same_bits(out, np.broadcast_to(expected, out.shape))


def test_a_last_pass_of_one_row(rng, target):
    """510 rows are packed at once where each takes so much; a single one may be in another way."""
    w = random_weight(rng, Variant("int8", "symmetric"), (17, 66_000), None)
    x = random_x(rng, (1, 66_000))
    y = nibblas.linear(np.broadcast_to(x, (511, 66_000)), w)
    assert_same_bits(y, np.broadcast_to(contract(w, x), y.shape))


@computes
@variants
@floats
def test_empty_sizes(compute, variant, dtype, rng, target):
    bias = random_x(rng, (20,), dtype)
    for group in (16, None):
        w = random_weight(rng, variant, (20, 50), group)
        for shape in ((0, 50), (3, 0, 50), (0, 4, 50)):
            y = nibblas.linear(np.zeros(shape, dtype), w, bias, compute=compute)
            assert y.shape == (*shape[:-1], 20)
            assert y.dtype == dtype
    for rows in (1, 5, 40):
        w = random_weight(rng, variant, (20, 0), None)
        x = np.zeros((rows, 0), dtype)
        y = nibblas.linear(x, w, bias, compute=compute, activation="gelu")
        expected = contract(w, x, bias=bias, compute=compute, activation="gelu")
        assert_same_bits(y, expected)
        assert not bits(nibblas.linear(x, w, compute=compute)).any()
        w = random_weight(rng, variant, (0, 50), None)
        y = nibblas.linear(np.ones((rows, 50), dtype), w, compute=compute)
        assert y.shape == (rows, 0)


@pytest.mark.parametrize(
    "book",
    [
        np.linspace(-1, -0.01, 16),
        np.linspace(0.01, 1, 16),
        np.full(16, -1),
        np.full(16, 1),
        np.zeros(16),
        np.linspace(-0.1, 0.1, 16),
        np.linspace(-0.13, 0.13, 16),
    ],
)
@computes
def test_codebooks_of_one_sign_and_of_any_width(book, compute, rng, target):
    """Narrow or wide operands, around any zero: whatever table a checkpoint brings."""
    codes = rng.integers(0, 16, (37, 300), np.uint8)
    scales = random_scales(rng, (37, 5), np.float32)
    w = nibblas.pack(codes, scales, scheme="nf4", group_size=64, codebook=book.astype(np.float32))
    for rows in (1, 3, 9):
        x = random_x(rng, (rows, 300))
        y = nibblas.linear(x, w, compute=compute)
        assert_same_bits(y, contract(w, x, compute=compute))
