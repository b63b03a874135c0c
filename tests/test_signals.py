# SPDX-License-Identifier: Apache-2.0
"""Signals that arrive during a call: their Python handlers run, and end it where they raise.

Calls here take seconds if nothing ends them. Where they write to `out`, that its end is as it was
shows that they were given up; elsewhere, that they took less than half of their time.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import nibblas
from nibblas.io import gguf

from .cases import (
    FLUSH_TO_ZERO,
    Variant,
    assert_same_bits,
    in_fresh_python,
    mxcsr_bits,
    random_weight,
    random_x,
)

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="this system has no interval timers"
)

threads_of_a_call = pytest.mark.parametrize("threads", [1, 3])
AFTER = 0.05


class Rang(Exception):
    """What a handler raises here."""


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """alarm(handler): calls it once, AFTER seconds from now, in the main thread."""

    def start(handler: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda number, frame: handler())
        signal.setitimer(signal.ITIMER_REAL, AFTER)

    before = signal.getsignal(signal.SIGALRM)
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def ring() -> None:
    raise Rang


class Long:
    """Operands of long calls, most of their elements the same few bytes of memory."""

    def __init__(self, rng: np.random.Generator, threads: int) -> None:
        self.threads = threads
        self.w = random_weight(rng, Variant("int4", "symmetric"), (1000, 1000), 32)
        self.x = np.broadcast_to(random_x(rng, (1, 1000)), (60_000, 1000))
        self.y = np.full((len(self.x), 1000), 7, np.float32)
        self.a = np.broadcast_to(rng.integers(-128, 128, (1, 1000), np.int8), self.x.shape)
        self.dense = np.broadcast_to(random_x(rng, (1, 2048)), (60_000, 2048))

    def linear(self, compute: str) -> np.ndarray:
        return nibblas.linear(self.x, self.w, compute=compute, out=self.y, num_threads=self.threads)

    def matmul_integer(self, b: Any) -> np.ndarray:
        out = self.y.view(np.int32)
        return nibblas.matmul_integer(self.a, b, out=out, num_threads=self.threads)


WITH_OUT: dict[str, Callable[[Long], Any]] = {
    "linear int8": lambda long: long.linear("int8"),
    "linear float32": lambda long: long.linear("float32"),
    "matmul_integer packed": lambda long: long.matmul_integer(long.w),
    "matmul_integer": lambda long: long.matmul_integer(np.ones((1000, 1000), np.int8)),
}


@threads_of_a_call
@pytest.mark.parametrize("name", WITH_OUT)
def test_a_handler_s_exception_ends_the_call(name, threads, rng, alarm):
    long = Long(rng, threads)
    small = random_x(rng, (5, 1000))
    expected = nibblas.linear(small, long.w)
    with nibblas.use_target("scalar"):
        alarm(ring)
        with pytest.raises(Rang):
            WITH_OUT[name](long)
    assert (long.y[-1] == 7).all()
    assert_same_bits(nibblas.linear(small, long.w, num_threads=3), expected)


WITHOUT_OUT: dict[str, Callable[[Long], Any]] = {
    "quantize int4": lambda long: nibblas.quantize(long.dense, "int4", num_threads=long.threads),
    "quantize nf4": lambda long: nibblas.quantize(long.dense, "nf4", num_threads=long.threads),
    "quantize nvfp4": lambda long: nibblas.quantize(long.dense, "nvfp4", num_threads=long.threads),
    "quantize q4_k": lambda long: nibblas.quantize(long.dense, "q4_k", num_threads=long.threads),
    "gguf.quantize": lambda long: gguf.quantize(
        np.ascontiguousarray(long.dense[:8000]), "Q4_K", num_threads=long.threads
    ),
}


@threads_of_a_call
@pytest.mark.parametrize("name", WITHOUT_OUT)
def test_quantization_ends_at_once(name, threads, rng, alarm):
    """A thousandth of the matrix tells how long all of it would take: seconds."""
    long = Long(rng, threads)
    whole, long.dense = long.dense, long.dense[:320]
    with nibblas.use_target("scalar"):
        start = time.monotonic()
        WITHOUT_OUT[name](long)
        in_full = (time.monotonic() - start) * len(whole) / 320
        long.dense = whole
        alarm(ring)
        start = time.monotonic()
        with pytest.raises(Rang):
            WITHOUT_OUT[name](long)
        assert time.monotonic() - start < max(in_full / 2, 0.3)
    small = random_x(rng, (20, 100))
    codes = nibblas.quantize(small, num_threads=1).planes["codes"]
    assert_same_bits(nibblas.quantize(small, num_threads=3).planes["codes"], codes)


@threads_of_a_call
@pytest.mark.parametrize("spoils", [False, True])
def test_a_handler_that_returns_changes_nothing(spoils, threads, rng, alarm):
    """It runs during the call, may call the library itself, and may spoil the control word."""
    w = random_weight(rng, Variant("int4", "symmetric"), (1000, 1000), 32)
    x = random_x(rng, (2000, 1000))
    x[1000:] *= np.float32(2.0**-125)  # subnormal scales and products, which FTZ would flush
    expected = nibblas.linear(x, w, num_threads=1)
    ran: list[float] = []
    spoiled = mxcsr_bits(FLUSH_TO_ZERO) if spoils else contextlib.nullcontext()
    with spoiled:  # also to skip the test where it cannot be done
        pass
    spoiled = mxcsr_bits(FLUSH_TO_ZERO) if spoils else contextlib.nullcontext()

    def handler() -> None:
        ran.append(time.monotonic())
        assert_same_bits(nibblas.linear(x[:50], w, num_threads=3), expected[:50])
        spoiled.__enter__()

    out = np.zeros_like(expected)
    with nibblas.use_target("scalar"):
        alarm(handler)
        nibblas.linear(x, w, out=out, num_threads=threads)
        end = time.monotonic()
    spoiled.__exit__(None, None, None)
    assert len(ran) == 1
    assert ran[0] < end
    assert_same_bits(out, expected)


def test_other_threads_are_left_alone(rng, alarm):
    """Handlers run in the main thread: calls of others go on, and give what they would have."""
    w = random_weight(rng, Variant("int4", "symmetric"), (1000, 1000), 32)
    x = random_x(rng, (3000, 1000))
    expected = nibblas.linear(x, w)
    results: list[np.ndarray] = []
    with nibblas.use_target("scalar"):
        thread = threading.Thread(
            target=lambda: results.append(nibblas.linear(x, w, num_threads=2))
        )
        thread.start()
        alarm(ring)
        with pytest.raises(Rang):
            time.sleep(60)
        thread.join()
    assert_same_bits(results[0], expected)


@threads_of_a_call
def test_many_interruptions_lose_nothing(threads, rng, alarm):
    """Neither memory nor the pool's workers."""
    long = Long(rng, threads)
    small = random_x(rng, (40, 1000))
    expected = nibblas.linear(small, long.w)
    with nibblas.use_target("scalar"):
        for _ in range(5):
            alarm(ring)
            with pytest.raises(Rang):
                long.linear("int8")
            assert_same_bits(nibblas.linear(small, long.w, num_threads=3), expected)


CTRL_C = """
import _thread, os, signal, sys, threading, time
import numpy as np, nibblas
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
w = nibblas.quantize(np.ones((1000, 1000), np.float32))
x = np.ones((5, 1000), np.float32)
expected = nibblas.linear(x, w)
many = np.broadcast_to(x[:1], (200_000, 1000))
pressed = []
def press():
    time.sleep(0.3)
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
try:
    nibblas.linear(many, w, num_threads={threads})
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0])
assert np.array_equal(nibblas.linear(x, w, num_threads=3), expected)
"""


@threads_of_a_call
def test_ctrl_c(threads):
    """The call would take ten seconds or more; a tenth of one is typical."""
    seconds = float(in_fresh_python(CTRL_C.format(threads=threads), NIBBLAS_TARGET="scalar"))
    assert seconds < 2


def test_ctrl_c_ends_the_process_that_does_not_catch_it():
    code = """
import os, signal, sys, threading, time, numpy as np, nibblas
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.excepthook = lambda kind, *_: (print(kind.__name__, flush=True), os._exit(0))
w = nibblas.quantize(np.ones((1000, 1000), np.float32))
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
nibblas.linear(np.broadcast_to(np.float32(1), (200_000, 1000)), w, num_threads=2)
"""
    assert in_fresh_python(code, NIBBLAS_TARGET="scalar") == "KeyboardInterrupt\n"
