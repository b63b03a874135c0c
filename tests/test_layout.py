# SPDX-License-Identifier: Apache-2.0
"""The native planes are those of the written formula, byte for byte, and read back as written."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import nibblas
from nibblas import _nibblas, numerics
from nibblas.schemes import SCHEMES, plane_specs

from .cases import (
    ALL_VARIANTS,
    GROUPS,
    TARGETS,
    VARIANTS,
    all_variants,
    assert_same_bits,
    contract,
    random_codes,
    random_parameters,
    random_weight,
    random_x,
    stored_group,
    tail_depth,
    variants,
    variants_and_groups,
)

WIDTHS = range(1, 9)
widths = pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"{width}bit")


def formula(codes: np.ndarray, width: int, group: int | None) -> list[np.ndarray]:
    """The planes, element by element, as the format describes them.

    Byte [p, j, c, i] of a plane of b bits holds at bits b t .. b t + b - 1 the code of output
    16 p + c at k = (8 / b) 4 j + 4 t + i. A code of 6 bits is a plane of 4 and one of 2, and so on,
    its low bits first. K is rounded up to 64, or to the group if that is larger.
    """
    cols, depth = codes.shape
    step = max(group or 0, 64)
    kp = -(-depth // step) * step
    planes, low = [], 0
    for b in (8, 4, 2, 1):
        if not width & b:
            continue
        plane = np.zeros((-(-cols // 16), kp * b // 32, 16, 4), np.uint8)
        for n in range(cols):
            for k in range(depth):
                per_byte = 8 // b
                j, rest = divmod(k, per_byte * 4)
                t, i = divmod(rest, 4)
                part = int(codes[n, k]) >> low & ((1 << b) - 1)
                plane[n // 16, j, n % 16, i] |= part << (b * t)
        planes.append(plane)
        low += b
    return planes


@widths
@pytest.mark.parametrize(
    ("cols", "depth", "group"), [(1, 1, None), (17, 70, 32), (3, 130, 128), (33, 64, None)]
)
def test_planes_are_the_formula(width, cols, depth, group, rng, target):
    codes = rng.integers(0, 1 << width, (cols, depth), np.uint8)
    found = _nibblas.pack_codes(codes, width, group or 0)
    expected = formula(codes, width, group)
    assert len(found) == len(expected)
    for plane, same in zip(found, expected, strict=True):
        assert_same_bits(plane, same, (cols, depth, group))
        assert plane.flags.c_contiguous
        assert plane.ctypes.data % 64 == 0


@widths
@hypothesis.example(cols=0, depth=5, group=None, seed=0)
@hypothesis.example(cols=5, depth=0, group=None, seed=0)
@hypothesis.settings(max_examples=100)
@hypothesis.given(
    cols=st.integers(1, 70),
    depth=st.integers(1, 300) | st.sampled_from([511, 512, 513, 777, 4097]),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 2**32 - 1),
)
def test_planes_of_any_shape_and_back(width, cols, depth, group, seed):
    group = None if group is None or group >= depth else group
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << width, (cols, depth), np.uint8)
    expected = numerics.pack_planes(codes, width, group)
    for name in TARGETS:
        with nibblas.use_target(name):
            found = _nibblas.pack_codes(codes, width, group or 0, 2)
        for plane, same in zip(found, expected, strict=True):
            assert_same_bits(plane, same, name)
    assert np.array_equal(numerics.unpack_planes(found, width, codes.shape), codes)


@widths
@pytest.mark.parametrize("high_bits", [0x00, 0xFF])
def test_each_bit_has_one_place(width, high_bits, target):
    """One code at a time is not 0 (or the only 0): it shows in its own bytes and in no others."""
    mask = np.uint8((1 << width) - 1)
    base = np.full((16, 64), high_bits & mask, np.uint8)
    ground = np.concatenate([p.reshape(-1) for p in _nibblas.pack_codes(base, width, 0)])
    seen = np.zeros_like(ground)
    for n in range(16):
        for k in range(64):
            codes = base.copy()
            codes[n, k] ^= mask
            planes = _nibblas.pack_codes(codes, width, 0)
            changed = np.concatenate([p.reshape(-1) for p in planes]) ^ ground
            assert np.unpackbits(changed).sum() == width
            assert not (seen & changed).any()
            seen |= changed
    assert (seen == 0xFF).all()  # and together they fill the planes


@widths
def test_pack_any_strides_and_threads(width, rng, target):
    codes = rng.integers(0, 1 << width, (300, 1100), np.uint8)
    expected = numerics.pack_planes(codes, width, None)
    wide = np.zeros((600, 3300), np.uint8)
    wide[::2, ::3] = codes
    for there in (codes, np.asfortranarray(codes), wide[::2, ::3], np.flip(np.flip(codes).copy())):
        for threads in (1, 2, 3):
            found = _nibblas.pack_codes(there, width, 0, threads)
            for plane, same in zip(found, expected, strict=True):
                assert_same_bits(plane, same)
    same_everywhere = np.broadcast_to(codes[:, :1], (300, 70))
    expected = numerics.pack_planes(same_everywhere, width, None)
    for plane, same in zip(_nibblas.pack_codes(same_everywhere, width, 0), expected, strict=True):
        assert_same_bits(plane, same)


def test_pack_codes_refuses(rng):
    codes = np.zeros((4, 64), np.uint8)
    for width in (0, 9, -1):
        with pytest.raises(ValueError, match="1 to 8 bits"):
            _nibblas.pack_codes(codes, width, 0)
    with pytest.raises(TypeError, match="uint8"):
        _nibblas.pack_codes(codes.astype(np.int16), 4, 0)
    with pytest.raises(ValueError, match="codes"):
        _nibblas.pack_codes(codes[0], 4, 0)


# --- whole weights


@variants_and_groups
def test_all_planes_of_a_weight(variant, group, rng, target):
    """Codes, scales and offsets are where the format says, and everything else is 0."""
    scheme = SCHEMES[variant.scheme]
    shape = (19, tail_depth(group))
    w = random_weight(rng, variant, shape, group)
    parts = w._raw_parts()
    panels = 2
    stored_groups = w.planes["scales"].shape[1]
    for plane, same in zip(
        [w.planes[name] for name in scheme.code_planes],
        numerics.pack_planes(parts["codes"], scheme.bits, group, two_level=scheme.two_level),
        strict=True,
    ):
        assert_same_bits(plane, same)
    kp = numerics.padded_depth(shape[1], group, two_level=scheme.two_level)
    group = stored_group(variant.scheme, group, shape[1])
    assert stored_groups == (1 if group is None else kp // group)
    if scheme.nibble_mins:
        parts["scales"] |= parts.pop("mins") << 4
    for name in ("scales", "zero_points", "mins", "super_scales", "super_mins"):
        assert (name in w.planes) == (name in parts)
        if name in parts:
            values = parts[name]
            values = values.view(np.uint16) if values.dtype.name == "bfloat16" else values
            stored = kp // 256 if name.startswith("super") else stored_groups
            expected = numerics.pack_groups(values, panels, stored)
            if name == "zero_points" and values.dtype == np.uint8 and scheme.bits <= 3:
                pairs = np.pad(expected, ((0, 0), (0, stored % 2), (0, 0)))
                expected = pairs[:, 0::2] | pairs[:, 1::2] << 4
            assert_same_bits(w.planes[name], expected, name)
    offset_plane = w.planes.get("zero_points", w.planes.get("mins", w.planes["scales"]))
    specs = plane_specs(
        scheme,
        shape,
        group,
        scale_type=w.scale_dtype,
        offset=w.offset,
        offset_type={"uint16": "bfloat16"}.get(offset_plane.dtype.name, offset_plane.dtype.name),
        has_input_order=False,
    )
    assert {name: (p.dtype.name, p.shape) for name, p in w.planes.items()} == dict(specs)


@all_variants
@pytest.mark.parametrize("ordered", [True, False])
@hypothesis.settings(max_examples=10)
@hypothesis.given(
    cols=st.integers(1, 40),
    depth=st.integers(1, 300),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 999),
)
def test_pack_and_unpack_are_inverse(variant, ordered, cols, depth, group, seed):
    rng = np.random.default_rng(seed)
    scheme = SCHEMES[variant.scheme]
    codes = random_codes(rng, variant.scheme, (cols, depth))
    stored = stored_group(variant.scheme, group, depth)
    given = random_parameters(rng, variant, codes.shape, stored)
    if not ordered:
        given["input_order"] = rng.permutation(depth)
    for name in TARGETS:
        with nibblas.use_target(name):
            group_size = scheme.fixed_group or stored
            w = nibblas.pack(codes, scheme=variant.scheme, group_size=group_size, **given)
            parts = w.unpack(num_threads=2)
        assert_same_bits(parts["codes"], codes, name)
        assert_same_bits(parts["scales"], given["scales"], name)
        again = nibblas.pack(**parts)
        assert again.planes.keys() == w.planes.keys()
        for plane, values in w.planes.items():
            assert_same_bits(again.planes[plane], values, plane)
        assert repr(again) == repr(w)


# --- input_order


@variants
@pytest.mark.parametrize("group", [16, 64, None], ids=lambda group: f"g{group}")
def test_input_order_permutes_inputs(variant, group, rng, target):
    """Position j holds input order[j]: the same as a weight and an x that are sorted already."""
    depth = 150
    w = random_weight(rng, variant, (19, depth), group, ordered=False)
    parts = w.unpack()
    order = parts["input_order"]
    assert sorted(order) == list(range(depth))
    codes = parts.pop("codes")
    if w.offset == "symmetric" and not SCHEMES[variant.scheme].signed:
        assert parts["zero"] == w._zero
    sorted_parts = {**parts, "codes": codes[:, order]}
    del sorted_parts["input_order"]
    plain = nibblas.pack(**sorted_parts)
    for name, plane in plain.planes.items():
        assert_same_bits(w.planes[name], plane, name)
    assert_same_bits(w.planes["input_order"], order.astype(np.int32))
    for rows in (1, 7):
        x = random_x(rng, (rows, depth))
        for compute in ("int8", "float32"):
            y = nibblas.linear(x, w, compute=compute)
            assert_same_bits(y, nibblas.linear(x[:, order], plain, compute=compute))
            assert_same_bits(y, contract(w, x, compute=compute))
    assert_same_bits(w.dequantize()[:, order], plain.dequantize())
    assert_same_bits(w.take([18, 0])[:, order], plain.take([18, 0]))


def test_variants_cover_the_registry():
    """The lists that the kernel tests walk over leave out no scheme and no offset."""
    assert {v.scheme for v in ALL_VARIANTS} == set(SCHEMES)
    for name, scheme in SCHEMES.items():
        assert set(scheme.offsets) <= {v.offset for v in ALL_VARIANTS if v.scheme == name}
    ways = {(SCHEMES[v.scheme].bits, SCHEMES[v.scheme].codebook_dtype) for v in VARIANTS}
    assert {2, 3, 4, 5, 6, 8} == {bits for bits, _ in ways}
    assert {None, "int8", "float32"} == {codebook for _, codebook in ways}
