# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of the suites: sizes, threads, targets, and what a time means.

`python -m pytest bench --benchmark-only` takes some minutes, `--benchmark-disable` some seconds.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import nibblas
from nibblas.cli import _measure, _text
from nibblas.cli._accuracy import SchemeChoice
from nibblas.cli._bench import Shape
from nibblas.cli.bench import share

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import shapes  # noqa: E402

MIN_TIME = 1e-3
"""Seconds that a round repeats a call for: asking for a thread's time takes 0.5 us."""

OWN_TABLE = ("columns", "compare", "group-by", "histogram", "name", "sort", "verbose")
"""Who gives one of these --benchmark- options wants to see the table of pytest-benchmark."""

RESULTS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nibblas")
    group.addoption("--full", action="store_true", help="all shapes, rows and schemes: an hour")
    group.addoption("--threads", default="1", metavar="N,...", help="default: 1")
    group.addoption("--targets", metavar="NAME,...", help='or "all"; default: the one in use')


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    given = config.invocation_params.args
    if not any(arg.startswith(f"--benchmark-{name}") for arg in given for name in OWN_TABLE):
        config.option.benchmark_quiet = True  # ours has units and shares


def sizes(config: pytest.Config) -> shapes.Sizes:
    """What the options ask for."""
    if config.getoption("full"):
        return shapes.FULL
    return shapes.SMOKE if config.getoption("benchmark_disable") else shapes.SMALL


def targets(config: pytest.Config) -> list[str]:
    names = config.getoption("targets")
    if names == "all":
        return nibblas.available_targets()
    return names.split(",") if names else [nibblas.target()]


def thread_counts(config: pytest.Config) -> list[int]:
    return [int(count) for count in config.getoption("threads").split(",")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not metafunc.definition.path.is_relative_to(HERE):
        return
    chosen = getattr(metafunc.module, "SIZES", None) or sizes(metafunc.config)
    values = {
        "shape": chosen.shapes,
        "depth": sorted({shape.depth for shape in chosen.shapes}),
        "rows": chosen.rows,
        "scheme": chosen.schemes,
        "target": targets(metafunc.config),
        "threads": thread_counts(metafunc.config),
    }
    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices, ids=label)


def label(value: object) -> str:
    """How a parameter is called in a benchmark's name."""
    return value.label if isinstance(value, SchemeChoice) else str(value)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Time the thread alone where one thread does the work: other programs disturb that less."""
    given = " ".join(config.invocation_params.args)
    for item in items:
        if not item.path.is_relative_to(HERE) or not hasattr(item, "callspec"):
            continue
        options: dict[str, Any] = {}
        if "--benchmark-min-time" not in given:
            options["min_time"] = MIN_TIME
        if "--benchmark-timer" not in given and item.callspec.params.get("threads") == 1:
            options["timer"] = time.thread_time
        item.add_marker(pytest.mark.benchmark(**options))


@pytest.fixture(autouse=True)
def _use_target(target: str) -> Iterator[None]:
    with nibblas.use_target(target):
        yield


@pytest.fixture(autouse=True)
def _hold_numpy(threads: int) -> Iterator[None]:
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        yield


@functools.lru_cache(maxsize=2)
def dense_weight(shape: Shape) -> np.ndarray:
    """(N, K) float32."""
    return np.random.default_rng(0).standard_normal((shape.cols, shape.depth), np.float32)


@functools.lru_cache(maxsize=16)
def packed_weight(shape: Shape, scheme: SchemeChoice) -> nibblas.PackedWeight:
    """The same matrix, quantized."""
    return scheme.quantize(dense_weight(shape))


@functools.lru_cache(maxsize=16)
def activations(rows: int, depth: int) -> np.ndarray:
    """(rows, depth) float32."""
    return np.random.default_rng(1).standard_normal((rows, depth), np.float32)


class Data:
    """Inputs, made once for all benchmarks that need them."""

    dense = staticmethod(dense_weight)
    packed = staticmethod(packed_weight)
    activations = staticmethod(activations)


@pytest.fixture(scope="session")
def data() -> Data:
    return Data()


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, benchmark: Any, target: str, threads: int
) -> Callable[..., None]:
    """measure(call, group, ...): time the call and note what that means.

    `operations` makes GOP/s and, with `integer`, a share of the target's dot-product peak; `nbytes`
    makes GB/s and a share of the bandwidth of reading as many bytes. With `moved`, all bytes that
    are read and written, it is instead the share of the bandwidth of copying, into a new array if
    the result is one (`fresh`). All limits are measured right before or after.
    """

    def run(
        call: Callable[[], object],
        group: str,
        *,
        operations: float = 0,
        integer: bool = True,
        nbytes: int = 0,
        moved: int = 0,
        fresh: bool = False,
        shape: Shape | str | None = None,
        rows: int | None = None,
        scheme: str | None = None,
        compute: str | None = None,
        **more: object,
    ) -> None:
        benchmark.group = group
        if not benchmark.enabled:
            benchmark(call)
            return
        peak = _measure.peak_gops(threads) if operations and integer else 0
        benchmark(call)
        median = benchmark.stats.stats.median
        info: dict[str, Any] = {
            "target": target,
            "threads": threads,
            "shape": shape and str(shape),
            "rows": rows,
            "scheme": scheme,
            "compute": compute,
            **more,
        }
        if operations:
            info["gops"] = operations / median / 1e9
        if peak:
            info["peak_gops"] = max(peak, _measure.peak_gops(threads))
            info["peak_share"] = info["gops"] / info["peak_gops"]
        if nbytes:
            info["nbytes"] = nbytes
            info["gbps"] = nbytes / median / 1e9
        if moved:
            info["moved_gbps"] = moved / median / 1e9
            info["copy_gbps"] = _measure.copy_gbps(moved, threads, fresh)
            info["copy_share"] = info["moved_gbps"] / info["copy_gbps"]
        elif nbytes:
            info["read_gbps"] = _measure.read_gbps(nbytes, threads)
            info["read_share"] = info["gbps"] / info["read_gbps"]
        benchmark.extra_info.update(info)
        result = {"group": group, "name": short_name(request), "median": median, **info}
        request.config.stash[RESULTS].append(result)

    return run


def short_name(request: pytest.FixtureRequest) -> str:
    """A benchmark's name within its group: without what all of the group have in common."""
    common = {"shape", "rows", "depth"}
    if len(targets(request.config)) == 1:
        common.add("target")
    if len(thread_counts(request.config)) == 1:
        common.add("threads")
    values = request.node.callspec.params.items()
    parts = [label(value) for name, value in values if name not in common]
    return " ".join([request.node.originalname.removeprefix("test_"), *parts])


COLUMNS: dict[str, Callable[[float], str]] = {
    "gops": _text.digits,
    "peak_share": share,
    "gbps": _text.digits,
    "read_share": share,
    "copy_share": share,
}
HEADERS = {
    "gops": "GOP/s",
    "peak_share": "of peak",
    "gbps": "GB/s",
    "read_share": "of read",
    "copy_share": "of copy",
}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A table of each group, with units and shares of the limits."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in config.stash.get(RESULTS, []):
        groups.setdefault(result["group"], []).append(result)
    for group, members in groups.items():
        columns = [key for key in COLUMNS if any(key in member for member in members)]
        lines = [
            [
                member["name"],
                _text.duration(member["median"]),
                *(COLUMNS[key](member[key]) if key in member else "-" for key in columns),
            ]
            for member in members
        ]
        headers = [group, "median", *(HEADERS[key] for key in columns)]
        terminalreporter.write_line("\n" + _text.table(headers, lines))
