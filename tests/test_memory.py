# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out inside a call, and the borders of all memory that the library itself takes.

A call that does not get its memory raises MemoryError. It changes no input, keeps nothing, and the
next call works. All of this runs in processes of its own.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nibblas import _nibblas

from .builds import EMULATED
from .cases import in_fresh_python

TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        platform.libc_ver()[0] != "glibc", reason="limits and replaces what glibc allocates"
    ),
    pytest.mark.skipif(
        _nibblas.build_info()["sanitizers"] != "", reason="sanitizers have allocators of their own"
    ),
    pytest.mark.skipif(
        EMULATED, reason="the limit and what is preloaded would be those of the emulator"
    ),
]

# Every operation that takes memory, called cold; each gives arrays to compare.
OPERATIONS = """
import os, resource, sys, tempfile, threading
import ml_dtypes, numpy as np, nibblas
from nibblas import _nibblas
from nibblas.io import gguf
rng = np.random.default_rng(0)
dense = rng.standard_normal((ROWS, 1000), dtype=np.float32)
x = rng.standard_normal((200, 1000), dtype=np.float32)
every_other = np.lib.stride_tricks.as_strided(x, (99, 2, 500), (8000, 4000, 8))
bias = rng.standard_normal(ROWS, dtype=np.float32)
a, b = rng.integers(-128, 128, (200, 1000), np.int8), rng.integers(0, 256, (1000, ROWS), np.uint8)
blocks = rng.standard_normal((ROWS, 1024), dtype=np.float32)
w = nibblas.quantize(dense, "uint4", 32, offset="min", num_threads=1)
w8 = nibblas.quantize(dense, "int8", num_threads=1)
w5 = nibblas.quantize(blocks, "q5_k", num_threads=1)
codes, scales = w8.unpack()["codes"], w8.unpack()["scales"]
order = rng.permutation(1000).astype(np.int32)
raw = gguf.quantize(blocks, "Q5_K", num_threads=1)
path = os.path.join(tempfile.mkdtemp(), "w")
w.save(path)
planes = lambda weight: list(weight.planes.values())
operations = {
    "linear": lambda: [nibblas.linear(x, w, bias, activation="gelu", num_threads=3)],
    "linear, rows unevenly apart": lambda: [
        nibblas.linear(every_other, nibblas.quantize(dense[:, :500]), dtype="float16")
    ],
    "linear float32": lambda: [nibblas.linear(x, w, compute="float32", num_threads=1)],
    "linear with many rows in a batch": lambda: [nibblas.linear(x.reshape(2, 100, 1000), w)],
    "@": lambda: [x @ w.T],
    "matmul_integer": lambda: [nibblas.matmul_integer(a, b, 3, np.arange(ROWS) % 7)],
    "matmul_integer, packed": lambda: [nibblas.matmul_integer(a, w8, 3)],
    "quantize_activations": lambda: list(nibblas.quantize_activations(x, 32)),
    "quantize": lambda: planes(nibblas.quantize(dense, "uint5", 16, num_threads=2)),
    "quantize nf4": lambda: planes(nibblas.quantize(dense.T, "nf4")),
    "quantize nvfp4": lambda: planes(nibblas.quantize(dense, "nvfp4")),
    "quantize q4_k": lambda: planes(nibblas.quantize(blocks, "q4_k")),
    "pack": lambda: planes(nibblas.pack(codes, scales, scheme="int8", group_size=None)),
    "pack, input order": lambda: planes(
        nibblas.pack(codes, scales, scheme="int8", group_size=None, input_order=order)
    ),
    "unpack": lambda: [w.unpack()["codes"], w5.unpack()["codes"]],
    "dequantize": lambda: [w.dequantize()],
    "dequantize bfloat16": lambda: [w5.dequantize("bfloat16")],
    "take": lambda: [w.take(np.arange(ROWS)[::-1])],
    "copy": lambda: planes(w.copy()),
    "load": lambda: planes(nibblas.load(path)),
    "load, copied": lambda: planes(nibblas.load(path, mmap=False)),
    "save": lambda: w.save(path + "2") or planes(nibblas.load(path + "2")),
    "gguf.quantize": lambda: [gguf.quantize(blocks, "Q4_K")],
    "gguf.dequantize": lambda: [gguf.dequantize(raw, "Q5_K")],
    "gguf.from_blocks": lambda: planes(gguf.from_blocks(raw, "Q5_K")),
}
def complaint(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return [np.frombuffer(repr(error).encode(), np.uint8)]
# What the native module itself has to say about such calls takes memory, too.
native = w._native
operations |= {
    "bad shape": lambda: complaint(lambda: _nibblas.linear(x[:, :5], native)),
    "bad type": lambda: complaint(lambda: _nibblas.linear(x.astype(np.float64), native)),
    "bad name": lambda: complaint(lambda: _nibblas.linear(x, native, activation="tanh")),
    "bad number": lambda: complaint(lambda: _nibblas.set_num_threads(0)),
    "bad target": lambda: complaint(lambda: _nibblas.set_target("abacus")),
}
inputs = [dense, x, bias, a, b, blocks, codes, scales, order, raw, *planes(w), *planes(w8)]
before = [array.tobytes() for array in inputs]
references = [sys.getrefcount(array) for array in inputs]
def same(found, expected):
    return all(np.array_equal(f.view(np.uint8), e.view(np.uint8)) for f, e in zip(found, expected))
def inputs_are_unchanged():
    # Nor does anything still hold them.
    return ([array.tobytes() for array in inputs] == before
            and [sys.getrefcount(array) for array in inputs] == references)
"""

LIMITS = """
def attempt(call, expected, more):
    # In a child, for which all is cold: its memory, its threads.
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                result = call()
                code = 10
            except MemoryError:
                result, code = expected, 11
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            if not (same(result, expected) and same(call(), expected) and inputs_are_unchanged()):
                code = 2
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for name, call in operations.items():
    pid = os.fork()  # not in this process, which is to stay cold
    if pid == 0:
        expected = call()
        spare = [more << 16 for more in (0, 1, 2, 4, 7, 11, 16, 24, 40, 400)]
        print(name, [attempt(call, expected, more) for more in spare], sep=": ", flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, name
"""


@pytest.mark.parametrize("arenas", ["1", "8"])
def test_a_limit_on_memory_is_met_by_memory_errors(arenas):
    """Each operation under limits from none to spare up to enough.

    All but small arrays come from the system: with one arena also those of a new thread, which else
    finds what another has left for all that the call takes, though not for its thread-local memory.
    """
    code = OPERATIONS.replace("ROWS", "1001") + LIMITS
    lines = in_fresh_python(
        code, MALLOC_ARENA_MAX=arenas, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TOP_PAD_="0"
    ).splitlines()
    outcomes = {name: ast.literal_eval(codes) for name, codes in (x.split(": ") for x in lines)}
    assert len(outcomes) == 30
    for name, codes in outcomes.items():
        assert set(codes) <= {10, 11}, (name, codes)  # negative: the signal that ended the process
        assert codes[-1] == 10, (name, codes)
    # With several arenas most calls find room in what another thread's has set aside.
    enough = 20 if arenas == "1" else 1
    assert sum(11 in codes for codes in outcomes.values()) >= enough, outcomes


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of preload_memory.cpp."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("preload") / "memory.so"
    source = TESTS / "preload_memory.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, source, "-o", library], check=True, timeout=60)
    return library


FAILURES = """
import ctypes
fail = ctypes.CDLL(PRELOAD).nibblas_test_fail
fail.restype = ctypes.c_long

def cold(call, n):
    # In a thread of its own, as scratch memory is each thread's; how many it has taken, and what
    # came of it.
    outcome = []
    def run():
        fail(n)
        try:
            outcome.append(call())
        except MemoryError:
            outcome.append(None)
        outcome.append(fail(0))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, taken = outcome
    return taken, result

"""

EACH_ONCE = """
for name, call in operations.items():
    expected = call()
    count, result = cold(call, 0)
    assert same(result, expected), name
    refused = 0
    for n in range(1, count + 1):
        taken, result = cold(call, n)
        assert taken >= n, (name, n)
        assert result is None or same(result, expected), (name, n)
        refused += result is None
    assert same(call(), expected), name
    assert inputs_are_unchanged(), name
    print(name, count, refused, sep=": ", flush=True)
"""


def test_each_allocation_may_fail(preload):
    """The first, the second, ... of those that the module itself makes in a call."""
    code = f"PRELOAD = {str(preload)!r}\n" + OPERATIONS.replace("ROWS", "101")
    lines = in_fresh_python(code + FAILURES + EACH_ONCE, LD_PRELOAD=str(preload)).splitlines()
    assert len(lines) == 30
    for line in lines:
        _, count, refused = line.split(": ")
        # Nothing is done in another way where memory is short, so each is missed.
        assert int(count) == int(refused) > 0, line


NO_POOL_YET = """
call = operations["linear"]
expected = call()
for n in range(1, 1000):
    pid = os.fork()  # whose child has no pool
    if pid == 0:
        code = 1
        try:
            taken, result = cold(call, n)
            right = (result is None or same(result, expected)) and same(call(), expected)
            code = 1 if not right else 12 if taken < n else 11 if result is None else 10
        finally:
            os._exit(code)
    outcome = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(outcome)
    if outcome == 12:
        break
"""


def test_threads_that_cannot_start_are_done_without(preload):
    """No memory for the pool or a worker: the call goes on with the threads that there are."""
    code = f"PRELOAD = {str(preload)!r}\n" + OPERATIONS.replace("ROWS", "101")
    found = in_fresh_python(code + FAILURES + NO_POOL_YET, LD_PRELOAD=str(preload)).split()
    assert found[-1] == "12"  # none was to fail any more
    assert set(found[:-1]) == {"10", "11"}, found


LOST = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

errors = 0
for round in range(30):
    for call in operations.values():
        taken, result = cold(call, 1 + round % 15)
        errors += result is None
    if round == 14:
        held = resident()
assert errors > 200, errors
assert inputs_are_unchanged()
print(resident() - held)
"""


def test_failures_lose_no_memory(preload):
    """After each of the first 15 failures of every operation, the same once more."""
    code = f"PRELOAD = {str(preload)!r}\n" + OPERATIONS.replace("ROWS", "501")
    # One lost array is 250 kB or more, one lost block of scratch memory 64 KiB.
    # They come from the system and go back to it: no free memory is kept for later.
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
    lost = int(in_fresh_python(code + FAILURES + LOST, LD_PRELOAD=str(preload), **settings))
    assert lost < 4e6


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "end"])
def test_the_library_s_own_memory_has_borders_too(at, preload):
    """Outputs and scratch memory, which it takes itself, against pages that nobody may touch."""
    tests = [TESTS / "test_guard_pages.py", TESTS / "test_blocks.py"]
    which = "quantize or pack or activ or (linear and int8 and start) or (blocks and not numerics)"
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        [*run, "-k", which],
        env={**os.environ, "LD_PRELOAD": str(preload), "NIBBLAS_TEST_FENCE": at},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("at", "offset", "faults"),
    [("end", 127, False), ("end", 128, True), ("start", 0, False), ("start", -1, True)],
)
def test_the_fence_works(at, offset, faults, preload):
    """A process that crosses the border of such memory ends."""
    code = f"""
import ctypes, numpy as np
from nibblas import _nibblas
array = _nibblas.empty(np.dtype(np.uint8), (128,))
print("before", flush=True)
ctypes.memset(array.ctypes.data + {offset}, 1, 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(preload), "NIBBLAS_TEST_FENCE": at},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "before\n", done.stderr
    assert (done.returncode != 0) == faults, done.stderr
