# SPDX-License-Identifier: Apache-2.0
"""The engine of ``nibblas bench``: contenders, interleaved rounds, medians, errors.

Speeds of a shared machine drift by tens of per cent within seconds. So all contenders of a case
take turns in short rounds, the machine's own limits are measured in the same rounds, and what is
compared is always of one run.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import nibblas
from nibblas import _nibblas
from nibblas._arrays import Array
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

BASELINE = "NumPy float32"

COLD_BYTES = 256_000_000
"""With cold weights, so many bytes are read before the first is read again: above any cache."""

SMALLEST_SET = 1 << 16
"""Bytes: reading fewer takes no time that could be measured."""

SAMPLE_SECONDS = 0.004
"""A sample repeats a call for this long: far above the clock's and the scheduler's noise."""

MIN_ROUNDS, MAX_ROUNDS = 5, 200

ERROR_ROWS, ERROR_COLS = 32, 256
"""Errors are taken over so many rows and outputs: 8192 values tell an RMS to about 1 %."""


class SchemeChoice(NamedTuple):
    """A scheme as written on the command line, such as "int4-g32" or "uint4-g64-min"."""

    label: str
    scheme: str
    group_size: int | str | None
    offset: str | None


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
    seconds: float = 0.4


@dataclass
class Contender:
    """One way to compute the product, over one or more copies of its weights."""

    label: str
    nbytes: int
    calls: list[Callable[[], object]]
    out: Array
    weight: nibblas.PackedWeight | None
    samples: list[float] = field(default_factory=list)
    repeats: int = 1
    turn: int = 0

    def sample(self) -> float:
        """Seconds of one call, the mean of `repeats`."""
        calls, count = self.calls, self.repeats
        start = time.perf_counter()
        for i in range(self.turn, self.turn + count):
            calls[i % len(calls)]()
        seconds = (time.perf_counter() - start) / count
        self.turn = (self.turn + count) % len(calls)
        return seconds


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
    accuracy: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    with numpy_threads(settings.threads) as numpy_thread_count:
        for shape in settings.shapes:
            step(f"{shape}: preparing")
            dense = rng.standard_normal((shape.cols, shape.depth), dtype=np.float32)
            weights = [_quantize(dense, choice, settings) for choice in settings.schemes]
            copies = [_copies(weight, settings) for weight in weights]
            dense_copies = _dense_copies(dense, settings)
            references = _references(dense, weights)
            for rows in settings.rows:
                step(f"{shape}, {rows} rows")
                x = rng.standard_normal((rows, shape.depth), dtype=np.float32)
                contenders = [_numpy_contender(x, dense_copies)]
                for choice, packed in zip(settings.schemes, copies, strict=True):
                    contenders.append(_packed_contender(x, choice.label, packed, settings))
                limits = _measure(contenders, settings)
                case = _case(shape, rows, contenders, limits, x, references)
                cases += case
            accuracy += _weight_errors(shape, dense, settings.schemes, weights)
    return {
        "rows": list(settings.rows),
        "compute": settings.compute,
        "threads": settings.threads,
        "numpy_threads": numpy_thread_count,
        "cold": settings.cold,
        "target": nibblas.target(),
        "cases": cases,
        "accuracy": _summary(accuracy, cases),
    }


def step_count(settings: Settings) -> int:
    """How often `run` will call `step`."""
    return len(settings.shapes) * (1 + len(settings.rows))


@contextlib.contextmanager
def numpy_threads(threads: int) -> Iterator[int | None]:
    """Hold NumPy's BLAS to as many threads; yields that number, or None if it cannot be done."""
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        yield None
        return
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        yield threads


def _quantize(dense: Array, choice: SchemeChoice, settings: Settings) -> nibblas.PackedWeight:
    return nibblas.quantize(
        dense,
        choice.scheme,
        choice.group_size,  # type: ignore[arg-type]
        offset=choice.offset,
        num_threads=settings.threads,
    )


def _copies(weight: nibblas.PackedWeight, settings: Settings) -> list[nibblas.PackedWeight]:
    count = math.ceil(COLD_BYTES / max(weight.nbytes, 1)) if settings.cold else 1
    return [weight, *(weight.copy() for _ in range(count - 1))]


def _dense_copies(dense: Array, settings: Settings) -> list[Array]:
    count = math.ceil(COLD_BYTES / max(dense.nbytes, 1)) if settings.cold else 1
    return [dense, *(dense.copy() for _ in range(count - 1))]


def _numpy_contender(x: Array, weights: list[Array]) -> Contender:
    out = np.empty((len(x), len(weights[0])), np.float32)

    def call(w: Array) -> Callable[[], object]:
        return lambda: np.matmul(x, w.T, out=out)

    return Contender(BASELINE, weights[0].nbytes, [call(w) for w in weights], out, None)


def _packed_contender(
    x: Array, label: str, weights: list[nibblas.PackedWeight], settings: Settings
) -> Contender:
    out = np.empty((len(x), weights[0].shape[0]), np.float32)
    compute, threads = settings.compute, settings.threads

    def call(w: nibblas.PackedWeight) -> Callable[[], object]:
        return lambda: nibblas.linear(x, w, compute=compute, out=out, num_threads=threads)

    return Contender(label, weights[0].nbytes, [call(w) for w in weights], out, weights[0])


def _measure(contenders: list[Contender], settings: Settings) -> dict[str, Any]:
    """Fill the samples; return the machine's limits as measured in between."""
    for contender in contenders:
        contender.sample()  # page faults and first-use work
        once = contender.sample()
        contender.repeats = max(1, min(1000, round(SAMPLE_SECONDS / max(once, 1e-7))))
    peaks: list[float] = []
    budget = settings.seconds * len(contenders)
    start = time.perf_counter()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        peaks.append(_nibblas.peak_dot(SAMPLE_SECONDS))
        first = turn % len(contenders)  # nobody always follows the same one
        for contender in contenders[first:] + contenders[:first]:
            contender.samples.append(contender.sample())
    set_bytes = {
        c.label: COLD_BYTES if settings.cold else max(c.nbytes, SMALLEST_SET) for c in contenders
    }
    read = {size: _nibblas.read_bandwidth(size) for size in set(set_bytes.values())}
    return {
        "peak_gops": statistics.median(peaks) * settings.threads,
        "read_gbps": {label: read[size] * settings.threads for label, size in set_bytes.items()},
    }


class _Reference(NamedTuple):
    """Some outputs' weights in float64: what errors are taken against."""

    exact: Array
    dequantized: dict[int, Array]  # by id of the weight


def _references(dense: Array, weights: Sequence[nibblas.PackedWeight]) -> _Reference:
    some = np.arange(min(ERROR_COLS, len(dense)))
    return _Reference(
        dense[some].astype(np.float64),
        {id(weight): weight.take(some).astype(np.float64) for weight in weights},
    )


def _case(
    shape: Shape,
    rows: int,
    contenders: list[Contender],
    limits: dict[str, Any],
    x: Array,
    references: _Reference,
) -> list[dict[str, Any]]:
    some_x = x[:ERROR_ROWS].astype(np.float64)
    exact = some_x @ references.exact.T
    operations = 2.0 * rows * shape.cols * shape.depth
    baseline = statistics.median(contenders[0].samples)
    results = []
    for contender in contenders:
        seconds = statistics.median(contender.samples)
        y = contender.out[: len(exact), : exact.shape[1]]
        gops, gbps = operations / seconds / 1e9, contender.nbytes / seconds / 1e9
        error_dequantized = None
        if contender.weight is not None:
            dequantized = references.dequantized[id(contender.weight)]
            error_dequantized = relative_rms(y, some_x @ dequantized.T)
        results.append(
            {
                "shape": [shape.cols, shape.depth],
                "shape_name": shape.name,
                "rows": rows,
                "contender": contender.label,
                "seconds": seconds,
                "seconds_quartiles": _quartiles(contender.samples),
                "samples": len(contender.samples),
                "gops": gops,
                "gbps": gbps,
                "peak_share": gops / limits["peak_gops"],
                "read_share": gbps / limits["read_gbps"][contender.label],
                "peak_gops": limits["peak_gops"],
                "read_gbps": limits["read_gbps"][contender.label],
                "speedup": baseline / seconds,
                "error_exact": relative_rms(y, exact),
                "error_dequantized": error_dequantized,
                "nbytes": contender.nbytes,
            }
        )
    return results


def _quartiles(samples: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(samples, n=4)
    return [low, high]


def relative_rms(found: Array, expected: Array) -> float:
    """Root mean square of the error over that of what is expected, in float64."""
    error = found.astype(np.float64) - expected
    norm = float((expected * expected).sum())
    return math.sqrt(float((error * error).sum()) / norm) if norm else 0.0


def _weight_errors(
    shape: Shape,
    dense: Array,
    choices: Sequence[SchemeChoice],
    weights: Sequence[nibblas.PackedWeight],
) -> list[dict[str, Any]]:
    some = np.arange(min(ERROR_COLS, len(dense)))
    return [
        {
            "shape": [shape.cols, shape.depth],
            "contender": choice.label,
            "bits_per_weight": weight.bits_per_weight,
            "error_weights": relative_rms(weight.take(some), dense[some].astype(np.float64)),
        }
        for choice, weight in zip(choices, weights, strict=True)
    ]


def _summary(errors: list[dict[str, Any]], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per scheme: errors as root mean square over all shapes and row counts."""
    summary = []
    for label in dict.fromkeys(entry["contender"] for entry in errors):
        ours = [entry for entry in errors if entry["contender"] == label]
        outputs = [case for case in cases if case["contender"] == label]
        summary.append(
            {
                "contender": label,
                "bits_per_weight": statistics.fmean(e["bits_per_weight"] for e in ours),
                "error_weights": _rms(e["error_weights"] for e in ours),
                "error_exact": _rms(case["error_exact"] for case in outputs),
                "error_dequantized": _rms(case["error_dequantized"] for case in outputs),
            }
        )
    return summary


def _rms(values: Iterator[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))
