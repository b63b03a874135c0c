# SPDX-License-Identifier: Apache-2.0
"""Quantize the matrices of a checkpoint: a safetensors, .gguf or .onnx file, or a folder.

Every 2-D float tensor (F32, F16, BF16) whose name is included and not excluded becomes a packed
weight of that name; all else is copied, weights of few bits as packed weights of the same values.
Tensors are read and written one by one, so a checkpoint may be larger than the memory.
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
from nibblas.cli._sources import (
    Output,
    StoredWeight,
    add_patterns,
    dense_matrix,
    is_chosen,
    open_source,
    spec_of_plane,
    text_metadata,
)
from nibblas.io._source import Source
from nibblas.io.packed import tensor_name
from nibblas.io.safetensors import TensorSpec, Writer
from nibblas.quantizing import QuantizationPlan, plan_quantization, quantize, tensor_scale_of
from nibblas.schemes import scheme_names
from nibblas.weights import PackedWeight

FLOATS = ("F32", "F16", "BF16")

BLOCK = 1 << 22
"""Weights compared at a time: 16 MB as float32."""


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
    plans: dict[str, QuantizationPlan] = {}
    for name, entry in found.items():
        if entry.kind == "weight":
            weights[name] = StoredWeight(source, name, output)
            continue
        spec, raw = source.stored(name)
        if spec.dtype not in FLOATS or len(spec.shape) != 2 or not is_chosen(name, arguments):
            output.add(name, spec)
            continue
        plans[name] = _plan(spec.shape[1], arguments)
        _list_planes(output, name, plans[name], spec, raw)
        source.release()
    if not plans:
        raise ValueError(f"{arguments.input}: no 2-D tensor of type F32, F16 or BF16 matches")

    entries = []
    total = sum(entry.nbytes for entry in found.values())
    with (
        _text.Progress(total) as progress,
        output.writer(arguments.output, text_metadata(source)) as writer,
    ):
        for name, entry in found.items():
            progress.step(name, entry.nbytes)
            if name in plans:
                entries.append(_quantize(source, name, plans[name], writer, arguments))
            elif name in weights:
                weights[name].write(writer)
            else:
                writer.write(name, source.stored(name)[1])
            source.release()
    return {
        "input": arguments.input,
        "output": arguments.output,
        "scheme": arguments.scheme,
        "tensors": entries,
        "copied": len(found) - len(plans),
        "nbytes_before": total,
        "nbytes_after": output.nbytes,
        "seconds": time.perf_counter() - started,
    }


def _plan(depth: int, arguments: argparse.Namespace) -> QuantizationPlan:
    return plan_quantization(
        arguments.scheme,
        _group_size(arguments.group_size),
        depth,
        arguments.rule,
        arguments.scale_dtype,
        arguments.offset,
    )


def _group_size(text: str) -> int | str | None:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else text


def _list_planes(
    output: Output, name: str, plan: QuantizationPlan, spec: TensorSpec, raw: Array
) -> None:
    """List what a matrix will be once it is quantized."""
    shape = (spec.shape[0], spec.shape[1])
    planes = {plane: spec_of_plane(part) for plane, part in plan.plane_specs(shape).items()}
    description: dict[str, Any] = {
        "scheme": plan.scheme.name,
        "shape": shape,
        "group_size": plan.group_size,
        "zero": plan.scheme.zero,
        "planes": list(planes),
    }
    if plan.has_tensor_scale:
        description["tensor_scale"] = tensor_scale_of(dense_matrix(spec, raw)).hex()
    output.add_planes(name, planes, description)


def _quantize(
    source: Source,
    name: str,
    plan: QuantizationPlan,
    writer: Writer,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    spec, raw = source.stored(name)
    dense = dense_matrix(spec, raw)
    try:
        weight = quantize(
            dense,
            plan.scheme.name,
            plan.group_size,
            rule=arguments.rule,
            scale_dtype=plan.scale_type,
            offset=plan.offset,
            num_threads=arguments.threads,
        )
    except ValueError as error:
        raise ValueError(f"{arguments.input}: tensor {name!r}: {error}") from None
    for plane, array in weight.planes.items():
        writer.write(tensor_name(name, plane), array)
    return {
        "name": name,
        "shape": weight.shape,
        "dtype": spec.dtype,
        "group_size": weight.group_size,
        "nbytes_before": spec.nbytes,
        "nbytes_after": weight.nbytes,
        "bits_per_weight": weight.bits_per_weight,
        "relative_error": relative_error(dense, weight),
    }


def relative_error(dense: Array, weight: PackedWeight) -> float:
    """Root of the summed squared error over that of the summed squares, in float64."""
    rows, depth = weight.shape
    error = norm = 0.0
    step = max(1, BLOCK // max(depth, 1))
    for start in range(0, rows, step):
        block = dense[start : start + step].astype(np.float64)
        indices = np.arange(start, start + len(block))
        norm += float((block * block).sum())
        block -= weight.take(indices)
        error += float((block * block).sum())
    return math.sqrt(error / norm) if norm else 0.0


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
