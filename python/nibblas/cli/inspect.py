# SPDX-License-Identifier: Apache-2.0
"""List what a checkpoint holds: weights with their scheme or type, other tensors, metadata.

The checkpoint is a safetensors, .gguf or .onnx file, or a Hugging Face folder.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np

from nibblas.cli import _text
from nibblas.cli._sources import open_source
from nibblas.io._packed_source import PackedSource
from nibblas.io._source import Source
from nibblas.weights import PackedWeight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas inspect``."""
    parser.add_argument("file", help="a .safetensors, .gguf or .onnx file, or a folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what `collect` finds."""
    report = collect(arguments.file)
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def collect(path: str) -> dict[str, Any]:
    """The file's contents as plain values. The whole header is checked, and every packed weight."""
    source = open_source(path)
    entries = [_entry(source, name) for name in source]
    return {
        "file": path,
        "metadata": {key: _plain(value) for key, value in source.metadata.items()},
        "tensors": entries,
        "nbytes": sum(entry["nbytes"] for entry in entries),
    }


def _entry(source: Source, name: str) -> dict[str, Any]:
    kind, type_name, shape, nbytes = found = source.describe(name)
    if kind == "weight" and isinstance(source, PackedSource):
        return _packed(name, source.weight(name))
    return {
        "name": name,
        "type": "weight" if kind == "weight" else "tensor",
        "dtype": type_name,
        "shape": shape,
        "bits_per_weight": found.bits_per_element,
        "nbytes": nbytes,
    }


def _packed(name: str, weight: PackedWeight) -> dict[str, Any]:
    return {
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


def _plain(value: Any) -> Any:
    """A value of metadata as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, str):
        # GGUF files may have text that is not UTF-8, and that no terminal takes.
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int | float | None) else str(value)


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
                "-" if entry["type"] == "tensor" else f"{entry['bits_per_weight']:.2f}",
                _text.size(entry["nbytes"]),
            )
        )
    headers = ("name", "type", "shape", "group", "offset", "bits/weight", "size")
    lines = [f"{key}: {_short(value)}" for key, value in report["metadata"].items()]
    if lines:
        lines.append("")
    count = dict.fromkeys(("packed", "weight", "tensor"), 0)
    for entry in report["tensors"]:
        count[entry["type"]] += 1
    low_bit = f"{count['weight']} low-bit weights, " if count["weight"] else ""
    lines += [
        _text.table(headers, rows, left=2),
        "",
        f"{count['packed']} packed weights, {low_bit}{count['tensor']} other tensors, "
        f"{_text.size(report['nbytes'])}",
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A value of metadata on one line, without most of a long list or text."""
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(_short, value[:4]))}, ... ({len(value)} values)"
    text = " ".join(str(value).split())
    return text if len(text) <= 72 else f"{text[:72]}..."
