# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of weight quantization, against the written rule one scalar at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nibblas import numerics
from nibblas.numerics import groups

F32 = np.float32
SCALE_TYPES = ("float16", "float32", "bfloat16")
KINDS = [(8, "symmetric"), (4, "symmetric"), (8, "zero_point"), (4, "zero_point")]
KINDS += [(8, "min"), (4, "min"), (2, "symmetric"), (3, "symmetric"), (6, "symmetric")]
KINDS += [(1, "zero_point"), (3, "zero_point"), (1, "min"), (2, "min"), (3, "min")]
every_kind = pytest.mark.parametrize(("bits", "offset"), KINDS)


def stored(value: np.float32, scale_dtype: str) -> np.float32:
    rounded = numerics.round_to(np.array([value], F32), scale_dtype)
    return numerics.scales_to_float32(rounded)[0]


def clamp(value: np.float32, low: int, high: int) -> int:
    return int(min(max(value, low), high))


def written_rule(w, bits, offset, rule, scale_dtype, ternary=False):
    """codes, scale, and zero point or min of one group, in scalars of float32."""
    half = 1 if ternary else 2 ** (bits - 1)
    name = "ternary" if ternary else ("int" if offset == "symmetric" else "uint") + str(bits)
    tried = numerics.candidates(name, offset, rule)
    if offset == "symmetric":
        low, high = -half, 1 if ternary else half - 1
        m = w[0]
        for v in w:
            if abs(v) > abs(m):
                m = v
        raw = [abs(m) / F32(high)]
        raw += [(abs(m) if ternary else m) / F32(d) for d in tried]
        candidates = [(stored(s, scale_dtype), 0) for s in raw]

        def integer(v, s, _):
            return clamp(np.rint(v / s), low, high)
    elif offset == "zero_point":
        qmax = 2**bits - 1
        lo, hi = min(F32(0), min(w)), max(F32(0), max(w))
        candidates = []
        for c in (1, *tried):
            s = stored((hi * F32(c) - lo * F32(c)) / F32(qmax), scale_dtype)
            zp = clamp(np.rint(-(lo * F32(c)) / s), 0, qmax) if s else 0
            candidates.append((s, zp))

        def integer(v, s, zp):
            return clamp(np.rint(v / s) + F32(zp), 0, qmax) - zp
    else:
        qmax = 2**bits - 1
        min_dtype = "float32" if scale_dtype == "bfloat16" else scale_dtype
        lo, hi = min(w), max(w)  # of equals Python takes the first
        r = hi - lo
        raw = [(lo, r), *((lo + r * F32(start), r * F32(width)) for start, width in tried)]
        candidates = [
            (stored(width / F32(qmax), scale_dtype), stored(start, min_dtype))
            for start, width in raw
        ]

        def integer(v, s, m):
            return clamp(np.rint((v - m) / s), 0, qmax)

    best = None
    for s, extra in candidates:
        e = F32(np.inf)
        if s != 0 and np.isfinite(s):
            e = F32(0)
            for v in w:
                off = v - extra if offset == "min" else v
                r = numerics.fma(F32(-integer(v, s, extra)), s, off)[()]
                e = numerics.fma(r, r, e)[()]
        if best is None or e < best[0]:
            best = e, s, extra
    base = half if offset == "symmetric" else 0
    _, s, extra = best
    if s == 0:
        return [base] * len(w), s, extra if offset == "min" else 0
    if offset == "zero_point":
        base = extra
    return [integer(v, s, extra) + base for v in w], s, extra


def weights_like(rng, cols, depth):
    """Rows of very different kinds: bell-shaped, one outlier, one-sided, few values, zeros."""
    w = rng.standard_normal((cols, depth)) * 0.05
    w[1] = rng.standard_t(2, depth)
    w[2] = np.abs(w[2])
    w[3] = -np.abs(w[3]) - 3
    w[4] = rng.choice([-3, -1.5, -0.0, 0.0, 1.5, 3], depth)
    w[5, :16] = 0
    w[6] = 0.7
    w[7] *= 2.0**-20  # float16 scales are subnormal
    w[8] *= 2.0**-24  # and 0
    return w.astype(F32)


@pytest.mark.parametrize("rule", ["mse", "absmax"])
@pytest.mark.parametrize("scale_dtype", SCALE_TYPES)
@pytest.mark.parametrize(
    ("bits", "offset", "ternary"), [(*kind, False) for kind in KINDS] + [(2, "symmetric", True)]
)
def test_quantize_is_the_written_rule(bits, offset, ternary, scale_dtype, rule, rng):
    w = weights_like(rng, 9, 40)
    for group in (16, None):
        parts = numerics.quantize(
            w,
            bits=bits,
            offset=offset,
            group_size=group,
            rule=rule,
            scale_dtype=scale_dtype,
            ternary=ternary,
        )
        scales = numerics.scales_to_float32(parts["scales"])
        other = parts.get("zero_points", parts.get("mins"))
        if offset == "min":
            other = numerics.scales_to_float32(other)
        assert parts["scales"].dtype == np.dtype(
            {"bfloat16": "uint16"}.get(scale_dtype, scale_dtype)
        )
        assert not np.signbit(scales[scales == 0]).any()
        for n, row in enumerate(w):
            for g, start in enumerate(range(0, 40, group or 40)):
                k = slice(start, start + (group or 40))
                group_of = list(row[k])
                codes, s, extra = written_rule(group_of, bits, offset, rule, scale_dtype, ternary)
                assert parts["codes"][n, k].tolist() == codes
                assert scales[n, g] == s
                if offset != "symmetric":
                    assert other[n, g] == extra


@every_kind
def test_error_is_within_half_a_step(bits, offset, rng):
    """With absmax scales of float32 nothing is clipped, up to the rounding of the scale."""
    w = rng.standard_normal((7, 70)).astype(F32)
    parts = numerics.quantize(
        w, bits=bits, offset=offset, group_size=32, rule="absmax", scale_dtype="float32"
    )
    step = np.abs(parts["scales"]).repeat(32, axis=1)[:, :70].astype(float)
    off = np.abs(numerics.dequantize(parts) - w.astype(float))
    # A zero point is rounded too, so an end may be half a step beyond the last code.
    bound = 1 if offset == "zero_point" else 0.5
    assert (off <= step * (bound + 255 * 3 * 2.0**-24) + np.abs(w) * 2.0**-24).all()


@pytest.mark.parametrize("offset", ["symmetric", "zero_point"])
@pytest.mark.parametrize("group", [16, 32, 64, 256, None])
def test_mse_gains_and_never_loses(offset, group, rng):
    w = (rng.standard_t(5, (32, 1024)) * 0.02).astype(F32)

    def errors(rule):
        parts = numerics.quantize(w, bits=4, offset=offset, group_size=group, rule=rule)
        error = (numerics.dequantize(parts) - w.astype(float)) ** 2
        return error.reshape(32, -1, group or 1024).sum(axis=2)

    mse, absmax = errors("mse"), errors("absmax")
    # Both sums are those that the rule compares, up to float32 rounding of 2 * group operations.
    assert (mse <= absmax * (1 + 4 * (group or 1024) * 2.0**-24)).all()
    limit = {"symmetric": 0.78, "zero_point": 0.97}[offset]  # the table in weights.py, and a tenth
    assert mse.sum() < limit * absmax.sum()


def test_candidates_are_exact_and_start_with_none_lost():
    assert len(numerics.CANDIDATES) == 21
    for values in (numerics.INT4_DIVISORS, numerics.UINT4_SHRINK, *numerics.CANDIDATES.values()):
        assert all(float(F32(v)) == v for v in np.ravel(values))
        assert len(set(values)) == len(values) <= 16
    assert numerics.UINT4_SHRINK[0] == 1
    assert -8 in numerics.INT4_DIVISORS


def test_the_first_of_equal_extremes_leads():
    # 8/7 errs by 1/7 at each of 60 ones; 8/-7.75 by little at them and by 0.77 at the second 8.
    w = np.array([[8, -8] + [1] * 60], F32)
    arguments = {"bits": 4, "offset": "symmetric", "group_size": None}
    for sign in (1, -1):
        parts = numerics.quantize(F32(sign) * w, **arguments)
        assert parts["scales"] == F32(sign * 8) / F32(-7.75)
        assert parts["codes"].tolist() == [[0, 15] + [7] * 60]


def winner(scales, residuals):
    """Number of the winning candidate and its scale, if its weights err by these residuals."""
    w = np.ones((1, len(residuals[0])), F32)
    columns = [np.array([s], F32) for s in scales]
    # q need not be an integer here: fma(-q, s, 1) is to be r.
    q = [(w - np.array(r, F32)) / F32(s or 1) for s, r in zip(scales, residuals, strict=True)]
    best = groups.least_error(w, columns, q.__getitem__)
    return best[0], groups.take(columns, best)[0]


def test_errors_are_summed_in_order():
    # 1 + 2^-24 + 2^-24 is 1 from the left and 1 + 2^-23 from the right, as 1 + (1.5 * 2^-12)^2 is.
    small = 2.0**-12
    assert winner([1, 1], [[1, 1.5 * small, 0], [1, small, small]]) == (1, 1)
    assert winner([1, 1], [[1, 1.5 * small, 0], [small, small, 1]]) == (0, 1)


def test_errors_are_fused(rng):
    seen = set()
    for y in rng.uniform(0.5, 1, 300).astype(F32):
        z = np.nextafter(y, F32(0))
        one = F32(1)
        fused = numerics.fma(z, z, one) < numerics.fma(y, y, one)
        if fused != (one + z * z < one + y * y):
            assert winner([1, 1], [[1, y], [1, z]]) == (int(fused), 1)
            seen.add(bool(fused))
    assert seen == {True, False}


def test_zero_and_infinite_scales_do_not_take_part():
    same = [[1, 1]] * 3
    assert winner([0, np.inf, 2], same) == (2, 2)
    assert winner([2, -2, 2], same) == (0, 2)
    assert winner([0, -0.0], same[:2]) == (0, 0)


def test_eight_bits_ignore_the_rule(rng):
    w = rng.standard_normal((5, 64)).astype(F32)
    for offset in ("symmetric", "zero_point", "min"):
        one, two = (
            numerics.quantize(w, bits=8, offset=offset, group_size=16, rule=rule)
            for rule in ("mse", "absmax")
        )
        for name in ("codes", "scales", "zero_points", "mins"):
            np.testing.assert_array_equal(one.get(name), two.get(name))
    codes = numerics.quantize(w, bits=8, offset="symmetric", group_size=None)["codes"]
    assert (np.abs(codes.astype(int) - 128).max(axis=1) == 127).all()


@every_kind
def test_huge_weights(bits, offset):
    """Where every squared error is infinite, the first candidate wins; scales may overflow."""
    w = np.array([[2e38, 1e38, -1e38, 3e37]], F32)
    arguments = {"bits": bits, "offset": offset, "group_size": None}
    assert np.isfinite(numerics.dequantize(numerics.quantize(w, **arguments))).all()
    one = numerics.quantize(w, **arguments, rule="mse")["scales"]
    assert one == numerics.quantize(w, **arguments, rule="absmax")["scales"]
    with pytest.raises(ValueError, match='a scale overflows float16: pass scale_dtype="float32"'):
        numerics.quantize(w, **arguments, scale_dtype="float16")
    w = np.array([[3e38, -3e38]], F32)  # the range is beyond float32, the largest weight is not
    if offset == "symmetric":
        scale = numerics.quantize(w, **arguments)["scales"]
        assert scale == F32(3e38) / F32(2 ** (bits - 1) - 1)
    else:
        with pytest.raises(ValueError, match="overflows float32"):
            numerics.quantize(w, **arguments, rule="absmax")


@pytest.mark.parametrize("rule", ["mse", "absmax"])
def test_an_overflow_of_the_plain_scale_is_an_error(rule):
    w = np.array([[500_000, 1, 2, 3]], F32)  # a seventh is beyond float16, a clipped scale is not
    arguments = {"bits": 4, "offset": "symmetric", "group_size": None, "rule": rule}
    with pytest.raises(ValueError, match="scale overflows float16"):
        numerics.quantize(w, **arguments, scale_dtype="float16")
    assert np.isfinite(numerics.quantize(w, **arguments, scale_dtype="float32")["scales"]).all()


@every_kind
@pytest.mark.parametrize("zeros", [0.0, -0.0])
def test_zeros_have_scale_plus_zero(bits, offset, zeros):
    w = np.full((2, 20), zeros, F32)
    w[1, 1::2] = -zeros
    parts = numerics.quantize(w, bits=bits, offset=offset, group_size=16)
    assert (parts["scales"].view(np.uint16) == 0).all()
    assert (parts["codes"] == parts.get("zero", 0)).all()
    if offset == "zero_point":
        assert (parts["zero_points"] == 0).all()
    elif offset == "min":  # the first of equals
        assert (np.signbit(parts["mins"]) == np.signbit(zeros)).all()


@every_kind
@pytest.mark.parametrize("shape", [(0, 40), (3, 0), (0, 0), (1, 1), (2, 16), (2, 17)])
def test_shapes(bits, offset, shape):
    parts = numerics.quantize(np.ones(shape, F32), bits=bits, offset=offset, group_size=16)
    assert parts["codes"].shape == shape
    groups = numerics.group_count(shape[1], 16)
    for name in ("scales", "zero_points", "mins"):
        if name in parts:
            assert parts[name].shape == (shape[0], groups)
    assert parts["scales"].dtype == (np.float16 if shape[1] > 16 else F32)
    assert parts["group_size"] == (16 if shape[1] > 16 else None)
    assert numerics.dequantize(parts).shape == shape


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.sampled_from(SCALE_TYPES))
def test_rows_do_not_depend_on_their_place(seed, kind, scale_dtype):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((6, 50)) * 2.0 ** rng.integers(-12, 8, (6, 1))).astype(F32)
    arguments = {"bits": kind[0], "offset": kind[1], "group_size": 16, "scale_dtype": scale_dtype}
    whole = numerics.quantize(w, **arguments)
    for n in rng.permutation(6)[:2]:
        alone = numerics.quantize(w[n : n + 1], **arguments)
        for name in ("codes", "scales", "zero_points", "mins"):
            if name in whole:
                np.testing.assert_array_equal(whole[name][n], alone[name][0])


def test_many_groups_are_cut_into_blocks_unseen(rng, monkeypatch):
    w = rng.standard_normal((6, 70)).astype(F32)
    whole = numerics.quantize(w, bits=4, offset="zero_point", group_size=16)
    monkeypatch.setattr(groups, "_WEIGHTS_AT_ONCE", 40)
    pieces = numerics.quantize(w, bits=4, offset="zero_point", group_size=16)
    for name in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(whole[name], pieces[name])


def test_sixteen_bit_weights_are_read_exactly(rng):
    w = rng.standard_normal((3, 40)).astype(np.float16)
    one = numerics.quantize(w, bits=4, offset="symmetric", group_size=16)
    two = numerics.quantize(w.astype(F32), bits=4, offset="symmetric", group_size=16)
    np.testing.assert_array_equal(one["codes"], two["codes"])
    np.testing.assert_array_equal(one["scales"], two["scales"])


def test_what_is_refused():
    good = {"bits": 4, "offset": "symmetric", "group_size": None}
    w = np.ones((2, 20), F32)
    for bad in (np.nan, np.inf, -np.inf):
        w[1, 7] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            numerics.quantize(w, **good)
    w[1, 7] = 1
    for name, value in (
        ("bits", 9),
        ("offset", "middle"),
        ("rule", "mae"),
        ("scale_dtype", "e8m0"),
    ):
        with pytest.raises(ValueError, match=name):
            numerics.quantize(w, **(good | {name: value}))
    with pytest.raises(ValueError, match="power of two"):
        numerics.quantize(w, **(good | {"group_size": 18}))
    with pytest.raises(TypeError, match="float64"):
        numerics.quantize(w.astype(float), **good)
