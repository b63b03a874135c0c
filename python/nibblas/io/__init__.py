# SPDX-License-Identifier: Apache-2.0
"""Files: packed weights in the safetensors format, and importers of other tools' formats.

Each format has a module of its own here: gguf, gptq, awq, onnx, bitsandbytes, hqq,
compressed_tensors, mxfp4, nvfp4. They are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nibblas.io.packed import load, save

if TYPE_CHECKING:
    from nibblas.io.checkpoint import load_checkpoint

FORMATS = (
    "awq",
    "bitsandbytes",
    "compressed_tensors",
    "gguf",
    "gptq",
    "hqq",
    "mxfp4",
    "nvfp4",
    "onnx",
)
"""The modules of formats."""

__all__ = ["load", "load_checkpoint", "save"]


def __getattr__(name: str) -> Any:
    if name == "load_checkpoint":
        from nibblas.io.checkpoint import load_checkpoint

        return load_checkpoint
    if name in FORMATS:
        return importlib.import_module(f"nibblas.io.{name}")
    raise AttributeError(f"module 'nibblas.io' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FORMATS, "load_checkpoint"])
