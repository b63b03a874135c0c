# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint with low-bit weights into packed weights, exactly.

The checkpoint is a .gguf or .onnx file, a safetensors file or a Hugging Face folder. Its low-bit
weights keep their values: nothing is quantized anew. All else is copied. A weight is converted some
rows at a time, so a checkpoint may be larger than the memory. nibblas.load reads the result.

  nibblas convert model-Q4_K_M.gguf model.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from nibblas.cli import _text
from nibblas.cli._memory import give_back_large_arrays
from nibblas.cli._sources import (
    Output,
    StoredWeight,
    add_patterns,
    is_chosen,
    open_source,
    threads,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas convert``."""
    parser.add_argument("checkpoint", help="a .gguf, .onnx or .safetensors file, or a folder")
    parser.add_argument("output", help="the safetensors file to write")
    add_patterns(parser, "keep only", "leave out")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all there are")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Convert, then print a line for each weight."""
    give_back_large_arrays()
    with threads(arguments.threads):
        report = convert(arguments)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the output file; return sizes."""
    started = time.perf_counter()
    source = open_source(arguments.checkpoint)
    found = {name: source.describe(name) for name in source if is_chosen(name, arguments)}
    if not any(entry.kind == "weight" for entry in found.values()):
        raise ValueError(
            f"{arguments.checkpoint}: no low-bit weight matches (`nibblas quantize` makes them "
            "of floats)"
        )
    output = Output()
    weights: dict[str, StoredWeight] = {}
    for name, entry in found.items():
        if entry.kind == "weight":
            weights[name] = StoredWeight(source, name, output)
        else:
            output.add(name, source.stored(name)[0])
        source.release()
    output.write_all(arguments.output, source, found, weights)
    return {
        "input": arguments.checkpoint,
        "output": arguments.output,
        "tensors": [weight.report() for weight in weights.values()],
        "copied": len(found) - len(weights),
        "nbytes_before": sum(entry.nbytes for entry in found.values()),
        "nbytes_after": output.nbytes,
        "seconds": time.perf_counter() - started,
    }


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    rows = [
        (
            entry["name"],
            entry["type"],
            entry["scheme"],
            "x".join(map(str, entry["shape"])),
            _text.size(entry["nbytes_before"]),
            _text.size(entry["nbytes_after"]),
            f"{entry['bits_per_weight']:.2f}",
        )
        for entry in report["tensors"]
    ]
    headers = ("tensor", "from", "to", "shape", "before", "after", "bits/weight")
    before, after = report["nbytes_before"], report["nbytes_after"]
    return (
        f"{_text.table(headers, rows, left=3)}\n\n"
        f"{len(rows)} weights converted, {report['copied']} tensors copied: "
        f"{_text.size(before)} -> {_text.size(after)} in {_text.duration(report['seconds'])}, "
        f"{report['output']}"
    )
