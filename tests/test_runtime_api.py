# SPDX-License-Identifier: Apache-2.0
"""Targets, threads, cpu_info and explain as users call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import nibblas

TARGETS = nibblas.available_targets()
BEST = TARGETS[0]


@pytest.fixture
def weight(rng):
    return nibblas.quantize(rng.standard_normal((20, 100), dtype=np.float32), "int4", 32)


# --- targets


def test_available_targets():
    assert TARGETS[-1] == "scalar"
    assert len(set(TARGETS)) == len(TARGETS)
    assert nibblas.target() in TARGETS
    TARGETS_COPY = nibblas.available_targets()
    TARGETS_COPY.clear()
    assert nibblas.available_targets() == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_use_target_as_a_function(name):
    assert nibblas.use_target(name).name == name
    assert nibblas.target() == name
    assert repr(nibblas.use_target(name)) == f"use_target({name!r})"


@pytest.mark.parametrize("name", TARGETS)
def test_use_target_as_a_context(name):
    before = nibblas.target()
    with nibblas.use_target(name) as used:
        assert used.name == name
        assert nibblas.target() == name
        with nibblas.use_target("scalar"):
            assert nibblas.target() == "scalar"
        assert nibblas.target() == name
    assert nibblas.target() == before


def test_use_target_is_undone_after_an_error():
    nibblas.use_target(BEST)
    with pytest.raises(KeyError), nibblas.use_target("scalar"):
        raise KeyError
    assert nibblas.target() == BEST


def test_use_target_again():
    nibblas.use_target(BEST)
    scalar = nibblas.use_target("scalar")
    nibblas.use_target(BEST)
    for _ in range(2):
        with scalar:
            assert nibblas.target() == "scalar"
        assert nibblas.target() == BEST


@pytest.mark.parametrize("name", ["sse9", "", "SCALAR", "avx512_everything"])
def test_unknown_target_lists_the_choices(name):
    before = nibblas.target()
    with pytest.raises(ValueError, match="scalar") as caught:
        nibblas.use_target(name)
    for choice in TARGETS:
        assert choice in str(caught.value)
    assert nibblas.target() == before


@pytest.mark.parametrize("name", [None, 1, b"scalar"])
def test_use_target_refuses_what_is_no_name(name):
    with pytest.raises(TypeError, match="must be a string, got"):
        nibblas.use_target(name)


def test_use_target_is_for_the_whole_process():
    nibblas.use_target("scalar")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(nibblas.target()))
    thread.start()
    thread.join()
    assert seen == ["scalar"]


def in_fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLAS_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_environment_chooses_the_target(name):
    done = in_fresh_python("import nibblas; print(nibblas.target())", NIBBLAS_TARGET=name)
    assert done.stdout.strip() == name, done.stderr


def test_faulty_environment_is_an_error_that_use_target_puts_right():
    code = (
        "import numpy as np, nibblas\n"
        "try:\n"
        "    nibblas.target()\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "nibblas.use_target('scalar')\n"
        "print(nibblas.target())\n"
    )
    done = in_fresh_python(code, NIBBLAS_TARGET="sse9")
    assert done.returncode == 0, done.stderr
    message, target = done.stdout.splitlines()
    assert "NIBBLAS_TARGET" in message
    assert "sse9" in message
    assert all(name in message for name in TARGETS)
    assert target == "scalar"


def test_first_use_with_a_faulty_environment_is_an_error_too():
    code = "import numpy as np, nibblas; nibblas.quantize(np.ones((1, 64), np.float32))"
    done = in_fresh_python(code, NIBBLAS_TARGET="sse9")
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "NIBBLAS_TARGET" in done.stderr


# --- threads


def test_set_num_threads(weight, rng):
    x = rng.standard_normal((9, 100), dtype=np.float32)
    expected = nibblas.linear(x, weight)
    for threads in (1, 2, np.int64(3), 7):
        nibblas.set_num_threads(threads)
        assert nibblas.get_num_threads() == threads
        assert np.array_equal(nibblas.linear(x, weight), expected)


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        (1.0, TypeError, "must be an int"),
        ("2", TypeError, "must be an int"),
        (None, TypeError, "got None"),
        (True, TypeError, "got bool"),
    ],
)
def test_set_num_threads_refuses(number, error, message):
    before = nibblas.get_num_threads()
    with pytest.raises(error, match=message):
        nibblas.set_num_threads(number)
    assert nibblas.get_num_threads() == before


def test_environment_chooses_the_number_of_threads():
    code = "import nibblas; print(nibblas.get_num_threads())"
    assert in_fresh_python(code, NIBBLAS_NUM_THREADS="3").stdout.strip() == "3"
    number = int(in_fresh_python(code).stdout)
    assert 1 <= number <= (os.cpu_count() or 1)


# --- cpu_info and explain


def test_cpu_info():
    info = nibblas.cpu_info()
    json.dumps(info)
    for key in ("brand", "vendor", "features", "caches", "logical", "affinity", "quota", "targets"):
        assert key in info
    assert 1 <= info["affinity"] <= info["logical"]
    available = [target["name"] for target in info["targets"] if target["available"]]
    assert available == TARGETS
    for target in info["targets"]:
        assert target["description"]
        assert bool(target["reason"]) != target["available"]


@pytest.mark.parametrize("shape", [(100,), (1, 100), (3, 100), (2, 3, 100), (0, 100), [4, 100]])
@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_explain(shape, compute, weight, target):
    plan = nibblas.explain(shape, weight, compute)
    json.dumps(plan)
    assert plan["target"] == target
    assert plan["kernel"]
    assert plan["reason"]
    assert 1 <= plan["threads"] <= nibblas.get_num_threads()
    assert nibblas.explain(shape, weight.T, compute) == plan
    assert nibblas.explain(shape, weight, compute, num_threads=1)["threads"] == 1


def test_explain_takes_one_number(weight):
    assert nibblas.explain(100, weight) == nibblas.explain((100,), weight)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((3, 99), ValueError, "weight has 100 input features, x has 99"),
        ((), ValueError, r"\(\.\.\., K\)"),
        ((-1, 100), ValueError, r"\(\.\.\., K\)"),
        ((1.5, 100), TypeError, "x_shape must be a shape"),
        ("3x100", TypeError, "x_shape must be a shape"),
        (None, TypeError, "x_shape must be a shape"),
        (np.ones((3, 100)), TypeError, "x_shape must be a shape"),
    ],
)
def test_explain_refuses_shapes(shape, error, message, weight):
    with pytest.raises(error, match=message):
        nibblas.explain(shape, weight)


def test_explain_refuses(weight):
    with pytest.raises(TypeError, match="w must be a PackedWeight, got ndarray"):
        nibblas.explain((3, 100), np.ones((20, 100), np.float32))
    with pytest.raises(ValueError, match=r'compute must be .*"int4"'):
        nibblas.explain((3, 100), weight, "int4")
    with pytest.raises(ValueError, match="at least 1"):
        nibblas.explain((3, 100), weight, num_threads=0)


# --- the package itself


def test_everything_public_is_there():
    assert set(nibblas.__all__) <= set(dir(nibblas))
    for name in nibblas.__all__:
        assert getattr(nibblas, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nibblas.nothing  # noqa: B018


def test_what_is_seldom_used_is_imported_late():
    code = (
        "import sys, nibblas\n"
        "late = ['nibblas.io', 'nibblas.numerics', 'nibblas.cli', 'argparse', 'json']\n"
        "print(*[name for name in late if name in sys.modules])\n"
        "nibblas.numerics.fma, nibblas.io.load, nibblas.load\n"
    )
    done = in_fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
