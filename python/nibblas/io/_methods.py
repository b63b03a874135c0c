# SPDX-License-Identifier: Apache-2.0
"""What the tensors of low-bit weights are called, by the quant_method of a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from nibblas.io._modules import (
    Awq,
    Bitsandbytes,
    Files,
    Gptq,
    Hqq,
    Module,
    Mxfp4,
    Nvfp4,
    PackQuantized,
)
from nibblas.io._quantization_config import QuantizationConfig

Make = Callable[[Files, dict[str, str], QuantizationConfig], Module]

_WORDS = {name: f".{name}" for name in ("qweight", "qzeros", "scales")}


def find_modules(files: Files, fields: Any) -> dict[str, Module]:
    """The quantized modules of a checkpoint with this quantization_config, by weight."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {type(fields).__name__}")
    config = QuantizationConfig(fields)
    method = config.text("quant_method")
    if method not in _METHODS:
        raise ValueError(f"quant_method: expected {' or '.join(_METHODS)}, got {method!r:.80}")
    return _METHODS[method](files, config)


def _collect(
    files: Files,
    config: QuantizationConfig,
    make: Make,
    mark: str,
    needed: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
    weight: str = ".weight",
) -> dict[str, Module]:
    """A module for each tensor whose name ends with `mark`; `weight` takes the mark's place.

    `needed` and `optional` say how the names of its tensors end, by what they are.
    """
    found = {}
    for name in files:
        if not name.endswith(mark):
            continue
        stem = name.removesuffix(mark)
        parts = {part: stem + end for part, end in needed.items()}
        missing = [part for part in parts.values() if part not in files]
        if missing:
            raise ValueError(f"tensor {name!r} has no {missing[0]!r} beside it")
        for part, end in (optional or {}).items():
            if stem + end in files:
                parts[part] = stem + end
        try:
            found[stem + weight] = make(files, parts, config)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from None
    return found


def _gptq(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    return _collect(files, config, Gptq, ".qweight", _WORDS, {"g_idx": ".g_idx"})


def _awq(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    return _collect(files, config, Awq, ".qweight", _WORDS)


HQQ_NOTES = (
    *("nbits", "group_size", "axis", "packing", "unpack_view_dtype", "view_as_float"),
    *("quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
"""What a module of HQQ stores besides its arrays, of which only the first three are read."""


def _hqq(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    parts = {name: f".{name}" for name in ("W_q", "scale", "zero", "shape")}
    more = {name: f".{name}" for name in HQQ_NOTES}
    return _collect(files, config, Hqq, ".W_q", parts, more)


def _mxfp4(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    parts = {"blocks": "_blocks", "scales": "_scales"}
    return _collect(files, config, Mxfp4, "_blocks", parts, weight="")


def _bitsandbytes(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    if config.fields.get("load_in_8bit") is True:
        raise ValueError("load_in_8bit: only 4-bit weights of bitsandbytes can be read")
    found: dict[str, Module] = {}
    more = {name: f".weight.{name}" for name in ("nested_absmax", "nested_quant_map")}
    for kind in ("nf4", "fp4"):
        mark = f".weight.quant_state.bitsandbytes__{kind}"
        parts = {
            "weight": ".weight",
            "absmax": ".weight.absmax",
            "quant_map": ".weight.quant_map",
            "quant_state": mark,
        }
        found.update(_collect(files, config, Bitsandbytes, mark, parts, more))
    return found


def _modelopt(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    algorithm = config.text("quant_algo")
    if algorithm != "NVFP4":
        raise ValueError(f"quant_algo: only NVFP4 can be read, got {algorithm!r:.80}")
    make = functools.partial(Nvfp4, convention="multiply")
    parts = {
        "weight_packed": ".weight",
        "weight_scale": ".weight_scale",
        "global_scale": ".weight_scale_2",
    }
    return _collect(files, config, make, ".weight_scale_2", parts)


PACKED_FORMATS = (
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
)


def _compressed_tensors(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    form = config.text("format")
    if form not in PACKED_FORMATS:
        raise ValueError(f"format: expected {' or '.join(PACKED_FORMATS)}, got {form!r:.80}")
    # The format may be "mixed-precision": what lies beside the codes tells which one a module has.
    integers = {part: f".{part}" for part in ("weight_packed", "weight_scale", "weight_shape")}
    nvfp4 = {
        "weight_packed": ".weight_packed",
        "weight_scale": ".weight_scale",
        "global_scale": ".weight_global_scale",
    }
    more = {part: f".{part}" for part in ("weight_zero_point", "weight_g_idx")}
    make = functools.partial(Nvfp4, convention="divide")
    found = {
        **_collect(files, config, PackQuantized, ".weight_shape", integers, more),
        **_collect(files, config, make, ".weight_global_scale", nvfp4),
    }
    rest = {
        name: file
        for name, file in files.items()
        if not (name.endswith(".weight_packed") and name.removesuffix("_packed") in found)
    }
    mxfp4 = {"blocks": ".weight_packed", "scales": ".weight_scale"}
    return {**found, **_collect(rest, config, Mxfp4, ".weight_packed", mxfp4)}


_METHODS = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "hqq": _hqq,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
