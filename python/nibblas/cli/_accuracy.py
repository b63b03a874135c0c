# SPDX-License-Identifier: Apache-2.0
"""The matrices over which ``nibblas bench`` states errors, and the errors.

They are made from fixed random numbers, small, and each shows something that trained layers do to
quantization. nibblas computes the same bits everywhere, so its errors are figures of the schemes,
not of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import nibblas
from nibblas._arrays import Array
from nibblas.cli._measure import relative_rms

COLS, DEPTH, ROWS = 512, 1024, 64
"""32,768 outputs tell a root mean square to better than 1 %."""


class Matrix(NamedTuple):
    """A weight (COLS, DEPTH) and an input (ROWS, DEPTH)."""

    name: str
    what: str
    make: Callable[[np.random.Generator], tuple[Array, Array]]


def _normal(rng: np.random.Generator) -> tuple[Array, Array]:
    return rng.standard_normal((COLS, DEPTH)), rng.standard_normal((ROWS, DEPTH))


def _heavy_tails(rng: np.random.Generator) -> tuple[Array, Array]:
    # Student's t with 5 degrees of freedom: a kurtosis of 9, as trained layers have some.
    return rng.standard_t(5, (COLS, DEPTH)), rng.standard_normal((ROWS, DEPTH))


def _off_centre(rng: np.random.Generator) -> tuple[Array, Array]:
    weight, x = _normal(rng)
    return weight + 2, x


def _outlier_inputs(rng: np.random.Generator) -> tuple[Array, Array]:
    weight, x = _normal(rng)
    x[:, rng.choice(DEPTH, DEPTH // 256, replace=False)] *= 30
    return weight, x


MATRICES = (
    Matrix("normal", "weights and inputs normally distributed", _normal),
    Matrix("heavy tails", "weights with outliers (Student's t, 5 degrees)", _heavy_tails),
    Matrix("off centre", "weights around 2 standard deviations", _off_centre),
    Matrix("outlier inputs", "1 of 256 input features 30 times as large", _outlier_inputs),
)


class SchemeChoice(NamedTuple):
    """A scheme as written on the command line, such as "int4-g32" or "uint4-g64-min"."""

    label: str
    scheme: str
    group_size: int | str | None
    offset: str | None

    def quantize(self, dense: Array, threads: int | None = None) -> nibblas.PackedWeight:
        """The matrix in this scheme."""
        return nibblas.quantize(
            dense,
            self.scheme,
            self.group_size,  # type: ignore[arg-type]
            offset=self.offset,
            num_threads=threads,
        )


def errors(
    choices: Sequence[SchemeChoice], compute: str, threads: int | None = None
) -> list[dict[str, Any]]:
    """Relative RMS errors of each scheme on each matrix, against float64.

    ``error_weights`` is that of the dequantized weights; ``error_activations`` that of the outputs
    against the dequantized weights, which is what 8-bit activations add; ``error_outputs`` that of
    the outputs against the weights before quantizing.
    """
    entries = []
    for seed, matrix in enumerate(MATRICES):
        weight, x = (part.astype(np.float32) for part in matrix.make(np.random.default_rng(seed)))
        weight64, x64 = weight.astype(np.float64), x.astype(np.float64)
        exact = x64 @ weight64.T
        for choice in choices:
            packed = choice.quantize(weight, threads)
            y = nibblas.linear(x, packed, compute=compute, num_threads=threads)
            dequantized = packed.dequantize().astype(np.float64)
            entries.append(
                {
                    "matrix": matrix.name,
                    "contender": choice.label,
                    "bits_per_weight": packed.bits_per_weight,
                    "error_weights": relative_rms(dequantized, weight64),
                    "error_activations": relative_rms(y, x64 @ dequantized.T),
                    "error_outputs": relative_rms(y, exact),
                }
            )
    return entries
