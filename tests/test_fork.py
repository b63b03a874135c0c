# SPDX-License-Identifier: Apache-2.0
"""Processes that fork, before and after the pool exists, and while it works.

Everything runs in interpreters of their own: pytest's process has threads that are none of ours.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cases import in_fresh_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

PREPARE = """
import os, signal, sys, threading, time, warnings
import numpy as np, nibblas
warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside other threads, in 3.12
rng = np.random.default_rng(0)
w = nibblas.quantize(rng.standard_normal((700, 523), dtype=np.float32))
x = rng.standard_normal((288, 523), dtype=np.float32)  # work for three, on one CPU too
a, b = np.full((288, 523), 255, np.uint8), np.full((523, 700), -128, np.int8)

def right(threads=3):
    return (
        np.array_equal(nibblas.linear(x, w, num_threads=threads), expected)
        and (nibblas.matmul_integer(a, b, num_threads=threads) == -128 * 255 * 523).all()
    )

def child_is_right(threads=3, work=right):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs ends, and not well
        code = 1
        try:
            code = 0 if work(threads) else 3
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status == 0
"""

EXPECTED = "expected = nibblas.linear(x, w, num_threads=3)\n"


def test_fork_before_first_use():
    """Parent and child each make a pool."""
    code = """
expected = nibblas.linear(x, w, num_threads=1)
assert child_is_right()
assert right()
"""
    in_fresh_python(PREPARE + code)


def test_fork_after_use():
    code = """
for _ in range(10):
    assert child_is_right()
    assert right()
assert child_is_right(2) and child_is_right(7)
"""
    in_fresh_python(PREPARE + EXPECTED + code)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_the_child_has_workers_of_its_own():
    """It would get right results without any, from its one thread."""
    code = """
def workers():
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            names.append(file.read().strip())
    return names.count("nibblas")
def soon(number):  # a thread gives itself its name, when it first runs
    end = time.monotonic() + 10
    while workers() != number and time.monotonic() < end:
        time.sleep(0.001)
    return workers() == number
def grows(threads):
    return workers() == 0 and right(threads) and soon(threads - 1)
assert soon(2)
assert child_is_right(3, grows) and child_is_right(2, grows)
"""
    in_fresh_python(PREPARE + EXPECTED + code)


def test_children_of_children():
    code = """
def three(threads, left=3):
    ok = right(threads)
    return ok and (left == 0 or child_is_right(threads, lambda t: three(t, left - 1))) and right(2)
assert child_is_right(3, three)
assert right()
"""
    in_fresh_python(PREPARE + EXPECTED + code)


@pytest.mark.parametrize("threads", [1, 3])
def test_fork_while_other_threads_compute(threads):
    """In the child those threads exist no more, and what they held stays held."""
    code = f"""
stop = threading.Event()
wrong = []
running = threading.Semaphore(0)
def compute():
    while not stop.is_set():
        if not right({threads}):
            wrong.append(1)
        running.release()
others = [threading.Thread(target=compute) for _ in range(3)]
for thread in others:
    thread.start()
for _ in range(3):
    running.acquire()
for _ in range(25):
    assert child_is_right()
stop.set()
for thread in others:
    thread.join()
assert not wrong and right()
"""
    in_fresh_python(PREPARE + EXPECTED + code)


def test_fork_from_another_thread_than_the_main_one():
    code = """
results = []
for _ in range(5):
    thread = threading.Thread(target=lambda: results.append(child_is_right()))
    thread.start()
    right(2)
    thread.join()
assert results == [True] * 5
"""
    in_fresh_python(PREPARE + EXPECTED + code)


def test_settings_are_inherited():
    code = """
nibblas.set_num_threads(5)
nibblas.use_target("scalar")
def same(threads):
    return nibblas.get_num_threads() == 5 and nibblas.target() == "scalar" and right(threads)
assert child_is_right(2, same)
def changed(threads):
    nibblas.set_num_threads(2)
    nibblas.use_target(nibblas.available_targets()[0])
    return right(threads)
assert child_is_right(3, changed)
assert nibblas.get_num_threads() == 5 and nibblas.target() == "scalar"
"""
    in_fresh_python(PREPARE + EXPECTED + code)


def test_fork_with_a_mapped_weight(tmp_path):
    code = f"""
w.save({str(tmp_path / "w")!r})
w = nibblas.load({str(tmp_path / "w")!r})
assert right() and child_is_right() and right()
"""
    in_fresh_python(PREPARE + EXPECTED + code)


def test_the_child_may_end_in_the_usual_way():
    """Through the interpreter's end, with workers of its own and a thread at work."""
    code = """
right()
pid = os.fork()
if pid == 0:
    assert right()
    threading.Thread(target=lambda: [right() for _ in range(10**6)], daemon=True).start()
    time.sleep(0.05)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert right()
"""
    in_fresh_python(PREPARE + EXPECTED + code)


POOL = """
import multiprocessing, sys, warnings
import numpy as np, nibblas
warnings.simplefilter("ignore", DeprecationWarning)

rng = np.random.default_rng(0)
dense = rng.standard_normal((700, 523), dtype=np.float32)
x = rng.standard_normal((288, 523), dtype=np.float32)
weight = nibblas.quantize(dense, num_threads=2)

def product(threads):
    return nibblas.linear(x, weight, num_threads=threads)

def product_of(pair):
    return nibblas.linear(*pair, num_threads=2)

if __name__ == "__main__":
    expected = product(3)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(3) as pool:
        for found in pool.map(product, [1, 2, 3] * 4, chunksize=1):
            assert np.array_equal(found, expected)
        # A weight also travels: it is pickled to the workers.
        for found in pool.map(product_of, [(x, weight)] * 4, chunksize=1):
            assert np.array_equal(found, expected)
        assert np.array_equal(product(3), expected)
    print("done")
"""


def run_script(text: str, method: str, folder: Path) -> str:
    """What a script prints: in a file, for the processes that import it anew."""
    script = folder / "script.py"
    script.write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLAS_")}
    done = subprocess.run(
        [sys.executable, script, method], capture_output=True, text=True, timeout=120, env=kept
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method, tmp_path):
    assert run_script(POOL, method, tmp_path) == "done\n"


KILLED = """
import concurrent.futures, multiprocessing, os, signal, sys, threading, time, warnings
from concurrent.futures.process import BrokenProcessPool
import numpy as np, nibblas
warnings.simplefilter("ignore", DeprecationWarning)

rng = np.random.default_rng(0)
weight = nibblas.quantize(rng.standard_normal((700, 523), dtype=np.float32), num_threads=2)
x = rng.standard_normal((288, 523), dtype=np.float32)

def product(threads):
    return nibblas.linear(x, weight, num_threads=threads)

def killed_inside(threads):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        product(threads)

if __name__ == "__main__":
    expected = product(3)
    context = multiprocessing.get_context(sys.argv[1])
    right, wrong = [], []
    stop = threading.Event()
    def go_on():
        while not stop.is_set():
            (right if np.array_equal(product(2), expected) else wrong).append(1)
    other = threading.Thread(target=go_on)
    other.start()
    for _ in range(2):
        with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
            assert np.array_equal(pool.submit(product, 2).result(), expected)
            try:
                pool.submit(killed_inside, 3).result(60)
            except BrokenProcessPool:
                print("broken")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        for found in pool.map(product, [1, 2, 3]):
            assert np.array_equal(found, expected)
    before = len(right)
    while len(right) < before + 3:
        time.sleep(0.01)
    stop.set()
    other.join()
    assert not wrong
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_killed_worker(method, tmp_path):
    """It dies within a product; the parent computes on, and new workers work."""
    assert run_script(KILLED, method, tmp_path) == "broken\nbroken\n"
