# SPDX-License-Identifier: Apache-2.0
"""Write the golden files of the current format and contract versions.

    python tools/make_golden.py tests/golden/v1

They are made once for a version and then hold every later build to it (tests/test_golden.py), so an
existing folder is left alone unless --force is given. Made on any machine they are the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import nibblas
from nibblas import _nibblas
from nibblas.io import packed

COLS, DEPTH = 19, 150  # two panels, the second with a tail; whole groups and a part of one
ROWS = 7  # more than one tile on every target
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")

QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"scheme": "int8"},
    "int8_g32": {"scheme": "int8", "group_size": 32},
    "uint8_g16": {"scheme": "uint8", "group_size": 16},
    "uint8_min": {"scheme": "uint8", "group_size": None, "offset": "min"},
    "int4": {"scheme": "int4", "group_size": None},
    "int4_g32": {"scheme": "int4", "group_size": 32},
    "int4_g64_absmax": {
        "scheme": "int4",
        "group_size": 64,
        "rule": "absmax",
        "scale_dtype": "bfloat16",
    },
    "uint4_g32": {"scheme": "uint4", "group_size": 32},
    "uint4_g16_min": {"scheme": "uint4", "group_size": 16, "offset": "min"},
}
"""Name of each weight, and how `quantize` made it."""


def main() -> None:
    """Write weights.safetensors, values.safetensors and manifest.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--force", action="store_true", help="replace what is there")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if folder.exists() and any(folder.iterdir()) and not arguments.force:
        parser.error(f"{folder} is not empty: golden files are only replaced with --force")
    folder.mkdir(parents=True, exist_ok=True)

    rng = np.random.default_rng(20261124)
    size = 2.0 ** rng.integers(-8, 8, (ROWS, 1))
    values = {
        "weight": rng.standard_normal((COLS, DEPTH)).astype(np.float32),
        "x": (rng.standard_normal((ROWS, DEPTH)) * size).astype(np.float32),
        "bias": rng.standard_normal(COLS).astype(np.float32),
    }
    weights = {
        name: nibblas.quantize(values["weight"], **arguments)
        for name, arguments in QUANTIZED.items()
    }
    order = rng.permutation(DEPTH).astype(np.int32)
    parts = weights["int4_g32"].unpack()
    weights["int4_g32_ordered"] = nibblas.pack(**{**parts, "input_order": order})

    values |= {f"dequantize.{name}": w.dequantize() for name, w in weights.items()}
    for i, (name, w) in enumerate(weights.items()):
        for compute in ("int8", "float32"):
            activation = ACTIVATIONS[i % len(ACTIVATIONS)]
            y = nibblas.linear(
                values["x"], w, values["bias"], compute=compute, activation=activation
            )
            values[f"linear.{name}.{compute}.{activation}"] = y
    line = np.linspace(-20, 20, 801, dtype=np.float32)
    values |= {f"activation.{name}": _nibblas.activate(line, name) for name in ACTIVATIONS}
    values["activation"] = line

    nibblas.save(folder / "weights.safetensors", weights)
    nibblas.save(folder / "values.safetensors", values)
    manifest = {
        "format_version": packed.FORMAT_VERSION,
        "layout_version": _nibblas.LAYOUT_VERSION,
        "contract_version": _nibblas.CONTRACT_VERSION,
        "quantized": QUANTIZED,
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
