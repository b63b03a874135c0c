# SPDX-License-Identifier: Apache-2.0
"""Measuring all peers that are installed next to nibblas, in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

import nibblas
from nibblas._arrays import Array
from nibblas.cli import _measure, peers
from nibblas.cli._bench import ERROR_COLS, ERROR_ROWS, Shape
from nibblas.cli._measure import Contender
from nibblas.cli.peers import _nibblas
from nibblas.cli.peers._base import Bound, Kind, Model, Op, Weight

ACCURACY = 1.1
"""We may err by so many times what a peer errs, and be compared with it."""

LEAST_ERROR_ROWS = 16
"""Rows that an error is taken from at least: of one row it says little of the library."""

COLD_ROWS = 8
"""Unless asked for, more rows are not measured with cold weights: it hardly makes a difference."""

REST = 0.002
WARM_BELOW = 0.05

HOPELESS, LONG = 20, 0.5
"""Who takes so many times our time, and so many seconds, is timed once."""


@dataclass
class Settings:
    """What to measure."""

    shapes: Sequence[Shape]
    rows: Sequence[int]
    kinds: Sequence[Kind]
    peers: Sequence[str]
    threads: int = 1
    cold: bool | None = None
    """Weights cold, warm, or with None both: cold only up to COLD_ROWS."""
    seconds: float = 0.4
    arrays: bool = False
    """Whether each call takes an array x and returns one, or x and the output are in place."""

    def states(self, rows: int) -> list[bool]:
        """Cold or not, as to be measured with so many rows."""
        if self.cold is not None:
            return [self.cold]
        return [True, False] if rows <= COLD_ROWS else [False]


@dataclass
class _Entrant:
    """A library's product with one weight: its copies, and one case's results."""

    peer: str
    op: Op
    models: list[Model]
    bounds: list[Bound] = field(default_factory=list)
    contender: Contender = field(default_factory=lambda: Contender("", 0, []))
    error: float = 0.0
    once: float = 0.0  # seconds of the first call


def installed(names: Sequence[str]) -> tuple[dict[str, ModuleType], list[dict[str, Any]]]:
    """The peers that can be imported, and what to say of each one."""
    found: dict[str, ModuleType] = {}
    notes: list[dict[str, Any]] = []
    for name in names:
        try:
            module = peers.load(name)
            notes.append({"peer": name, "version": module.version(), "missing": None})
            found[name] = module
        except ModuleNotFoundError as error:
            notes.append({"peer": name, "version": None, "missing": str(error)})
        except Exception as error:  # a broken installation is not ours to repair
            notes.append({"peer": name, "version": None, "missing": _message(error)})
    return found, notes


def run(settings: Settings, step: Callable[[str], None] = lambda label: None) -> dict[str, Any]:
    """Measure every case. `step` is told what is next, `step_count(settings)` times."""
    modules, notes = installed(settings.peers)
    cases: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    with _measure.numpy_threads(settings.threads) as numpy_threads:
        clock = clock_name(settings.threads, numpy_threads, settings.peers)
        for shape in settings.shapes:
            dense = rng.standard_normal((shape.cols, shape.depth), dtype=np.float32)
            for kind in settings.kinds:
                step(f"{shape} {kind.name}: preparing")
                comparison = _Comparison(settings, clock, shape, kind, failures)
                comparison.enter(Weight(kind, dense, settings.threads), modules)
                for rows in settings.rows:
                    step(f"{shape} {kind.name}, {rows} rows")
                    count = -(-LEAST_ERROR_ROWS // max(rows, 1))
                    inputs = [_input(rng, rows, shape.depth, kind) for _ in range(count)]
                    for cold in settings.states(rows):
                        cases += comparison.case(inputs, cold)
                del comparison
                gc.collect()  # sessions and interpreters refer to themselves
    return {
        "target": nibblas.target(),
        "threads": settings.threads,
        "numpy_threads": numpy_threads,
        "clock": clock,
        "arrays": settings.arrays,
        "shapes": [[shape.cols, shape.depth] for shape in settings.shapes],
        "rows": list(settings.rows),
        "kinds": [kind.name for kind in settings.kinds],
        "peers": notes,
        "failures": failures,
        "cases": cases,
    }


def step_count(settings: Settings) -> int:
    """How often `run` will call `step`."""
    return len(settings.shapes) * len(settings.kinds) * (1 + len(settings.rows))


def clock_name(threads: int, numpy_threads: int | None, names: Sequence[str]) -> str:
    """The clock that is fair to all: some libraries do the work of one thread on another one."""
    held = numpy_threads is not None or "numpy" not in names
    return "process CPU" if threads == 1 and held else "wall"


def _input(rng: np.random.Generator, rows: int, depth: int, kind: Kind) -> Array:
    if kind.integers:
        return rng.integers(-128, 128, (rows, depth), np.int8)
    return rng.standard_normal((rows, depth), dtype=np.float32)


def _message(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:400]


class _Comparison:
    """One weight in all libraries."""

    def __init__(
        self,
        settings: Settings,
        clock: str,
        shape: Shape,
        kind: Kind,
        failures: list[dict[str, Any]],
    ) -> None:
        self.settings, self.shape, self.kind = settings, shape, kind
        self.clock_name, self.clock = clock, _measure.CLOCKS[clock]
        self.failures = failures
        self.entrants: list[_Entrant] = []

    def enter(self, weight: Weight, modules: dict[str, ModuleType]) -> None:
        """Build everybody's copies of the weight."""
        cold = any(True in self.settings.states(rows) for rows in self.settings.rows)
        for op in _nibblas.ops(weight, self.settings.threads):
            self.entrants.append(_Entrant("nibblas", op, _build(op, cold)))
        for name, module in modules.items():
            try:
                for op in module.ops(weight, self.settings.threads):
                    try:
                        self.entrants.append(_Entrant(name, op, _build(op, cold)))
                    except Exception as error:
                        self._failed(name, op.label, error)
            except Exception as error:
                self._failed(name, name, error)
        some = min(ERROR_COLS, weight.shape[0])
        self.dense = [
            (weight.dense if entrant.op.dense is None else entrant.op.dense)[:some].astype(
                np.float64
            )
            for entrant in self.entrants
        ]

    def _failed(self, peer: str, label: str, error: Exception, rows: int | None = None) -> None:
        self.failures.append(
            {
                "peer": peer,
                "contender": label,
                "shape": [self.shape.cols, self.shape.depth],
                "kind": self.kind.name,
                "rows": rows,
                "message": _message(error),
            }
        )

    def case(self, inputs: Sequence[Array], cold: bool) -> list[dict[str, Any]]:
        """The results of all for one number of rows: times with the first input."""
        x = inputs[0]
        entrants = list(self._ready(inputs, cold))
        own_once = entrants[0].once
        racing = [e for e in entrants if e.once < max(HOPELESS * own_once, LONG)]
        peaks: list[float] = []
        _measure.run_rounds(
            [entrant.contender for entrant in racing],
            self.settings.seconds,
            self.clock,
            warm=not cold,
            between=lambda: peaks.append(_measure.peak_gops(self.settings.threads)),
            rest=REST,
            warm_below=WARM_BELOW,
        )
        for entrant in entrants:
            if entrant not in racing:
                entrant.contender.samples = [entrant.once]
        limits = _Limits(statistics.median(peaks), cold, self.settings.threads)
        own = [entrant for entrant in entrants if entrant.peer == "nibblas"]
        return [self._result(x, cold, entrant, own, limits) for entrant in entrants]

    def _ready(self, inputs: Sequence[Array], cold: bool) -> Iterator[_Entrant]:
        """Those whose product works, with its error and a contender."""
        x = inputs[0]
        some = [one[:ERROR_ROWS] for one in inputs]
        some_x = np.concatenate(some).astype(np.float64)
        for entrant, dense in zip(self.entrants, self.dense, strict=True):
            models = entrant.models if cold else entrant.models[:1]
            try:
                others = [self._output(models[0].bind(one), len(one)) for one in inputs[1:]]
                bounds = entrant.bounds = [model.bind(x) for model in models]
                for bound in bounds:  # some rearrange their weights in the first call
                    bound.call()
                start = time.perf_counter()
                bounds[0].call()
                entrant.once = time.perf_counter() - start
                y = self._output(bounds[0], len(x))
                if self.settings.arrays and not np.array_equal(bounds[0].whole(), y):
                    raise RuntimeError("another output from arrays")
            except Exception as error:
                if entrant.peer == "nibblas":
                    raise
                self._failed(entrant.peer, entrant.op.label, error, len(x))
                continue
            outputs = [one[: len(s)] for one, s in zip([y, *others], some, strict=True)]
            expected = some_x @ dense.T
            got = np.concatenate(outputs)[:, : len(dense)]
            entrant.error = _measure.relative_rms(got, expected)
            calls = [bound.whole if self.settings.arrays else bound.call for bound in bounds]
            entrant.contender = Contender(entrant.op.label, models[0].nbytes, calls)
            yield entrant

    def _output(self, bound: Bound, rows: int) -> Array:
        """What a call makes, as a copy: a model may have one output for all of its inputs."""
        bound.call()
        y = bound.output()
        if y.shape != (rows, self.shape.cols):
            raise ValueError(f"the output's shape is {y.shape}")
        return np.array(y)

    def _result(
        self, x: Array, cold: bool, entrant: _Entrant, own: Sequence[_Entrant], limits: _Limits
    ) -> dict[str, Any]:
        contender = entrant.contender
        operations = 2.0 * len(x) * self.shape.cols * self.shape.depth
        gops = operations / contender.seconds / 1e9
        gbps = contender.nbytes / contender.seconds / 1e9
        read = limits.read_gbps(contender.nbytes)
        ours = own[0].contender.nbytes
        limit = min(limits.peak, operations / ours * limits.read_gbps(ours))
        return {
            "shape": [self.shape.cols, self.shape.depth],
            "kind": self.kind.name,
            "rows": len(x),
            "cold": cold,
            "peer": entrant.peer,
            "contender": contender.label,
            "seconds": contender.seconds,
            "samples": len(contender.samples),
            "gops": gops,
            "gbps": gbps,
            "peak_gops": limits.peak,
            "read_gbps": read,
            "peak_share": gops / limits.peak,
            "read_share": gbps / read,
            "limit_gops": limit,
            "limit_share": gops / limit,
            "error": entrant.error,
            "nbytes": contender.nbytes,
            **({} if entrant in own else judge(entrant, own)),
        }


class _Limits:
    """The peak, and the bandwidth for each size, measured once."""

    def __init__(self, peak: float, cold: bool, threads: int) -> None:
        self.peak, self.cold, self.threads = peak, cold, threads
        self.found: dict[int, float] = {}

    def read_gbps(self, nbytes: int) -> float:
        size = _measure.COLD_BYTES if self.cold else nbytes
        if size not in self.found:
            self.found[size] = _measure.read_gbps(size, self.threads)
        return self.found[size]


def judge(peer: _Entrant, own: Sequence[_Entrant]) -> dict[str, Any]:
    """A peer's time over ours.

    Ours is the fastest of our products that errs at most ACCURACY times as much as the peer. Where
    none does, the first of them is taken, and "matching" is false: the peer does more.
    """
    matching = [entrant for entrant in own if entrant.error <= ACCURACY * peer.error]
    if matching:
        ours = min(matching, key=lambda entrant: entrant.contender.seconds)
    else:
        ours = own[0]
    theirs = peer.contender
    paired = len(theirs.samples) == len(ours.contender.samples)
    if paired:
        ratios = ours.contender.speedups(theirs)
    else:  # one of the two was timed once
        ratios = [theirs.seconds / ours.contender.seconds]
    low = _measure.lower_bound(ratios)
    return {
        "against": ours.contender.label,
        "matching": bool(matching),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
    }


def _build(op: Op, cold: bool) -> list[Model]:
    first = op.build()
    count = _measure.copies_for(first.nbytes, cold)
    return [first, *(op.build() for _ in range(count - 1))]
