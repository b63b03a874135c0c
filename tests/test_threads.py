# SPDX-License-Identifier: Apache-2.0
"""Many Python threads, many workers, targets that change meanwhile, and the end of the process."""

from __future__ import annotations

import itertools
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import nibblas
from nibblas import _nibblas

from .cases import (
    COMPUTES,
    TARGETS,
    VARIANTS,
    Variant,
    assert_same_bits,
    in_fresh_python,
    random_weight,
    random_x,
)

PYTHON_THREADS = 64


def jobs_of_all_kinds(
    rng: np.random.Generator,
) -> list[tuple[Callable[[], np.ndarray], np.ndarray]]:
    """Calls of different functions, shapes and thread counts, with their results."""
    jobs = []

    def add(call: Callable[[], np.ndarray]) -> None:
        jobs.append((call, call()))

    for variant, (rows, cols, depth), threads in zip(
        VARIANTS * 2,
        itertools.cycle([(1, 700, 1500), (37, 170, 523), (5, 23, 70), (200, 33, 400)]),
        itertools.cycle([1, 2, 3, 5, None]),
        strict=False,
    ):
        w = random_weight(rng, variant, (cols, depth), [32, None][len(jobs) % 2])
        x = random_x(rng, (rows, depth))
        for compute in COMPUTES:
            add(
                lambda x=x, w=w, compute=compute, threads=threads: nibblas.linear(
                    x, w, compute=compute, num_threads=threads
                )
            )
        add(lambda w=w, threads=threads: w.dequantize(num_threads=threads))
    a = rng.integers(0, 256, (40, 300), np.uint8)
    b = rng.integers(-128, 128, (300, 200), np.int8)
    dense = random_x(rng, (90, 300))
    add(lambda: nibblas.matmul_integer(a, b, 3, 4, num_threads=3))
    add(lambda: nibblas.quantize(dense, "int4", num_threads=2).planes["codes"])
    add(lambda: nibblas.quantize_activations(dense, num_threads=3)[0])
    return jobs


def run_from_many_threads(
    jobs: list[tuple[Callable[[], np.ndarray], np.ndarray]], seconds: float
) -> int:
    """Every thread goes through all jobs in an order of its own, until the time is up."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    start = threading.Barrier(PYTHON_THREADS)

    def go(number: int) -> int:
        order = np.random.default_rng(number).permutation(len(jobs))
        start.wait()
        done = 0
        while not stop.is_set():
            call, expected = jobs[order[done % len(order)]]
            assert_same_bits(call(), expected, f"thread {number}, job {order[done % len(order)]}")
            done += 1
        return done

    timer.start()
    try:
        with ThreadPoolExecutor(PYTHON_THREADS) as pool:
            return sum(pool.map(go, range(PYTHON_THREADS)))
    finally:
        stop.set()
        timer.join()


def test_concurrent_calls(rng, target):
    done = run_from_many_threads(jobs_of_all_kinds(rng), seconds=1.5)
    assert done >= PYTHON_THREADS


@pytest.mark.skipif(len(TARGETS) < 2, reason="there is one target only")
def test_target_changes_while_others_compute(rng):
    jobs = jobs_of_all_kinds(rng)
    stop = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        for name in itertools.cycle(TARGETS):
            if stop.wait(0.0005):
                return
            nibblas.use_target(name)
            changes += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        run_from_many_threads(jobs, seconds=3)
    finally:
        stop.set()
        thread.join()
    assert changes > 20


def test_settings_change_from_all_threads(rng):
    """Every thread sets the target and the number of threads for its own calls, against all others.

    What it then gets may be another's choice, but always one that somebody made.
    """

    def with_settings(call: Callable[[], np.ndarray], number: int) -> np.ndarray:
        with nibblas.use_target(TARGETS[number % len(TARGETS)]):
            nibblas.set_num_threads(1 + number % 5)
            result = call()
            assert nibblas.target() in nibblas.available_targets()
            assert 1 <= nibblas.get_num_threads() <= 5
            return result

    changing = [
        (lambda call=call, number=number: with_settings(call, number), expected)
        for number, (call, expected) in enumerate(jobs_of_all_kinds(rng))
    ]
    run_from_many_threads(changing, seconds=2)


def test_thread_count_changes_while_others_compute(rng):
    jobs = jobs_of_all_kinds(rng)
    stop = threading.Event()

    def change() -> None:
        for threads in itertools.cycle((1, 2, 3, 8)):
            if stop.wait(0.001):
                return
            nibblas.set_num_threads(threads)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        run_from_many_threads(jobs, seconds=1.5)
    finally:
        stop.set()
        thread.join()


def test_calls_from_threads_that_end(rng):
    """Each thread has scratch memory of its own, which goes when it ends."""
    w = random_weight(rng, Variant("int4", "symmetric"), (170, 523), 32)
    x = random_x(rng, (37, 523))
    expected = nibblas.linear(x, w)
    results: list[np.ndarray] = []
    for _ in range(50):
        threads = [
            threading.Thread(target=lambda: results.append(nibblas.linear(x, w, num_threads=2)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 200
    for y in results:
        assert_same_bits(y, expected)


def test_the_gil_is_released(rng):
    """While one thread is inside a long product, another one runs Python."""
    w = random_weight(rng, Variant("int4", "symmetric"), (4096, 4096), 32, scale_dtype="float16")
    x = random_x(rng, (32, 4096))
    nibblas.use_target("scalar")  # half a giga of multiplications are 100 ms or so
    entered, ticks = threading.Event(), 0

    def work() -> None:
        entered.set()
        nibblas.linear(x, w, num_threads=1)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    while thread.is_alive():
        ticks += 1
        thread.join(0.001)
    assert ticks > 10  # with the GIL held all the time, the product would be one or two


@pytest.mark.parametrize("threads", [2, 3, 64, 1000])
def test_more_threads_than_cpus_or_tasks(threads, rng, target):
    # 16 panels at most, so 1,000 threads find no work. (Much of it, or only the CPUs get a thread.)
    w = random_weight(rng, Variant("uint4", "zero_point"), (250, 523), 32)
    x = random_x(rng, (400 if target == "scalar" else 2000, 523))
    expected = nibblas.linear(x, w, num_threads=1)
    nibblas.set_num_threads(threads)
    assert nibblas.get_num_threads() == threads
    for _ in range(5):
        assert_same_bits(nibblas.linear(x, w), expected)


def test_too_many_threads_are_refused():
    for threads in (2**31, 10**30, 10_000_000):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            nibblas.set_num_threads(threads)
    assert nibblas.get_num_threads() < 10_000_000


# --- the end of the process


EXIT = """
import threading, time, numpy as np, nibblas
rng = np.random.default_rng(0)
w = nibblas.quantize(rng.standard_normal((700, 523), dtype=np.float32))
x = rng.standard_normal((288, 523), dtype=np.float32)
running = threading.Semaphore(0)
def forever():
    while True:
        nibblas.linear(x, w, num_threads={workers})
        running.release()
for _ in range(4):
    threading.Thread(target=forever, daemon=True).start()
for _ in range(12):
    running.acquire()
"""


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("attempt", range(5))
def test_exit_while_daemon_threads_compute(workers, attempt):
    output = in_fresh_python(EXIT.format(workers=workers) + "print('end')")
    assert output == "end\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="on_exit is of glibc")
@pytest.mark.parametrize("workers", [1, 3])
def test_exit_that_lasts_longer_than_a_product(workers):
    """Threads come out of their product after the interpreter's end, but before the process's.

    The interpreter then ends them as they ask for the GIL; nothing on their stacks may touch it.
    glibc hands the exit status to what on_exit registers: usleep(768_000), which is 0 modulo 256.
    """
    code = f"""
import ctypes, sys, threading, numpy as np, nibblas
w = nibblas.quantize(np.ones((1000, 1000), np.float32))
x = np.ones((200, 1000), np.float32)
inside = threading.Semaphore(0)
def work():
    inside.release()
    nibblas.linear(x, w, num_threads={workers})
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
for _ in range(3):
    inside.acquire()
libc = ctypes.CDLL(None)
libc.on_exit(libc.usleep, None)
print("end")
sys.exit(768_000)
"""
    assert in_fresh_python(code, NIBBLAS_TARGET="scalar") == "end\n"


@pytest.mark.parametrize(
    "ending",
    ["import sys; sys.exit(0)", "import os; os._exit(0)", "import atexit; atexit.register(print)"],
)
def test_other_ways_to_end(ending):
    in_fresh_python(EXIT.format(workers=2) + ending)


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

# The native module by itself: NumPy has complaints of its own.
there = f'''
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
loader = ExtensionFileLoader("nibblas._nibblas", {path!r})
try:
    module_from_spec(spec_from_loader("nibblas._nibblas", loader))
except ImportError as error:
    result = str(error)
else:
    result = "imported"
open({answer!r}, "w").write(result)
'''
for _ in range(2):  # before and after the main interpreter has it
    interpreters.run_string(interpreters.create(), there)
    message = open(answer).read()
    assert "subinterpreter" in message, message
    import numpy as np, nibblas
    w = nibblas.quantize(np.ones((16, 64), np.float32))
    assert nibblas.linear(np.ones((1, 64), np.float32), w)[0, 0] == 64
"""


def test_a_subinterpreter_is_refused(tmp_path):
    """Whichever interpreter comes first; the main one works."""
    given = f"path, answer = {_nibblas.__file__!r}, {str(tmp_path / 'answer')!r}"
    in_fresh_python(given + SUBINTERPRETER)


def test_use_in_atexit_and_finalizers():
    code = """
import atexit, weakref, numpy as np, nibblas
w = nibblas.quantize(np.ones((700, 523), np.float32))
x = np.ones((288, 523), np.float32)
expected = nibblas.linear(x, w, num_threads=3)
def last():
    assert np.array_equal(nibblas.linear(x, w, num_threads=3), expected)
    print("computed")
atexit.register(last)
weakref.finalize(w, print, "gone")
"""
    assert sorted(in_fresh_python(code).split()) == ["computed", "gone"]
