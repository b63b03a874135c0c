# SPDX-License-Identifier: Apache-2.0
"""nibblas: exact, fast int8 and int4 matrix kernels for the CPU, on NumPy arrays.

>>> import numpy as np, nibblas
>>> weight = np.random.default_rng(0).standard_normal((256, 512), dtype=np.float32)
>>> w = nibblas.quantize(weight, "int4")               # (N, K) float -> PackedWeight
>>> x = np.ones((8, 512), np.float32)
>>> y = nibblas.linear(x, w)                           # (..., K) -> (..., N)
>>> w.save("weight.safetensors")
>>> y2 = x @ nibblas.load("weight.safetensors").T      # the same, memory-mapped
>>> np.array_equal(y, y2)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nibblas.ops import linear, matmul_integer, quantize_activations
from nibblas.packing import pack
from nibblas.quantizing import quantize
from nibblas.runtime import (
    available_targets,
    cpu_info,
    explain,
    get_num_threads,
    set_num_threads,
    target,
    use_target,
)
from nibblas.weights import PackedWeight

if TYPE_CHECKING:
    from nibblas import io, numerics
    from nibblas.io import load, save

    __version__: str

__all__ = [
    "PackedWeight",
    "__version__",
    "available_targets",
    "cpu_info",
    "explain",
    "get_num_threads",
    "io",
    "linear",
    "load",
    "matmul_integer",
    "numerics",
    "pack",
    "quantize",
    "quantize_activations",
    "save",
    "set_num_threads",
    "target",
    "use_target",
]


def __getattr__(name: str) -> Any:
    # What not every user needs is imported when it is first asked for.
    if name in ("io", "numerics"):
        import importlib

        return importlib.import_module(f"nibblas.{name}")
    if name in ("load", "save"):
        from nibblas import io

        value = getattr(io, name)
    elif name == "__version__":
        from nibblas import _nibblas

        value = _nibblas.build_info()["version"]
    else:
        raise AttributeError(f"module 'nibblas' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
