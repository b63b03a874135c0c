# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantized products, for ``nibblas bench --peers``: a file for each library.

Such a file has ``REQUIRES``, the packages that it imports; ``version()``; and ``ops(weight,
threads)``: the library's products with that weight's own codes and scales, each with a function
that builds one copy of it. Nothing of it is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

NAMES = ("numpy", "onnxruntime", "torch", "openvino", "litert", "ggml")
"""As written on the command line."""


def parse(text: str) -> list[str]:
    """Names separated by commas, or "all"."""
    if text == "all":
        return list(NAMES)
    names = text.split(",")
    for name in names:
        if name not in NAMES:
            raise ValueError(f'a peer is one of {", ".join(NAMES)}, or "all", got {name!r}')
    return names


def load(name: str) -> ModuleType:
    """The file of a peer; ImportError says which package it needs."""
    module = importlib.import_module(f"nibblas.cli.peers._{name}")
    for package in module.REQUIRES:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return module
