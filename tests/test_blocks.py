# SPDX-License-Identifier: Apache-2.0
"""GGUF blocks: values and bytes against the package `gguf`, K-quants against numerics."""

from __future__ import annotations

import platform

import numpy as np
import pytest

import nibblas
import nibblas._nibblas as native
from nibblas.io import gguf
from nibblas.io._gguf_file import TYPES
from nibblas.numerics import k_quants

package = pytest.importorskip("gguf")
oracle = package.quants
QTYPES = {q.name: q for q in package.GGMLQuantizationType}

SHAPES = native.block_shapes()
BLOCK_TYPES = tuple(SHAPES)
K_QUANTS = tuple(k_quants.K_QUANTS)
WRITTEN_BY_PACKAGE = tuple(name for name in BLOCK_TYPES if name not in K_QUANTS)


def random_blocks(rng: np.random.Generator, name: str, rows: int, blocks: int) -> np.ndarray:
    return rng.integers(0, 256, (rows, blocks * SHAPES[name][1]), np.uint8)


def expect_same_floats(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, signs of zero included; NaN is the quiet one where any is expected."""
    nan = np.isnan(expected)
    bits = np.where(nan, np.uint32(0x7FC00000), expected.view(np.uint32))
    np.testing.assert_array_equal(found.view(np.uint32), bits)


def package_dequantize(raw: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return oracle.dequantize(raw, QTYPES[name])


def package_quantize(x: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return oracle.quantize(x, QTYPES[name])


def test_the_table_of_types_is_the_package_s():
    for name, (elements, size, groups) in SHAPES.items():
        assert package.GGML_QUANT_SIZES[QTYPES[name]] == (elements, size)
        assert elements % groups == 0
    for number, (name, elements, size) in TYPES.items():
        assert QTYPES[name] == number
        assert package.GGML_QUANT_SIZES[QTYPES[name]] == (elements, size)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_dequantize_gives_the_package_s_bits(name, target, rng):
    # 1 to 300 blocks: parts of a batch of 16, more than one task, and infinite and NaN scales.
    for rows, blocks in ((1, 1), (3, 5), (2, 16), (1, 33), (7, 300)):
        raw = random_blocks(rng, name, rows, blocks)
        expected = package_dequantize(raw, name)
        for threads in (1, 2, 3):
            found = gguf.dequantize(raw, name, num_threads=threads)
            assert found.shape == expected.shape
            expect_same_floats(found, expected)


def test_every_scale_and_code_of_a_block_decodes_as_in_the_package(target):
    # All 65,536 float16 scales, subnormals, infinities and NaN among them, with the same codes.
    raw = np.zeros((65536, 18), np.uint8)
    raw[:, :2] = np.arange(65536, dtype="<u2")[:, None].view(np.uint8)
    raw[:, 2:] = np.arange(16) * 17
    for name in ("Q4_0", "IQ4_NL"):
        expect_same_floats(gguf.dequantize(raw, name), package_dequantize(raw, name))
    # All 256 bytes of e8m0 with all codes.
    raw = np.zeros((256, 17), np.uint8)
    raw[:, 0] = np.arange(256)
    raw[:, 1:] = np.arange(16) * 17
    expect_same_floats(gguf.dequantize(raw, "MXFP4"), package_dequantize(raw, "MXFP4"))


INVERSE_OVERFLOWS = (4, 11)  # of those below: 1 / d is infinite in some rows


def weights_to_quantize(rng: np.random.Generator, elements: int) -> list[np.ndarray]:
    """Matrices of 13 blocks a row where rounding, ties, zeros and ranges matter."""
    shape = (9, 13 * elements)
    normal = rng.standard_normal(shape)
    power = np.float32(2) ** rng.integers(-126, 127, (9, 1)).astype(np.float32)
    below_powers = power.view(np.int32) - rng.integers(0, 100, shape, dtype=np.int32)
    cases = [
        normal,
        normal * 1e-4,
        np.rint(normal * 4) / 4,
        rng.integers(-16, 17, shape) * 0.5,
        normal * 1e-38 * 10.0 ** rng.integers(-7, 1, (9, 1)),  # subnormals, 1 / d overflows
        normal * 1e37,  # d overflows float16
        np.where(rng.random(shape) < 0.5, 0, normal),
        np.zeros(shape),
        -np.zeros(shape),
        np.full(shape, -2.5),
        np.abs(normal) + 1,
        below_powers.view(np.float32),
    ]
    return [np.asarray(case, np.float32) for case in cases]


@pytest.mark.parametrize("name", WRITTEN_BY_PACKAGE)
def test_quantize_gives_the_package_s_bytes(name, target, rng):
    for case, x in enumerate(weights_to_quantize(rng, SHAPES[name][0])):
        if case in INVERSE_OVERFLOWS and platform.machine() not in ("x86_64", "AMD64"):
            continue  # the package converts infinities to uint8, which no two CPUs do alike
        expected = package_quantize(x, name)
        for threads in (1, 3):
            found = gguf.quantize(x, name, num_threads=threads)
            np.testing.assert_array_equal(found, expected, err_msg=f"case {case}")


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_follow_numerics(name, target, rng):
    kind = k_quants.K_QUANTS[name]
    heavy = np.clip(rng.standard_t(3, (5, 768)), -100, 100)
    cases = [
        *weights_to_quantize(rng, kind.elements)[:5],
        heavy,
        heavy * 10.0 ** rng.integers(-44, 5, heavy.shape),
        -np.abs(heavy) - 3,  # no min above the largest
        np.where(np.arange(768) % 96 < 48, 0, heavy),
        1 + heavy * 1e-3,
        heavy * 1e-41,
        heavy * 5e3,
    ]
    names = {"d": "block_scales", "dmin": "block_mins"}
    for case, weights in enumerate(cases):
        x = np.asarray(weights, np.float32)
        expected = k_quants.quantize_blocks(x, name)
        raw = gguf.quantize(x, name, num_threads=1 + case % 3)
        found = native.unpack_blocks(raw, name)
        for part, values in expected.items():
            parts = found[names.get(part, part)]
            if part == "scales" and kind.sub_low:
                parts = parts.view(np.int8)
            np.testing.assert_array_equal(parts, values, err_msg=f"case {case}, {part}")


# Relative RMS errors to stay below: what a search like that of llama.cpp's writers (without an
# importance matrix), written anew for the comparison, came to on independent normal values and on
# Student's t with 4 degrees of freedom.
REFERENCE_ERROR = {
    "Q2_K": (0.299, 0.347),
    "Q3_K": (0.154, 0.188),
    "Q4_K": (0.0720, 0.0877),
    "Q5_K": (0.0363, 0.0441),
    "Q6_K": (0.0178, 0.0230),
    "IQ4_NL": (0.0767, 0.0941),
    "IQ4_XS": (0.0772, 0.0950),
}


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_are_better_than_the_reference(name, rng):
    samples = rng.standard_normal((256, 512)), rng.standard_t(4, (256, 512))
    for sample, reference in zip(samples, REFERENCE_ERROR[name], strict=True):
        x = sample.astype(np.float32)
        error = gguf.dequantize(gguf.quantize(x, name), name) - x
        assert np.linalg.norm(error) < reference * np.linalg.norm(x)


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_keep_a_constant(name):
    """One value for all, which has no range for a scale, is kept to the precision of float16."""
    for value in (0.0, 1.0, -3.0):
        x = np.full((2, 256), value, np.float32)
        back = gguf.dequantize(gguf.quantize(x, name), name)
        assert np.abs(back - x).max() <= abs(value) * 2**-11


def test_float_types_are_the_package_s(rng):
    special = np.array([0x7FC12345, 0xFF812345, 0x7F7FFFFF, 0x7F800000, 1], np.uint32)
    x = np.concatenate([rng.standard_normal(91).astype(np.float32), special.view(np.float32)])
    x = x.reshape(2, 3, 16)
    for name in ("F32", "F16", "BF16"):
        expected = package_quantize(x, name)
        with np.errstate(over="ignore"):
            found = gguf.quantize(x, name)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
        back = gguf.dequantize(found, name)
        np.testing.assert_array_equal(back, package_dequantize(expected, name))
        assert back.dtype == np.float32


@pytest.mark.parametrize("qtype", ["q4_K", "Q4_K", QTYPES["Q4_K"], 12, np.int64(12)])
def test_a_type_is_a_name_a_number_or_the_package_s_member(qtype, rng):
    x = rng.standard_normal((2, 3, 256)).astype(np.float32)
    raw = gguf.quantize(x, qtype)
    assert raw.shape == (2, 3, 144)
    np.testing.assert_array_equal(gguf.dequantize(raw, qtype), gguf.dequantize(raw, "Q4_K"))


def test_any_layout_and_element_type_of_an_array_is_taken(rng):
    x = rng.standard_normal((64, 96)).astype(np.float32)
    expected = gguf.quantize(x, "Q8_0")
    np.testing.assert_array_equal(gguf.quantize(np.asfortranarray(x), "Q8_0"), expected)
    np.testing.assert_array_equal(gguf.quantize(x.astype(np.float64), "Q8_0"), expected)
    values = gguf.dequantize(expected, "Q8_0")
    np.testing.assert_array_equal(gguf.dequantize(np.asfortranarray(expected), "Q8_0"), values)
    np.testing.assert_array_equal(gguf.dequantize(expected.view(np.int8), "Q8_0"), values)
    assert gguf.quantize(x[:0], "Q8_0").shape == (0, 102)
    assert gguf.dequantize(expected[:, :0], "Q8_0").shape == (64, 0)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_what_cannot_be_quantized_is_a_value_error(name, target):
    x = np.ones((2, 512), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        x[1, 511] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            gguf.quantize(x, name)
    if name in K_QUANTS:
        for large in (1e9, 3e38):
            x[1, 511] = large
            with pytest.raises(ValueError, match=f"too large for the float16 scales of {name}"):
                gguf.quantize(x, name)
            x[1, 511] = 1
            with pytest.raises(ValueError, match="too large"):
                k_quants.quantize_blocks(np.full((1, 256), large, np.float32), name)
    with pytest.raises(ValueError, match="multiple of"):
        gguf.quantize(x[:, :31], name)
    with pytest.raises(ValueError, match="multiple of"):
        gguf.dequantize(np.zeros(SHAPES[name][1] + 1, np.uint8), name)


def test_wrong_types_are_type_errors():
    x = np.ones(256, np.float32)
    for call in (gguf.quantize, gguf.dequantize, gguf.from_blocks):
        for bad in (None, 1.0, True, b"Q4_0"):
            with pytest.raises(TypeError, match="qtype"):
                call(x, bad)
        for unknown in ("Q4_2", "IQ2_XXS", 4, 999, -1):
            with pytest.raises(ValueError, match="qtype"):
                call(x, unknown)
        with pytest.raises(TypeError, match="NumPy array"):
            call([1.0], "Q4_0")
    with pytest.raises(TypeError, match="real numbers"):
        gguf.quantize(x.astype(complex), "Q4_0")
    with pytest.raises(TypeError, match="num_threads"):
        gguf.quantize(x, "Q4_0", num_threads="all")


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_no_byte_beyond_the_blocks_is_read(name, target, rng, guarded):
    elements = SHAPES[name][0]
    for blocks in (1, 17):
        raw = random_blocks(rng, name, 1, blocks)
        x = rng.standard_normal((1, blocks * elements)).astype(np.float32)
        for at in ("start", "end"):
            gguf.dequantize(guarded(raw, at), name)
            native.unpack_blocks(guarded(raw, at), name)
            gguf.quantize(guarded(x, at), name)


def test_results_do_not_depend_on_the_target(rng):
    x = rng.standard_t(3, (33, 768)).astype(np.float32)
    for name in BLOCK_TYPES:
        found = set()
        for target in nibblas.available_targets():
            with nibblas.use_target(target):
                found.add(gguf.quantize(x, name).tobytes())
        assert len(found) == 1


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "F16", "BF16"])
def test_dequantize_into_out(name, rng):
    raw = gguf.quantize(rng.standard_normal((3, 5, 256), dtype=np.float32), name)
    expected = gguf.dequantize(raw, name)
    out = np.zeros((3, 5, 256), np.float32)
    assert gguf.dequantize(raw, name, out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match=r"out must have shape \(3, 5, 256\).*got \(3, 5, 255\)"):
        gguf.dequantize(raw, name, out[..., :255].copy())
    with pytest.raises(TypeError, match="float64"):
        gguf.dequantize(raw, name, out.astype(np.float64))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        gguf.dequantize(raw, name, out)


def test_dequantize_into_its_own_blocks_is_refused():
    memory = np.zeros(4096, np.uint8)
    out = memory[:1024].view(np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        gguf.dequantize(memory[:144], "Q4_K", out)
