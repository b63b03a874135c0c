# SPDX-License-Identifier: Apache-2.0
"""How anything here is timed: contenders in interleaved rounds, next to the machine's limits.

Speeds of a shared machine drift by tens of per cent within seconds. So all contenders of a case
take turns in short rounds, the limits are measured in the same rounds, and a ratio is taken round
by round before the median. `nibblas bench` and the suites in bench/ share this.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from nibblas import _nibblas
from nibblas._arrays import Array

COLD_BYTES = 256_000_000
"""With cold weights, so many bytes are read before the first is read again: above any cache."""

SMALLEST_SET = 1 << 16
"""Bytes: reading fewer takes no time that could be measured."""

SAMPLE_SECONDS = 0.004
"""A sample repeats a call for this long: far above the clock's and the scheduler's noise."""

MIN_ROUNDS, MAX_ROUNDS = 5, 200

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "thread CPU": time.thread_time,
    "process CPU": time.process_time,
}
"""CPU time leaves out what other programs take. That of the calling thread is only a measure of the
work where that thread does all of it; that of the process is one where a single thread works at a
time, whichever it is."""


@dataclass
class Contender:
    """One way to do the work, over one or more copies of its weights."""

    label: str
    nbytes: int
    calls: Sequence[Callable[[], object]]
    samples: list[float] = field(default_factory=list)
    repeats: int = 1
    turn: int = 0

    def sample(self, clock: Callable[[], float] = time.perf_counter, warm: bool = False) -> float:
        """Seconds of one call, the mean of `repeats`; `warm` begins with a call that is not timed.

        The others' weights have pushed ours out of the caches since the last sample.
        """
        calls, count = self.calls, self.repeats
        if warm:
            calls[self.turn]()
        start = clock()
        for i in range(self.turn, self.turn + count):
            calls[i % len(calls)]()
        seconds = (clock() - start) / count
        self.turn = (self.turn + count) % len(calls)
        return seconds

    @property
    def seconds(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    def speedups(self, baseline: Contender) -> list[float]:
        """How many times as fast as the baseline, round by round."""
        return [b / own for b, own in zip(baseline.samples, self.samples, strict=True)]


def clock_name(threads: int, numpy_threads: int | None) -> str:
    """The clock for products on so many threads; None is an unknown number."""
    return "thread CPU" if threads == numpy_threads == 1 else "wall"


def copies_for(nbytes: int, cold: bool) -> int:
    """How many copies of a weight of that size calls go around in."""
    return math.ceil(COLD_BYTES / max(nbytes, 1)) if cold else 1


def run_rounds(
    contenders: Sequence[Contender],
    seconds: float,
    clock: Callable[[], float],
    warm: bool,
    between: Callable[[], object] = lambda: None,
    *,
    rest: float = 0,
    warm_below: float = math.inf,
) -> None:
    """Fill the contenders' samples, for about `seconds` each; `between` is called once a round.

    `rest` is slept before each sample: threads of the contender before, that spin in case there is
    more work, fall asleep. Calls of `warm_below` seconds and more are not warmed up: fetching the
    weights is a small part of them.
    """
    brief = set()
    for contender in contenders:
        contender.sample(clock)  # page faults and first-use work
        once = contender.sample(clock)
        contender.repeats = max(1, min(1000, round(SAMPLE_SECONDS / max(once, 1e-7))))
        if once < warm_below:
            brief.add(id(contender))
    start = time.perf_counter()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and time.perf_counter() - start > seconds * len(contenders):
            break
        between()
        first = turn % len(contenders)  # nobody always follows the same one
        for contender in (*contenders[first:], *contenders[:first]):
            time.sleep(rest)
            contender.samples.append(contender.sample(clock, warm and id(contender) in brief))


def peak_gops(threads: int, seconds: float = SAMPLE_SECONDS) -> float:
    """GOP/s of the target's best register-only dot-product loop on so many threads."""
    return sum(_on_threads(threads, lambda: _nibblas.peak_dot(seconds)))


def read_gbps(nbytes: int, threads: int) -> float:
    """GB/s of reading so many bytes, a part on each thread, in the best of 1..8 streams."""
    part = max(nbytes // threads, SMALLEST_SET)
    return sum(_on_threads(threads, lambda: _nibblas.read_bandwidth(part)))


def copy_gbps(nbytes: int, threads: int, fresh: bool) -> float:
    """GB/s, read and written, of NumPy copying half so many bytes, a part on each thread.

    Into a new array if `fresh`, as an operation whose result is one: its pages come with the copy.
    """
    part = max(nbytes // 2 // threads, SMALLEST_SET)

    def work() -> float:
        source, target = np.ones(part, np.uint8), np.ones(part, np.uint8)
        best = math.inf
        for _ in range(9):
            start = time.perf_counter()
            if fresh:
                source.copy()
            else:
                np.copyto(target, source)
            best = min(best, time.perf_counter() - start)
        return 2 * part / best / 1e9

    return sum(_on_threads(threads, work))


def _on_threads(threads: int, work: Callable[[], float]) -> list[float]:
    if threads == 1:
        return [work()]
    barrier = threading.Barrier(threads)

    def together() -> float:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(together) for _ in range(threads)]
        return [job.result() for job in jobs]


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


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def lower_bound(values: Sequence[float], level: float = 0.95) -> float | None:
    """What the median lies above with that probability; None if there are too few values.

    It is one of the values: if k of n are below it, then it is above the median only if at most k
    are below the median, of which the binomial distribution knows the probability. Nothing is
    assumed of how the values are distributed.
    """
    count, below, bound = len(values), 0.0, None
    for k, value in enumerate(sorted(values)):
        below += math.comb(count, k) / 2**count
        if below > 1 - level:
            break
        bound = value
    return bound


def relative_rms(found: Array, expected: Array) -> float:
    """Root mean square of the error over that of what is expected, in float64."""
    error = found.astype(np.float64) - expected
    norm = float((expected * expected).sum())
    return math.sqrt(float((error * error).sum()) / norm) if norm else 0.0
