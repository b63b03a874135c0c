# SPDX-License-Identifier: Apache-2.0
"""quantize as users call it: its choices, its defaults and what it refuses."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

import nibblas
from nibblas.schemes import SCHEMES

from .quantize_cases import QUANTIZED

SCHEME_NAMES = tuple(dict.fromkeys(variant.scheme for variant in QUANTIZED))
FLOAT_SCALES = [
    variant for variant in QUANTIZED if "float16" in SCHEMES[variant.scheme].scale_types
]
VARIANTS = [
    (name, offset, group)
    for (name, offset), group in itertools.product(QUANTIZED, (None, 16, 32))
    if SCHEMES[name].fixed_group in (None, group)
]
variants = pytest.mark.parametrize(("scheme", "offset", "group"), VARIANTS)
schemes = pytest.mark.parametrize("scheme", SCHEME_NAMES)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def dense(rng, cols=20, depth=100) -> np.ndarray:
    return rng.standard_normal((cols, depth), dtype=np.float32)


def same_planes(one: nibblas.PackedWeight, other: nibblas.PackedWeight) -> bool:
    assert one.planes.keys() == other.planes.keys()
    return all(
        plane.dtype == other.planes[name].dtype and np.array_equal(plane, other.planes[name])
        for name, plane in one.planes.items()
        if plane.dtype.kind in "iu" or not np.isnan(plane).any()
    )


@schemes
def test_auto_group_size(scheme, rng):
    wide = nibblas.quantize(dense(rng, depth=300), scheme)
    sizes = {"ternary": 256, "nf4": 64, "fp4": 64, "nvfp4": 16}
    assert wide.group_size == (None if wide.scheme.endswith("8") else sizes.get(scheme, 32))
    assert nibblas.quantize(dense(rng, depth=16), scheme).group_size is None


@pytest.mark.parametrize("size", [100, 128, 101, 4096, 99999])
def test_group_of_at_least_the_depth_is_per_channel(size, rng):
    w = nibblas.quantize(dense(rng), "int4", size)
    assert w.group_size is None
    assert w.scale_dtype == "float32"


@pytest.mark.parametrize("size", [1, 8, 15, 17, 24, 48, 96])
def test_quantize_refuses_group_size(size, rng):
    with pytest.raises(ValueError, match=rf"power of two from 16 to 4096, got {size}"):
        nibblas.quantize(dense(rng), "int4", size)


def test_quantize_refuses_large_group_size(rng):
    with pytest.raises(ValueError, match="8192"):
        nibblas.quantize(dense(rng, 1, 8200), "int4", 8192)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "int9"}, ValueError, "unknown scheme 'int9'.*int8.*uint4"),
        ({"scheme": "nvfp4", "group_size": 32}, ValueError, "of nvfp4 must be 16, got 32"),
        (
            {"scheme": "mxfp4", "scale_dtype": "float16"},
            ValueError,
            "must be 'e8m0', got 'float16'",
        ),
        ({"scheme": 4}, TypeError, "scheme must be a string"),
        ({"group_size": 0}, ValueError, "positive, got 0"),
        ({"group_size": -32}, ValueError, "positive, got -32"),
        ({"group_size": 32.0}, TypeError, "int or None, got 32.0"),
        ({"group_size": True}, TypeError, "int or None, got True"),
        ({"group_size": "big"}, ValueError, "\"auto\", got 'big'"),
        ({"rule": "best"}, ValueError, "'mse' or 'absmax', got 'best'"),
        ({"rule": None}, TypeError, "rule must be a string"),
        ({"offset": "min"}, ValueError, "offset of int4 must be 'symmetric', got 'min'"),
        ({"scheme": "uint4", "offset": "symmetric"}, ValueError, "'zero_point' or 'min'"),
        ({"scale_dtype": "float64"}, TypeError, "scale_dtype must be one of .*, got float64"),
        ({"scale_dtype": np.int8}, TypeError, "got int8"),
        ({"num_threads": 0}, ValueError, "at least 1, got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads must be an int"),
    ],
)
def test_quantize_refuses_arguments(arguments, error, message, rng):
    with pytest.raises(error, match=message):
        nibblas.quantize(dense(rng), **arguments)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex64, np.dtype(">f4"), object])
def test_quantize_refuses_types_and_says_how_to_convert(dtype):
    with pytest.raises(TypeError, match=r"float32, float16 or bfloat16.*weight\.astype"):
        nibblas.quantize(np.zeros((4, 64), dtype))


@pytest.mark.parametrize("weight", [[[1.0, 2.0]], 3.0, None, "w"])
def test_quantize_refuses_what_is_no_array(weight):
    with pytest.raises(TypeError, match=r"weight must be a NumPy array.*got"):
        nibblas.quantize(weight)


def test_quantize_refuses_masked_arrays(rng):
    with pytest.raises(TypeError, match="masked"):
        nibblas.quantize(np.ma.masked_less(dense(rng), 0))


@pytest.mark.parametrize("shape", [(), (64,), (2, 3, 64)])
def test_quantize_refuses_other_dimensions(shape):
    with pytest.raises(ValueError, match=r"matrix \(N, K\), got shape"):
        nibblas.quantize(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("scheme", "offset"), QUANTIZED)
@pytest.mark.parametrize("place", [(0, 0), (19, 99), (16, 63)])
def test_quantize_refuses_weights_that_are_not_finite(scheme, offset, bad, place, rng):
    weight = dense(rng)
    weight[place] = bad
    with pytest.raises(ValueError, match=r"(?i)finite|nan|infinite"):
        nibblas.quantize(weight, scheme, offset=offset)


@pytest.mark.parametrize(("scheme", "offset"), FLOAT_SCALES)
def test_quantize_refuses_scales_too_large(scheme, offset, rng):
    weight = dense(rng)
    weight[3, 5] = 1e30
    with pytest.raises(ValueError, match="scale_dtype"):
        nibblas.quantize(weight, scheme, 32, offset=offset)
    w = nibblas.quantize(weight, scheme, 32, offset=offset, scale_dtype="float32", rule="absmax")
    assert w.dequantize()[3, 5] == pytest.approx(1e30, rel=0.11)  # 14/127 of iq4_nl


@pytest.mark.parametrize("scale_dtype", ["float16", "float32", "bfloat16", np.float32])
@pytest.mark.parametrize(("scheme", "offset"), FLOAT_SCALES)
def test_scale_dtype(scheme, offset, scale_dtype, rng):
    w = nibblas.quantize(dense(rng), scheme, 32, scale_dtype=scale_dtype, offset=offset)
    name = scale_dtype if isinstance(scale_dtype, str) else np.dtype(scale_dtype).name
    assert w.scale_dtype == name
    assert w.unpack()["scales"].dtype == (BFLOAT16 if name == "bfloat16" else name)
    assert same_planes(nibblas.pack(**w.unpack()), w)


@variants
def test_quantize_any_strides(scheme, offset, group, rng):
    weight = dense(rng)
    expected = nibblas.quantize(weight, scheme, group, offset=offset)
    wide = np.zeros((40, 300), np.float32)
    wide[::2, ::3] = weight
    for view in (np.asfortranarray(weight), wide[::2, ::3], weight[::-1, ::-1].copy()[::-1, ::-1]):
        found = nibblas.quantize(view, scheme, group, offset=offset)
        assert same_planes(found, expected)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
@pytest.mark.parametrize(("scheme", "offset"), QUANTIZED)
def test_quantize_narrow_types_as_their_float32_values(scheme, offset, dtype, rng):
    weight = dense(rng).astype(dtype)
    found = nibblas.quantize(weight, scheme, offset=offset)
    expected = nibblas.quantize(weight.astype(np.float32), scheme, offset=offset)
    assert same_planes(found, expected)


def test_quantize_does_not_depend_on_threads(rng):
    weight = dense(rng, 100, 256)
    one = nibblas.quantize(weight, num_threads=1)
    assert same_planes(nibblas.quantize(weight, num_threads=3), one)


@schemes
def test_quantize_reads_a_read_only_weight_and_leaves_it(scheme, rng):
    weight = dense(rng)
    before = weight.copy()
    weight.flags.writeable = False
    nibblas.quantize(weight, scheme)
    assert np.array_equal(weight, before)


@schemes
@pytest.mark.parametrize("shape", [(0, 64), (5, 0), (0, 0)])
def test_empty_weights(scheme, shape):
    w = nibblas.quantize(np.zeros(shape, np.float32), scheme)
    assert w.shape == shape
    assert w.group_size is None or shape[1] > w.group_size
    assert w.bits_per_weight == 0
    assert w.dequantize().shape == shape
    assert w.unpack()["codes"].shape == shape
    assert same_planes(w.copy(), w)
    repr(w)


@schemes
def test_all_zero_weights(scheme):
    w = nibblas.quantize(np.zeros((3, 70), np.float32), scheme)
    assert not w.dequantize().any()
