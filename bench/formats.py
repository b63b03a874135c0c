# SPDX-License-Identifier: Apache-2.0
"""The README's table of formats: size against the file, error, speed against float32.

    python bench/formats.py [--size 4096] [--rows 1,128] [--rounds 7]

Weights are normally distributed and quantized by nibblas to the scheme that each format becomes.
"Of file" is the size of the packed weight over that of the format's own arrays for the same
matrix. Errors are root mean square, relative: of the weights, and of the products by int8 compute.
Speed-ups are over NumPy's float32 product in the same rounds, one thread, medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import nibblas


class Format(NamedTuple):
    """A format, the arguments of `quantize` for its scheme, and its own bits per weight."""

    name: str
    scheme: str
    group: int | None
    offset: str | None
    file_bits: float


# Bits of a code, then of what a group has: f16 is 16, f32 is 32, a zero point as wide as a code.
FORMATS = (
    Format("GGUF Q4_0", "int4", 32, None, 18 * 8 / 32),
    Format("GGUF Q4_1", "uint4", 32, "min", 20 * 8 / 32),
    Format("GGUF Q5_0", "int5", 32, None, 22 * 8 / 32),
    Format("GGUF Q5_1", "uint5", 32, "min", 24 * 8 / 32),
    Format("GGUF Q8_0", "int8", 32, None, 34 * 8 / 32),
    Format("GGUF Q2_K", "q2_k", 16, None, 84 * 8 / 256),
    Format("GGUF Q3_K", "q3_k", 16, None, 110 * 8 / 256),
    Format("GGUF Q4_K", "q4_k", 32, None, 144 * 8 / 256),
    Format("GGUF Q5_K", "q5_k", 32, None, 176 * 8 / 256),
    Format("GGUF Q6_K", "q6_k", 16, None, 210 * 8 / 256),
    Format("GGUF IQ4_NL", "iq4_nl", 32, None, 18 * 8 / 32),
    Format("GGUF IQ4_XS", "iq4_xs", 32, None, 136 * 8 / 256),
    Format("GGUF TQ2_0", "ternary", 256, None, 66 * 8 / 256),
    Format("GPTQ, AWQ 4-bit", "uint4", 128, "zero_point", 4 + (16 + 4) / 128),
    Format("GPTQ 3-bit", "uint3", 128, "zero_point", 3 + (16 + 3) / 128),
    Format("GPTQ 2-bit", "uint2", 64, "zero_point", 2 + (16 + 2) / 64),
    Format("MatMulNBits 4-bit", "uint4", 32, "zero_point", 4 + (16 + 4) / 32),
    Format("bitsandbytes NF4", "nf4", 64, None, 4 + 32 / 64),
    Format("MXFP4", "mxfp4", 32, None, 4 + 8 / 32),
    Format("NVFP4", "nvfp4", 16, None, 4 + 8 / 16),
)


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the difference over that of the exact values."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def thread_seconds(call: Callable[[], object]) -> float:
    """CPU time of this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rows", default="1,128")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    nibblas.set_num_threads(1)
    rng = np.random.default_rng(0)
    size = options.size
    weight = rng.standard_normal((size, size), np.float32)
    rows = [int(number) for number in options.rows.split(",")]
    inputs = [rng.standard_normal((count, size), np.float32) for count in rows]

    packed = []
    for form in FORMATS:
        scale_dtype = "float32" if form.scheme == "nf4" else None
        w = nibblas.quantize(
            weight, form.scheme, form.group, offset=form.offset, scale_dtype=scale_dtype
        )
        packed.append(w)
    times: dict[tuple[int, int], list[float]] = {}
    for _ in range(options.rounds):
        for i, x in enumerate(inputs):
            times.setdefault((i, -1), []).append(thread_seconds(lambda x=x: x @ weight.T))
            for j, w in enumerate(packed):
                spent = thread_seconds(lambda x=x, w=w: nibblas.linear(x, w))
                times.setdefault((i, j), []).append(spent)
    median = {key: statistics.median(values) for key, values in times.items()}

    speed = " | ".join(f"{count} row{'s' if count > 1 else ''}" for count in rows)
    print(f"{size} x {size}, target {nibblas.target()}, 1 thread\n")
    headers = "format | scheme | bits per weight | of file | error of weights | of products"
    print(f"| {headers} | {speed} |")
    print("| --- | --- | --- | --- | --- | --- |" + " --- |" * len(rows))
    exact = inputs[-1].astype(np.float64) @ weight.T.astype(np.float64)
    for j, (form, w) in enumerate(zip(FORMATS, packed, strict=True)):
        ratio = 8 * w.nbytes / (size * size) / form.file_bits
        weights = relative_error(w.dequantize(), weight)
        products = relative_error(nibblas.linear(inputs[-1], w), exact)
        speeds = " | ".join(f"{median[i, -1] / median[i, j]:.1f}x" for i in range(len(rows)))
        print(
            f"| {form.name} | {w.scheme} | {w.bits_per_weight:.2f} | {ratio:.1%} "
            f"| {weights:.3g} | {products:.3g} | {speeds} |"
        )


if __name__ == "__main__":
    main()
