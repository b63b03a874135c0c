# SPDX-License-Identifier: Apache-2.0
"""Quantize the matrices of a checkpoint: a safetensors, .gguf or .onnx file, or a folder.

Every 2-D float tensor (F32, F16, BF16) whose name is included and not excluded becomes a packed
weight of that name; all else is copied, weights of few bits as packed weights of the same values.
What a MatMul of an ONNX file multiplies by is turned, so that it is (N, K) as all weights are.
Tensors are read and written in pieces, so a checkpoint may be larger than the memory.
nibblas.load reads the result.

  nibblas quantize model.safetensors model-int4.safetensors --exclude '*embed*' --exclude 'lm_head*'
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli import _text
from nibblas.cli._memory import give_back_large_arrays
from nibblas.cli._sources import (
    DenseMatrix,
    Output,
    StoredWeight,
    add_patterns,
    is_chosen,
    open_source,
    piece_rows,
    spec_of_plane,
    threads,
)
from nibblas.io._source import Source
from nibblas.io.safetensors import Writer
from nibblas.quantizing import plan_quantization, quantize, tensor_scale_of
from nibblas.schemes import scheme_names
from nibblas.weights import PackedWeight

FLOATS = ("F32", "F16", "BF16")

BLOCK = 1 << 20
"""Weights compared at a time: 8 MB as float64."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas quantize``."""
    parser.add_argument("input", help="a .safetensors, .gguf or .onnx file, or a folder")
    parser.add_argument("output", help="the file to write; may be the input")
    parser.add_argument("--scheme", default="int4", choices=scheme_names(), help="default: int4")
    parser.add_argument(
        "--group-size",
        default="auto",
        metavar="SIZE",
        help='a power of two from 16 to 4096, "none" (per channel) or "auto" (default)',
    )
    parser.add_argument("--rule", default="mse", choices=("mse", "absmax"), help="default: mse")
    parser.add_argument("--scale-dtype", choices=("float16", "float32", "bfloat16"))
    parser.add_argument("--offset", choices=("zero_point", "min"), help="for unsigned schemes")
    add_patterns(parser, "quantize only", "do not quantize")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Quantize, then print a line for each tensor."""
    give_back_large_arrays()
    with threads(arguments.threads):
        report = convert(arguments)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the output file; return sizes and errors."""
    started = time.perf_counter()
    source = open_source(arguments.input)
    found = {name: source.describe(name) for name in source}
    output = Output()
    weights: dict[str, StoredWeight] = {}
    jobs: dict[str, _Job] = {}
    for name, entry in found.items():
        if entry.kind == "weight":
            weights[name] = StoredWeight(source, name, output)
            continue
        spec, _ = source.stored(name)
        if spec.dtype not in FLOATS or len(spec.shape) != 2 or not is_chosen(name, arguments):
            output.add(name, spec)
            continue
        jobs[name] = _Job(source, name, output, arguments)
        source.release()
    if not jobs:
        raise ValueError(f"{arguments.input}: no 2-D tensor of type F32, F16 or BF16 matches")

    output.write_all(arguments.output, source, found, {**weights, **jobs})
    return {
        "input": arguments.input,
        "output": arguments.output,
        "scheme": arguments.scheme,
        "tensors": [job.report() for job in jobs.values()],
        "copied": len(found) - len(jobs),
        "nbytes_before": sum(entry.nbytes for entry in found.values()),
        "nbytes_after": output.nbytes,
        "seconds": time.perf_counter() - started,
    }


def _group_size(text: str) -> int | str | None:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else text


class _Job:
    """A float matrix that becomes a packed weight, some rows at a time."""

    def __init__(
        self, source: Source, name: str, output: Output, arguments: argparse.Namespace
    ) -> None:
        self._output, self._arguments = output, arguments
        self._name, self._entry = name, source.describe(name)
        self._dense = DenseMatrix(source, name)
        self._error = self._norm = 0.0
        shape = self._dense.shape
        self._plan = plan_quantization(
            arguments.scheme,
            _group_size(arguments.group_size),
            shape[1],
            arguments.rule,
            arguments.scale_dtype,
            arguments.offset,
        )
        self._planes = {
            plane: spec_of_plane(spec) for plane, spec in self._plan.plane_specs(shape).items()
        }
        description: dict[str, Any] = {
            "scheme": self._plan.scheme.name,
            "shape": shape,
            "group_size": self._plan.group_size,
            "zero": self._plan.scheme.zero,
            "planes": list(self._planes),
        }
        if self._plan.has_tensor_scale:
            description["tensor_scale"] = tensor_scale_of(self._extremes()).hex()
        output.add_planes(name, self._planes, description)

    def _extremes(self) -> Array:
        pieces = self._dense.pieces(piece_rows(self._dense.shape[1]))
        return np.array([(part.min(), part.max()) for _, part in pieces if part.size], np.float32)

    def write(self, writer: Writer) -> None:
        """Quantize and write it."""
        rows, depth = self._dense.shape
        # At once where a number of the whole matrix has a part in every scale.
        step = rows if self._plan.has_tensor_scale else piece_rows(depth)
        for start, dense in self._dense.pieces(step):
            try:
                weight = quantize(
                    dense,
                    self._plan.scheme.name,
                    self._plan.group_size,
                    rule=self._arguments.rule,
                    scale_dtype=self._plan.scale_type,
                    offset=self._plan.offset,
                )
            except ValueError as error:
                raise ValueError(
                    f"{self._arguments.input}: tensor {self._name!r}: {error}"
                ) from None
            self._output.write_piece(writer, self._name, start, weight)
            error_of, norm_of = squared_error(dense, weight)
            self._error += error_of
            self._norm += norm_of
            del dense, weight  # before the next ones are made

    def report(self) -> dict[str, Any]:
        """What became of it, as plain values."""
        rows, depth = self._dense.shape
        nbytes = sum(spec.nbytes for spec in self._planes.values())
        return {
            "name": self._name,
            "shape": self._dense.shape,
            "dtype": self._dense.dtype,
            "group_size": self._plan.group_size,
            "nbytes_before": self._entry.nbytes,
            "nbytes_after": nbytes,
            "bits_per_weight": 8 * nbytes / (rows * depth) if rows * depth else 0.0,
            "relative_error": math.sqrt(self._error / self._norm) if self._norm else 0.0,
        }


def squared_error(dense: Array, weight: PackedWeight) -> tuple[float, float]:
    """Sums of the squared errors and of the squares, in float64."""
    rows, depth = weight.shape
    error = norm = 0.0
    step = max(1, BLOCK // max(depth, 1))
    for start in range(0, rows, step):
        block = dense[start : start + step].astype(np.float64)
        indices = np.arange(start, start + len(block))
        norm += float((block * block).sum())
        block -= weight.take(indices)
        error += float((block * block).sum())
    return error, norm


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    rows = [
        (
            entry["name"],
            "x".join(map(str, entry["shape"])),
            entry["dtype"],
            _text.size(entry["nbytes_before"]),
            _text.size(entry["nbytes_after"]),
            f"{entry['bits_per_weight']:.2f}",
            f"{entry['relative_error']:.2e}",
        )
        for entry in report["tensors"]
    ]
    headers = ("tensor", "shape", "from", "before", "after", "bits/weight", "rel. error")
    before, after = report["nbytes_before"], report["nbytes_after"]
    return (
        f"{_text.table(headers, rows)}\n\n"
        f"{len(rows)} tensors quantized to {report['scheme']}, {report['copied']} copied: "
        f"{_text.size(before)} -> {_text.size(after)} in {_text.duration(report['seconds'])}, "
        f"{report['output']}"
    )
