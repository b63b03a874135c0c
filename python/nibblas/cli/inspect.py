# SPDX-License-Identifier: Apache-2.0
"""List what a safetensors file holds: packed weights with their scheme, and other tensors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from nibblas.cli import _text
from nibblas.io.packed import KEY, read_weights
from nibblas.io.safetensors import SafetensorsFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas inspect``."""
    parser.add_argument("file", help="a safetensors file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what `collect` finds."""
    report = collect(arguments.file)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def collect(path: str) -> dict[str, Any]:
    """The file's contents as plain values. The whole header is checked, and every packed weight."""
    file = SafetensorsFile(path)
    if KEY in file.metadata:
        weights, others = read_weights(file)
    else:
        weights, others = {}, list(file.tensors)
    entries: list[dict[str, Any]] = []
    for name, weight in weights.items():
        entries.append(
            {
                "name": name,
                "type": "packed",
                "scheme": weight.scheme,
                "shape": weight.shape,
                "group_size": weight.group_size,
                "offset": weight.offset,
                "scale_dtype": weight.scale_dtype,
                "bits_per_weight": weight.bits_per_weight,
                "nbytes": weight.nbytes,
                "planes": {
                    plane: {"dtype": str(array.dtype), "shape": array.shape}
                    for plane, array in weight.planes.items()
                },
            }
        )
    for name in others:
        tensor = file.tensors[name]
        nbytes = tensor.end - tensor.begin
        entries.append(
            {
                "name": name,
                "type": "tensor",
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "nbytes": nbytes,
            }
        )
    return {
        "file": path,
        "metadata": {key: value for key, value in file.metadata.items() if key != KEY},
        "tensors": entries,
        "nbytes": sum(entry["nbytes"] for entry in entries),
    }


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    rows = []
    for entry in report["tensors"]:
        packed = entry["type"] == "packed"
        groups = "-"
        if packed:
            groups = "channel" if entry["group_size"] is None else str(entry["group_size"])
        rows.append(
            (
                entry["name"] or "(no name)",
                entry["scheme"] if packed else entry["dtype"],
                "x".join(map(str, entry["shape"])) or "scalar",
                groups,
                entry["offset"] if packed else "-",
                f"{entry['bits_per_weight']:.2f}" if packed else "-",
                _text.size(entry["nbytes"]),
            )
        )
    headers = ("name", "type", "shape", "group", "offset", "bits/weight", "size")
    packed = sum(entry["type"] == "packed" for entry in report["tensors"])
    return (
        f"{_text.table(headers, rows, left=2)}\n\n{packed} packed weights, "
        f"{len(report['tensors']) - packed} other tensors, {_text.size(report['nbytes'])}"
    )
