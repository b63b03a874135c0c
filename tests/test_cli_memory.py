# SPDX-License-Identifier: Apache-2.0
"""Commands on files that are larger than the memory they may take."""

from __future__ import annotations

import subprocess
import sys

import gguf as package
import numpy as np
import pytest

from nibblas.io import gguf

PEAK = """
import sys
from nibblas.cli import main
assert main(sys.argv[1:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_of(*arguments: object) -> int:
    """Bytes that a command had at most. (ru_maxrss may be that of the process that starts it.)"""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", ["convert", "quantize"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_peak_memory(rng, tmp_path, command, kind):
    """It stays below the largest tensor and 64 MB, whatever the size of the file."""
    rows, depth, count = 9000, 4096, 9
    one = gguf.quantize(rng.standard_normal((100, depth), dtype=np.float32), kind)
    blocks = np.tile(one, (rows // 100, 1))
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    for i in range(count):
        writer.add_tensor(f"w{i}", blocks, raw_dtype=package.GGMLQuantizationType[kind])
    writer.add_tensor("dense", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert path.stat().st_size > 180_000_000
    peak = peak_of(command, path, tmp_path / "out") - peak_of("inspect", path)
    print(f"{peak / 1e6:.0f} MB more than to look at it, {blocks.nbytes / 1e6:.0f} MB a tensor")
    assert peak < blocks.nbytes + 64_000_000
