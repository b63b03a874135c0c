# SPDX-License-Identifier: Apache-2.0
"""Quantize the matrices of a safetensors checkpoint.

Every 2-D float tensor (F32, F16, BF16) whose name is included and not excluded becomes a packed
weight of that name; all else is copied. Tensors are read and written one by one, so a checkpoint
may be larger than the memory. nibblas.load reads the result.

  nibblas quantize model.safetensors model-int4.safetensors --exclude '*embed*' --exclude 'lm_head*'
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
from typing import Any, NamedTuple

import numpy as np

from nibblas._arrays import Array
from nibblas.cli import _text
from nibblas.io.packed import KEY, describe, encode_description, read_weights, tensor_name
from nibblas.io.safetensors import SafetensorsFile, TensorSpec, Writer, spec_of
from nibblas.quantizing import (
    QuantizationPlan,
    plan_quantization,
    quantize,
    tensor_scale_of,
)
from nibblas.schemes import scheme_names
from nibblas.weights import PackedWeight

FLOATS = ("F32", "F16", "BF16")

BLOCK = 1 << 22
"""Weights compared at a time: 16 MB as float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas quantize``."""
    parser.add_argument("input", help="a safetensors file")
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
    for option, what in (("--include", "quantize only"), ("--exclude", "do not quantize")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{what} tensors whose name matches, such as '*.mlp.*'; may be repeated",
        )
    parser.add_argument("--threads", type=int, metavar="N", help="default: all there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Quantize, then print a line for each tensor."""
    report = convert(arguments)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


class _Job(NamedTuple):
    plan: QuantizationPlan
    shape: tuple[int, int]


def convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the output file; return sizes and errors."""
    started = time.perf_counter()
    file = SafetensorsFile(arguments.input)
    packed: dict[str, PackedWeight] = {}
    others = list(file.tensors)
    if KEY in file.metadata:
        packed, others = read_weights(file)
    jobs = {name: _job(file, name, arguments) for name in others if _wanted(file, name, arguments)}
    if not jobs:
        raise file.error("no 2-D tensor of type F32, F16 or BF16 matches")

    specs: dict[str, TensorSpec] = {}
    descriptions = {name: describe(weight) for name, weight in packed.items()}
    for name, weight in packed.items():
        for plane in weight.planes:
            key = tensor_name(name, plane)
            specs[key] = TensorSpec(*file.tensors[key][:2])
    for name in others:
        if name not in jobs:
            specs[name] = TensorSpec(*file.tensors[name][:2])
    for name, (plan, shape) in jobs.items():
        planes = plan.plane_specs(shape)
        for plane, (dtype, plane_shape) in planes.items():
            spec = spec_of(np.empty(0, dtype))._replace(shape=plane_shape)
            spec = spec._replace(dtype="BF16") if dtype == "uint16" else spec
            if tensor_name(name, plane) in specs:
                raise file.error(f"tensor {name!r}: its plane {plane!r} has a name that is taken")
            specs[tensor_name(name, plane)] = spec
        descriptions[name] = {
            "scheme": plan.scheme.name,
            "shape": shape,
            "group_size": plan.group_size,
            "zero": plan.scheme.zero,
            "planes": list(planes),
        }
        if plan.has_tensor_scale:
            descriptions[name]["tensor_scale"] = tensor_scale_of(_dense(file, name)).hex()

    metadata = {**file.metadata, KEY: encode_description(descriptions)}
    entries = []
    total = sum(t.end - t.begin for t in file.tensors.values())
    with (
        _text.Progress(total) as progress,
        Writer(arguments.output, specs, metadata) as writer,
    ):
        for name, tensor in file.tensors.items():
            progress.step(name, tensor.end - tensor.begin)
            if name in jobs:
                entries.append(_quantize(file, name, jobs[name].plan, writer, arguments))
            elif name in specs:
                writer.write(name, file.raw(name))
    return {
        "input": arguments.input,
        "output": arguments.output,
        "scheme": arguments.scheme,
        "tensors": entries,
        "copied": len(packed) + len(others) - len(jobs),
        "nbytes_before": total,
        "nbytes_after": sum(spec.nbytes for spec in specs.values()),
        "seconds": time.perf_counter() - started,
    }


def _wanted(file: SafetensorsFile, name: str, arguments: argparse.Namespace) -> bool:
    tensor = file.tensors[name]
    if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
        return False

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return matches(arguments.include or ["*"]) and not matches(arguments.exclude)


def _job(file: SafetensorsFile, name: str, arguments: argparse.Namespace) -> _Job:
    rows, depth = file.tensors[name].shape
    plan = plan_quantization(
        arguments.scheme,
        _group_size(arguments.group_size),
        depth,
        arguments.rule,
        arguments.scale_dtype,
        arguments.offset,
    )
    return _Job(plan, (rows, depth))


def _group_size(text: str) -> int | str | None:
    if text == "none":
        return None
    return int(text) if text.isdecimal() else text


def _quantize(
    file: SafetensorsFile,
    name: str,
    plan: QuantizationPlan,
    writer: Writer,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    dense = _dense(file, name)
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
        raise file.error(f"tensor {name!r}: {error}") from None
    for plane, array in weight.planes.items():
        writer.write(tensor_name(name, plane), array)
    tensor = file.tensors[name]
    return {
        "name": name,
        "shape": weight.shape,
        "dtype": tensor.dtype,
        "group_size": weight.group_size,
        "nbytes_before": tensor.end - tensor.begin,
        "nbytes_after": weight.nbytes,
        "bits_per_weight": weight.bits_per_weight,
        "relative_error": relative_error(dense, weight),
    }


def _dense(file: SafetensorsFile, name: str) -> Array:
    tensor = file.tensors[name]
    if tensor.dtype != "BF16":
        return file.array(name)
    # A bfloat16 is the upper half of a float32: exact, and needs no ml_dtypes.
    bits = np.frombuffer(file.raw(name), "<u2").reshape(tensor.shape)
    dense = np.zeros((*tensor.shape, 2), np.uint16)
    dense[..., 1] = bits
    return dense.view(np.float32)[..., 0]


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
