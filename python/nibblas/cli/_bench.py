# SPDX-License-Identifier: Apache-2.0
"""What ``nibblas bench`` measures: its command line's words, its cases, its report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import nibblas
from nibblas._arrays import Array
from nibblas.cli import _accuracy, _measure
from nibblas.cli._accuracy import SchemeChoice
from nibblas.cli._measure import Contender
from nibblas.schemes import get_scheme

# Name, N, K: layers of well-known models, from small to large.
DEFAULT_SHAPES = (
    ("MiniLM-L6 feed-forward", 1536, 384),
    ("BERT-base feed-forward", 3072, 768),
    ("Llama 3.2 1B attention", 2048, 2048),
    ("Llama 3 8B attention", 4096, 4096),
    ("Llama 3 8B feed-forward", 14336, 4096),
)
DEFAULT_ROWS = (1, 32, 128)
DEFAULT_SCHEMES = ("int8", "int4-g32", "int4-g128", "uint4-g32")
DEFAULT_SECONDS = 0.4
"""For each contender of a case; the 75 of a run without options take about a minute in all."""

BASELINE = "NumPy float32"

ERROR_ROWS, ERROR_COLS = 32, 256
"""Errors of a case are taken over so many rows and outputs, which tell its RMS to about 1 %."""


class Shape(NamedTuple):
    """A weight's size; the name says where it occurs."""

    name: str
    cols: int
    depth: int

    def __str__(self) -> str:
        return f"{self.cols}x{self.depth}"


@dataclass
class Settings:
    """What to measure."""

    shapes: Sequence[Shape]
    rows: Sequence[int] = DEFAULT_ROWS
    schemes: Sequence[SchemeChoice] = ()
    compute: str = "int8"
    threads: int = 1
    cold: bool = False
    seconds: float = DEFAULT_SECONDS


@dataclass
class Product:
    """A contender, where its outputs go, and the weight that it multiplies by."""

    contender: Contender
    out: Array
    weight: nibblas.PackedWeight | None


def parse_shapes(text: str) -> list[Shape]:
    """Shapes from "default" or "N x K" items separated by commas, such as "4096x4096"."""
    shapes: list[Shape] = []
    for item in text.split(","):
        if item == "default":
            shapes += [Shape(*entry) for entry in DEFAULT_SHAPES]
            continue
        cols, x, depth = item.partition("x")
        if not (x and cols.isdecimal() and depth.isdecimal() and int(cols) and int(depth)):
            raise ValueError(f'a shape is written as 4096x4096 or "default", got {item!r}')
        shapes.append(Shape("", int(cols), int(depth)))
    return shapes


def parse_rows(text: str) -> list[int]:
    """Row counts separated by commas."""
    for item in text.split(","):
        if not item.isdecimal() or int(item) < 1:
            raise ValueError(f"rows are numbers such as 1,32,128, got {item!r}")
    return [int(item) for item in text.split(",")]


def parse_schemes(text: str) -> list[SchemeChoice]:
    """Schemes separated by commas, each with "-gSIZE" or "-channel", and "-zp" or "-min"."""
    choices = []
    for item in text.split(","):
        name, *options = item.split("-")
        scheme = get_scheme(name)
        group: int | str | None = "auto"
        offset = None
        for option in options:
            if option == "channel":
                group = None
            elif option[:1] == "g" and option[1:].isdecimal():
                group = int(option[1:])
            elif option in ("zp", "min"):
                offset = {"zp": "zero_point", "min": "min"}[option]
            else:
                raise ValueError(f"{item!r}: expected -gSIZE, -channel, -zp or -min, got -{option}")
        if offset is not None and offset not in scheme.offsets:
            raise ValueError(f"{item!r}: {name} has no offsets")
        choices.append(SchemeChoice(item, name, group, offset))
    return choices


def run(settings: Settings, step: Callable[[str], None] = lambda label: None) -> dict[str, Any]:
    """Measure every case. `step` is told what is next, `step_count(settings)` times."""
    cases: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    with _measure.numpy_threads(settings.threads) as numpy_threads:
        clock = _measure.clock_name(settings.threads, numpy_threads)
        for shape in settings.shapes:
            step(f"{shape}: preparing")
            dense = rng.standard_normal((shape.cols, shape.depth), dtype=np.float32)
            weights = {c.label: c.quantize(dense, settings.threads) for c in settings.schemes}
            copies = {label: packed_copies(w, settings.cold) for label, w in weights.items()}
            dense_copies = dense_weight_copies(dense, settings.cold)
            reference = _reference(dense, weights)
            for rows in settings.rows:
                step(f"{shape}, {rows} rows")
                x = rng.standard_normal((rows, shape.depth), dtype=np.float32)
                products = [numpy_product(x, dense_copies)]
                for label, packed in copies.items():
                    products.append(
                        packed_product(x, label, packed, settings.compute, settings.threads)
                    )
                cases += _case(shape, x, products, reference, settings, clock)
            del dense, weights, copies, dense_copies, reference, products
        step("accuracy")
        accuracy = _accuracy.errors(settings.schemes, settings.compute, settings.threads)
    return {
        "target": nibblas.target(),
        "threads": settings.threads,
        "numpy_threads": numpy_threads,
        "clock": clock,
        "rows": list(settings.rows),
        "compute": settings.compute,
        "cold": settings.cold,
        "cases": cases,
        "speedups": _speedups(cases, settings),
        "accuracy": accuracy,
    }


def step_count(settings: Settings) -> int:
    """How often `run` will call `step`."""
    return len(settings.shapes) * (1 + len(settings.rows)) + 1


def packed_copies(weight: nibblas.PackedWeight, cold: bool) -> list[nibblas.PackedWeight]:
    """The weight itself, and with `cold` as many copies as no cache holds."""
    count = _measure.copies_for(weight.nbytes, cold)
    return [weight, *(weight.copy() for _ in range(count - 1))]


def dense_weight_copies(dense: Array, cold: bool) -> list[Array]:
    """The same of a dense weight."""
    count = _measure.copies_for(dense.nbytes, cold)
    return [dense, *(dense.copy() for _ in range(count - 1))]


def numpy_product(x: Array, weights: Sequence[Array]) -> Product:
    """NumPy's float32 product, what all speed-ups are over."""
    out = np.empty((len(x), len(weights[0])), np.float32)

    def call(w: Array) -> Callable[[], object]:
        return lambda: np.matmul(x, w.T, out=out)

    calls = [call(w) for w in weights]
    return Product(Contender(BASELINE, weights[0].nbytes, calls), out, None)


def packed_product(
    x: Array, label: str, weights: Sequence[nibblas.PackedWeight], compute: str, threads: int
) -> Product:
    """`nibblas.linear` with copies of one weight."""
    out = np.empty((len(x), weights[0].shape[0]), np.float32)

    def call(w: nibblas.PackedWeight) -> Callable[[], object]:
        return lambda: nibblas.linear(x, w, compute=compute, out=out, num_threads=threads)

    calls = [call(w) for w in weights]
    return Product(Contender(label, weights[0].nbytes, calls), out, weights[0])


class _Reference(NamedTuple):
    """Some outputs' weights in float64: what errors are taken against."""

    exact: Array
    dequantized: dict[str, Array]  # by label


def _reference(dense: Array, weights: dict[str, nibblas.PackedWeight]) -> _Reference:
    some = np.arange(min(ERROR_COLS, len(dense)))
    return _Reference(
        dense[some].astype(np.float64),
        {label: weight.take(some).astype(np.float64) for label, weight in weights.items()},
    )


def _case(
    shape: Shape,
    x: Array,
    products: Sequence[Product],
    reference: _Reference,
    settings: Settings,
    clock: str,
) -> list[dict[str, Any]]:
    """The results of all contenders for one shape and number of rows."""
    peaks: list[float] = []
    contenders = [product.contender for product in products]
    _measure.run_rounds(
        contenders,
        settings.seconds,
        _measure.CLOCKS[clock],
        warm=not settings.cold,
        between=lambda: peaks.append(_measure.peak_gops(settings.threads)),
    )
    peak = statistics.median(peaks)
    read_sizes = [_measure.COLD_BYTES if settings.cold else c.nbytes for c in contenders]
    read = {size: _measure.read_gbps(size, settings.threads) for size in set(read_sizes)}

    some_x = x[:ERROR_ROWS].astype(np.float64)
    exact = some_x @ reference.exact.T
    operations = 2.0 * len(x) * shape.cols * shape.depth
    results = []
    for product, read_size in zip(products, read_sizes, strict=True):
        contender = product.contender
        y = product.out[: len(exact), : exact.shape[1]]
        error_dequantized = None
        if product.weight is not None:
            dequantized = reference.dequantized[contender.label]
            error_dequantized = _measure.relative_rms(y, some_x @ dequantized.T)
        speedups = contender.speedups(contenders[0])
        gops = operations / contender.seconds / 1e9
        gbps = contender.nbytes / contender.seconds / 1e9
        results.append(
            {
                "shape": [shape.cols, shape.depth],
                "shape_name": shape.name,
                "rows": len(x),
                "contender": contender.label,
                "seconds": contender.seconds,
                "seconds_quartiles": _measure.quartiles(contender.samples),
                "samples": len(contender.samples),
                "gops": gops,
                "gbps": gbps,
                "peak_share": gops / peak,
                "read_share": gbps / read[read_size],
                "peak_gops": peak,
                "read_gbps": read[read_size],
                "speedup": statistics.median(speedups),
                "speedup_quartiles": _measure.quartiles(speedups),
                "error_exact": _measure.relative_rms(y, exact),
                "error_dequantized": error_dequantized,
                "nbytes": contender.nbytes,
            }
        )
    return results


def _speedups(cases: Sequence[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Per scheme and number of rows, the geometric mean over the shapes."""
    return [
        {
            "contender": choice.label,
            "rows": rows,
            "speedup": statistics.geometric_mean(
                case["speedup"]
                for case in cases
                if case["rows"] == rows and case["contender"] == choice.label
            ),
        }
        for choice in settings.schemes
        for rows in settings.rows
    ]
