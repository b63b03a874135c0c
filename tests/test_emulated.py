# SPDX-License-Identifier: Apache-2.0
"""x86 CPUs with fewer features, emulated: import and a product work there, with the bits of here.

The emulator raises an illegal instruction for whatever its CPU lacks. tools/emulate/cpu.py runs the
tests marked `emulated` on those CPUs and on aarch64.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nibblas
from nibblas.schemes import SCHEMES

CPU = Path(__file__).resolve().parents[1] / "tools" / "emulate" / "cpu.py"

PRODUCTS = """
import hashlib, numpy as np, nibblas
rng = np.random.default_rng(1)
x, w = rng.standard_normal((5, 200), np.float32), rng.standard_normal((70, 200), np.float32)
digest = hashlib.sha256()
for scheme in nibblas.schemes.SCHEMES:
    packed = nibblas.quantize(w, scheme=scheme)
    for compute in ("int8", "float32"):
        digest.update(nibblas.linear(x, packed, compute=compute, activation="gelu").tobytes())
print(",".join(nibblas.available_targets()), nibblas.target(), digest.hexdigest())
"""


def emulated(name: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` on that CPU of tools/emulate/cpu.py."""
    if platform.machine() != "x86_64" or not shutil.which("qemu-x86_64-static"):
        reason = "needs x86-64 and qemu-x86_64-static (Debian's qemu-user-static)"
        if os.environ.get("NIBBLAS_REQUIRE_QEMU"):
            pytest.fail(reason)
        pytest.skip(reason)
    if os.environ.get("NIBBLAS_EMULATED_CPU"):
        pytest.skip("an emulated CPU has no emulator")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLAS_")}
    command = [sys.executable, str(CPU), name, "--python", "--", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, env={**kept, **environment}, timeout=300
    )


def digest_here() -> str:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((5, 200), np.float32), rng.standard_normal((70, 200), np.float32)
    digest = hashlib.sha256()
    for scheme in SCHEMES:
        packed = nibblas.quantize(w, scheme=scheme)
        for compute in ("int8", "float32"):
            y = nibblas.linear(x, packed, compute=compute, activation="gelu")
            digest.update(y.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("nehalem", "scalar"),
        pytest.param("sandybridge", "scalar", marks=pytest.mark.slow),
        pytest.param("haswell", "avx2", marks=pytest.mark.slow),
        pytest.param("haswell-no-avx2", "scalar", marks=pytest.mark.slow),
        pytest.param("haswell-no-fma", "scalar", marks=pytest.mark.slow),
        pytest.param("haswell-no-f16c", "scalar", marks=pytest.mark.slow),
        pytest.param("haswell-no-bmi2", "scalar", marks=pytest.mark.slow),
        ("haswell-no-xsave", "scalar"),  # the CPU has AVX2, the operating system does not save it
    ],
)
def test_products_on_a_lesser_cpu(name, best):
    done = emulated(name, PRODUCTS)
    assert done.returncode == 0, done.stderr
    targets, chosen, digest = done.stdout.split()
    assert chosen == best
    assert set(targets.split(",")) == {"scalar", best}
    assert digest == digest_here()


def test_a_target_that_the_cpu_lacks_is_an_error():
    done = emulated("nehalem", "import nibblas; nibblas.target()", NIBBLAS_TARGET="avx2")
    assert done.returncode == 1  # an exception: an illegal instruction would give 132 or -4
    assert "avx2" in done.stderr
    assert "scalar" in done.stderr
