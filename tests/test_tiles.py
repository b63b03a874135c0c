# SPDX-License-Identifier: Apache-2.0
"""Many rows at a time: where kernels change at a number of rows, and who may use tiles at all.

The products here run on every target; tiles themselves only where the CPU has AMX, or in a build
with -DNIBBLAS_EMULATE_TILES=ON (CONTRIBUTING.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest

import nibblas
import nibblas._nibblas as native

from .cases import (
    ALL_VARIANTS,
    Variant,
    assert_same_bits,
    groups_of,
    random_weight,
    random_x,
    tail_depth,
)

COMPILER = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or ""

AVX512 = ["avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512dq"]
VNNI = [*AVX512, "avx512_vnni"]
AMX = [*VNNI, "amx_tile", "amx_int8"]


def available(features: list[str], why_no_tiles: str = "") -> list[str]:
    return [name for name, reason in native.targets_on(features, why_no_tiles) if not reason]


# Around a tile, two of them, an odd one more, and where tiles are of equal height.
ROWS = (1, 15, 16, 17, 20, 31, 32, 33, 47, 48, 49, 64, 65, 100)

has_amx = pytest.mark.skipif(
    "amx" not in dict(native.targets_on([])), reason="not a build for x86-64"
)


# --- products


@pytest.mark.parametrize(
    ("variant", "group"),
    [
        pytest.param(variant, group, id=f"{variant}-g{group}")
        for variant in ALL_VARIANTS
        for group in groups_of(variant)
    ],
)
def test_any_number_of_rows(variant, group, target):
    rng = np.random.default_rng(zlib.crc32(repr((variant, group)).encode()))
    depth = tail_depth(group)
    for cols, codes in ((70, "any"), (16, "low"), (33, "high")):  # 5 panels, 1 and 3
        w = random_weight(rng, variant, (cols, depth), group, codes=codes)
        x = random_x(rng, (ROWS[-1], depth), np.dtype(np.float32))
        bias = random_x(rng, (cols,), np.dtype(np.float32))
        with nibblas.use_target("scalar"):
            expected = nibblas.linear(x, w, bias)
        for rows in ROWS:
            y = nibblas.linear(x[:rows], w, bias, num_threads=1)
            assert_same_bits(y, expected[:rows], (rows, w))


@pytest.mark.parametrize(
    "variant", ["int4-symmetric", "int8-symmetric", "q4_k-min", "q6_k-symmetric"]
)
def test_several_blocks_of_rows_and_depth(variant, rng, target):
    w = random_weight(rng, Variant(*variant.split("-")), (80, 1200), 32)
    x = random_x(rng, (1100, 1200), np.dtype(np.float32))
    x[17, 5], x[600] = np.inf, 0
    with nibblas.use_target("scalar"):
        expected = nibblas.linear(x, w)
    for rows, threads in ((511, 1), (512, 2), (513, 1), (529, 3), (1100, 2)):
        y = nibblas.linear(x[:rows], w, num_threads=threads)
        assert_same_bits(y, expected[:rows], rows)


@pytest.mark.parametrize("depth", [0, 1, 63, 64, 65, 511, 512, 513, 1300])
def test_integers_with_any_number_of_rows(depth, rng, target):
    a = rng.integers(-128, 127, (ROWS[-1], depth), np.int8, endpoint=True)
    a[: ROWS[-1] // 2] = -128
    b = rng.integers(0, 255, (depth, 90), np.uint8, endpoint=True)
    a_zero = rng.integers(-128, 127, len(a), np.int8, endpoint=True)
    b_zero = rng.integers(0, 255, 90, np.uint8, endpoint=True)
    expected = (a.astype(np.int32) - a_zero[:, None]) @ (b.astype(np.int32) - b_zero)
    for rows in ROWS:
        c = nibblas.matmul_integer(a[:rows], b, a_zero[:rows], b_zero)
        assert np.array_equal(c, expected[:rows]), rows
        c = nibblas.matmul_integer(a[:rows], b)
        assert np.array_equal(c, a[:rows].astype(np.int32) @ b), rows


@pytest.mark.skipif("amx" not in nibblas.available_targets(), reason="needs AMX, or its model")
@pytest.mark.parametrize("scheme", ["int4", "int8", "q6_k"])
def test_tiles_are_used(scheme, rng):
    w = nibblas.quantize(rng.standard_normal((40, 256), dtype=np.float32), scheme)
    with nibblas.use_target("amx"):
        for rows in ROWS:
            tiles = nibblas.explain((rows, 256), w)["kernel"] == "tiles"
            assert tiles == (rows >= 16)
            assert nibblas.explain((rows, 256), w, "float32")["kernel"] != "tiles"


# --- who may use tiles


@has_amx
def test_a_cpu_with_amx_takes_it_first_if_the_system_grants_tiles():
    assert available(AMX)[0] == "amx"
    assert available(AMX, "no tiles for you")[0] == "avx512vnni"
    assert dict(native.targets_on(AMX, "no tiles for you"))["amx"] == "no tiles for you"
    assert dict(native.targets_on(AMX, "no tiles for you"))["avx512vnni"] == ""
    # A system is not asked for what the CPU lacks.
    assert dict(native.targets_on(VNNI, "no"))["amx"] == "needs amx_tile, amx_int8"


def test_unknown_features_are_an_error():
    with pytest.raises(ValueError, match='unknown CPU feature "avx9"'):
        native.targets_on(["avx9"])


# Stands in for Linux: answers the request for tile data by $TILES_ERROR, 0 grants it.
SYSTEM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; ++i) a[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_arch_prctl && a[0] == 0x1023 && a[1] == 18) {
    static int asked;
    if (asked++) abort();
    errno = atoi(getenv("TILES_ERROR"));
    return errno ? -1 : 0;
  }
  long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"""


@has_amx
@pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="needs Linux and a compiler")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (0, ""),
        (28, "Linux refused tiles: an alternate signal stack is too small"),
        (95, "Linux refused tiles: Operation not supported"),
    ],
)
def test_linux_is_asked_once(error, reason, tmp_path):
    (tmp_path / "system.c").write_text(SYSTEM)
    library = tmp_path / "system.so"
    subprocess.run(
        [*COMPILER.split(), "-shared", "-fPIC", "system.c", "-o", library, "-ldl"],
        cwd=tmp_path,
        check=True,
    )
    code = (
        "import nibblas._nibblas as native\n"
        "answers = {native.why_no_tiles() for _ in range(3)}\n"
        "print(*answers, end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(library), "TILES_ERROR": str(error)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == reason
