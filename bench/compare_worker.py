# SPDX-License-Identifier: Apache-2.0
"""One side of compare.py: a process that times cases with the nibblas that it imports.

Each line of standard input is a request in JSON, each line of standard output its answer. This
file runs with older and newer versions of nibblas, so it uses the public functions only and nothing
of `nibblas.cli`.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import nibblas

Case = dict[str, Any]

HUGE_PAGE = 1 << 21
"""Bytes. How much of an array lies in such pages would otherwise be each process's luck: the
same loop took 22 % longer in some processes than in others."""


def empty(rows: int, cols: int) -> np.ndarray:
    """A float32 array that begins at a border of huge pages, if it is as large as one."""
    nbytes = 4 * rows * cols
    if nbytes < HUGE_PAGE:
        return np.empty((rows, cols), np.float32)
    buffer = np.empty(nbytes + HUGE_PAGE, np.uint8)
    start = -buffer.ctypes.data % HUGE_PAGE
    return buffer[start : start + nbytes].view(np.float32).reshape(rows, cols)


@functools.cache
def normal(seed: int, rows: int, cols: int) -> np.ndarray:
    """The same numbers in all processes."""
    array = empty(rows, cols)
    np.random.default_rng(seed).standard_normal(dtype=np.float32, out=array)
    return array


def quantized(shape: tuple[int, int], scheme: list[Any], threads: int) -> nibblas.PackedWeight:
    """What `quantize` makes of the weight of that shape."""
    name, group_size, offset = scheme
    return nibblas.quantize(normal(0, *shape), name, group_size, offset=offset, num_threads=threads)


class Weights:
    """A packed weight and, if it is to be cold, copies of it: more than the caches hold."""

    def __init__(self, case: Case) -> None:
        self.copies = [quantized(case["shape"], case["scheme"], 1)]
        self.wanted: int = max(1, math.ceil(case["cold_bytes"] / self.copies[0].nbytes))

    def grow(self) -> bool:
        """Add a copy; False if there are enough."""
        if len(self.copies) < self.wanted:
            self.copies.append(self.copies[0].copy())
        return len(self.copies) < self.wanted


WEIGHTS: dict[str, Weights] = {}


def weights_of(case: Case) -> Weights:
    """Shared by the cases with the same weight."""
    key = json.dumps([case["shape"], case["scheme"], case["cold_bytes"]])
    if key not in WEIGHTS:
        WEIGHTS[key] = Weights(case)
    return WEIGHTS[key]


class Timed:
    """A case: a call for each copy of its weight, and what the last call gave."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.turn = 0
        self.result: object = None
        self.copies: list[Any] = [None]
        self.clock = time.thread_time if case["threads"] == 1 else time.perf_counter
        use_target(case["target"])
        self.call: Callable[[Any], object] = getattr(self, case["kind"])()

    def linear(self) -> Callable[[Any], object]:
        case, threads, compute = self.case, self.case["threads"], self.case["compute"]
        (cols, depth), rows = case["shape"], case["rows"]
        self.copies = weights_of(case).copies
        x, out = normal(1, rows, depth), empty(rows, cols)
        return lambda w: nibblas.linear(x, w, compute=compute, out=out, num_threads=threads)

    def quantize(self) -> Callable[[Any], object]:
        shape, scheme, threads = self.case["shape"], self.case["scheme"], self.case["threads"]
        return lambda _: quantized(shape, scheme, threads)

    def dequantize(self) -> Callable[[Any], object]:
        threads, out = self.case["threads"], empty(*self.case["shape"])
        self.copies = weights_of(self.case).copies
        return lambda w: w.dequantize(out=out, num_threads=threads)

    def quantize_activations(self) -> Callable[[Any], object]:
        case, threads, group = self.case, self.case["threads"], self.case["group"]
        x = normal(1, case["rows"], case["shape"][1])
        return lambda _: nibblas.quantize_activations(x, group, num_threads=threads)

    def sample(self, repeats: int) -> float:
        """Seconds of a call. Warm ones begin with a call that is not timed."""
        use_target(self.case["target"])
        call, turn, copies = self.call, self.turn, self.copies
        if len(copies) == 1:
            call(copies[0])
        start = self.clock()
        for i in range(turn, turn + repeats):
            result = call(copies[i % len(copies)])
        seconds = (self.clock() - start) / repeats
        self.turn = (turn + repeats) % len(copies)
        self.result = result
        return seconds

    def digest(self) -> str:
        """Of all bits of the last result."""
        result: Any = self.result
        if isinstance(result, nibblas.PackedWeight):
            parts = [plane for _, plane in sorted(result.planes.items())]
        else:
            parts = list(result) if isinstance(result, tuple) else [result]
        found = hashlib.sha256()
        for part in parts:
            array = np.ascontiguousarray(part)
            if array.dtype == object:
                raise TypeError(f"an array is expected, got {type(part).__name__}")
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(array.tobytes())
        return found.hexdigest()


def use_target(name: str | None) -> None:
    wanted = name or DEFAULT_TARGET
    if nibblas.target() != wanted:
        nibblas.use_target(wanted)


DEFAULT_TARGET = nibblas.target()


def about() -> dict[str, Any]:
    """What was imported."""
    native = sys.modules["nibblas._nibblas"]
    build = native.build_info() if hasattr(native, "build_info") else {}
    return {
        "file": nibblas.__file__,
        "version": nibblas.__version__,
        "target": DEFAULT_TARGET,
        "cpu": nibblas.cpu_info().get("brand", ""),
        "compiler": build.get("compiler", "unknown"),
    }


def prepare(case: Case, timed: list[Timed | None]) -> str:
    """Add the case. Why it cannot be run here, with an older version say, or "" if it can."""
    timed.append(None)
    try:
        made = Timed(case)
        made.sample(1)  # page faults and first-use work
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    timed[-1] = made
    return ""


def serve() -> None:
    """Answer requests until there are no more."""
    # What nibblas or a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    gc.disable()
    timed: list[Timed | None] = []
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request["do"] == "about":
            answer = about()
        elif request["do"] == "prepare":
            answer = prepare(request["case"], timed)
        elif request["do"] == "grow":
            answer = sum(weights.grow() for weights in WEIGHTS.values())
        else:
            case = timed[request["case"]]
            assert case is not None
            if request["do"] == "sample":
                answer = case.sample(request["repeats"])
            else:
                answer = case.digest()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve()
