# SPDX-License-Identifier: Apache-2.0
"""Commands on files that are larger than the memory they may take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nibblas.io import gguf

from .onnx_cases import model_of

package = pytest.importorskip("gguf")

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


def write_blocks(
    path: Path, kind: str, tensors: dict[str, np.ndarray], dense: np.ndarray | None = None
) -> None:
    writer = package.GGUFWriter(path, "tests")
    for name, blocks in tensors.items():
        writer.add_tensor(name, blocks, raw_dtype=package.GGMLQuantizationType[kind])
    if dense is not None:
        writer.add_tensor("dense", dense)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
    dense = np.ones((64, 64), np.float32)
    write_blocks(path, kind, {f"w{i}": blocks for i in range(count)}, dense)
    assert path.stat().st_size > 180_000_000
    peak = peak_of(command, path, tmp_path / "out") - peak_of("inspect", path)
    print(f"{peak / 1e6:.0f} MB more than to look at it, {blocks.nbytes / 1e6:.0f} MB a tensor")
    assert peak < blocks.nbytes + 64_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["quantize", "turned", "experts"])
def test_peak_memory_of_large_tensors(kind, rng, tmp_path):
    """The largest tensor, which is mapped, and less than 64 MB."""
    if kind == "experts":
        blocks = gguf.quantize(rng.standard_normal((100, 4096), dtype=np.float32), "Q8_0")
        blocks = np.tile(blocks, (200, 1)).reshape(8, 2500, -1)
        command, largest = "convert", blocks.nbytes
    else:
        matrix = np.tile(rng.standard_normal((64, 4096), dtype=np.float32), (90, 1))
        command, largest = "quantize", matrix.nbytes
    files: list[Path] = []
    for size in (16, 1 << 20):
        files.append(tmp_path / f"{size}.{'onnx' if kind == 'turned' else 'gguf'}")
        if kind == "experts":
            write_blocks(files[-1], "Q8_0", dict.fromkeys("ab", blocks[:, :size]))
        elif kind == "turned":
            write_turned(files[-1], dict.fromkeys("ab", matrix[:size]))
        else:
            files[-1] = files[-1].with_suffix(".safetensors")
            save_file(dict.fromkeys("ab", matrix[:size]), files[-1])
    base, peak = (peak_of(command, file, tmp_path / "out") for file in files)
    print(f"{(peak - base) / 1e6:.0f} MB, {largest / 1e6:.0f} MB a tensor")
    assert os.stat(files[1]).st_size > 1.9 * largest
    assert peak - base < largest + 64_000_000


def write_turned(path: Path, tensors: dict[str, np.ndarray]) -> None:
    onnx = pytest.importorskip("onnx")
    model = model_of({}, tensors)
    nodes = [onnx.helper.make_node("MatMul", ["x", name], [f"y{name}"]) for name in tensors]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
