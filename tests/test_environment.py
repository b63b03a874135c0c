# SPDX-License-Identifier: Apache-2.0
"""The environment variables NIBBLAS_NUM_THREADS and NIBBLAS_TARGET."""

from __future__ import annotations

import numpy as np
import pytest

import nibblas
from nibblas import numerics

from .cases import TARGETS, Variant, assert_same_bits, in_fresh_python, random_weight, random_x


@pytest.mark.parametrize("number", ["1", "3", "17"])
def test_num_threads_of_the_environment(number):
    code = """
import numpy as np, nibblas
print(nibblas.get_num_threads())
w = nibblas.quantize(np.ones((2048, 2048), np.float32))
print(nibblas.explain((160, 2048), w)["threads"])
nibblas.set_num_threads(2)
print(nibblas.get_num_threads())
"""
    output = in_fresh_python(code, NIBBLAS_NUM_THREADS=number).split()
    assert output == [number, number, "2"]


@pytest.mark.parametrize("text", ["0", "-1", "two", "2.5", " 2", "2 ", "0x2", "99999999999999999"])
def test_malformed_num_threads(text):
    code = """
import numpy as np, nibblas
w = nibblas.quantize(np.ones((20, 64), np.float32), num_threads=1)
for call in (nibblas.get_num_threads, lambda: nibblas.linear(np.ones((1, 64), np.float32), w)):
    try:
        call()
    except ValueError as error:
        print(error)
nibblas.set_num_threads(2)
print(nibblas.get_num_threads())
"""
    first, second, number = in_fresh_python(code, NIBBLAS_NUM_THREADS=text).splitlines()
    assert first == second
    assert "NIBBLAS_NUM_THREADS" in first
    assert repr(text)[1:-1] in first
    assert number == "2"


@pytest.mark.parametrize("name", ["Scalar", "scalar ", "avx", "amx9000"])
def test_malformed_target(name):
    code = """
import numpy as np, nibblas
try:
    nibblas.matmul_integer(np.ones((1, 4), np.int8), np.ones((4, 1), np.int8))
except ValueError as error:
    print(error)
"""
    message = in_fresh_python(code, NIBBLAS_TARGET=name)
    assert "NIBBLAS_TARGET" in message
    assert f'"{name}"' in message
    assert all(choice in message for choice in nibblas.available_targets())


def test_empty_variables_are_as_if_not_set():
    code = "import nibblas; print(nibblas.target(), nibblas.get_num_threads())"
    unset = in_fresh_python(code)
    assert in_fresh_python(code, NIBBLAS_TARGET="", NIBBLAS_NUM_THREADS="") == unset
    assert unset.split()[0] == nibblas.available_targets()[0]


@pytest.mark.parametrize("name", TARGETS)
def test_target_of_the_environment_computes_the_same(name, rng, tmp_path):
    w = random_weight(rng, Variant("uint4", "zero_point"), (33, 150), 16)
    x = random_x(rng, (7, 150))
    w.save(tmp_path / "w")
    np.save(tmp_path / "x.npy", x)
    code = f"""
import os, numpy as np, nibblas
os.chdir({str(tmp_path)!r})
assert nibblas.target() == {name!r}
np.save("y.npy", nibblas.linear(np.load("x.npy"), nibblas.load("w")))
"""
    in_fresh_python(code, NIBBLAS_TARGET=name, NIBBLAS_NUM_THREADS="2")
    assert_same_bits(np.load(tmp_path / "y.npy"), numerics.linear(x, w._raw_parts()))
