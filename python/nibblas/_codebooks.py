# SPDX-License-Identifier: Apache-2.0
"""The tables of 16 values that the codes of some schemes stand for."""

from __future__ import annotations

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 4-bit NormalFloat of QLoRA: quantiles of the normal distribution, exact in float32."""

_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = tuple(sign * m / 12 for sign in (1, -1) for m in _FP4_MAGNITUDES)
"""The 4-bit float of bitsandbytes, scaled to [-1, 1], in the order of its codes."""

E2M1_DOUBLED = tuple(float(s * m) for s in (1, -1) for m in (0, 1, 2, 3, 4, 6, 8, 12))
"""Twice the values of the e2m1 codes of the OCP MX formats; the top bit is the sign."""

IQ4_NL = tuple(
    map(float, (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
)
"""The non-linear table of GGUF's IQ4 types."""
