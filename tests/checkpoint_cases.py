# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of Hugging Face of each kind, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nibblas.io import mxfp4, nvfp4
from nibblas.io.safetensors import spec_of

from .test_io_bitsandbytes import random_state
from .test_io_compressed_tensors import random_weight as random_compressed
from .test_io_gptq import awq_weight, gptq_weight
from .test_io_hqq import random_weight as random_hqq

E4M3, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu
Arrays = dict[str, np.ndarray]


class Kind(NamedTuple):
    """A checkpoint: its quantization_config, its tensors, and what its weights are."""

    config: dict[str, Any] | None
    tensors: Arrays
    values: dict[str, Any]
    """Of each weight the dense matrix; a list of them for experts."""
    types: dict[str, str]


def arrays_of(prefix: str, arguments: dict[str, Any]) -> Arrays:
    return {f"{prefix}.{k}": v for k, v in arguments.items() if isinstance(v, np.ndarray)}


def gptq(rng: np.random.Generator, order: str = "shuffled", **config: Any) -> Kind:
    bits = config.get("bits", 4)
    form = config.get("checkpoint_format", "gptq")
    # Of "b" all zero points are equal in the first rows only.
    fields = rng.integers(0, 1 << bits, (40, 3))
    fields[:32] = 1
    a = gptq_weight(rng, (40, 96), 32, bits, form, order=order)
    b = gptq_weight(rng, (40, 96), 32, bits, form, order=order, fields=fields)
    c = gptq_weight(rng, (40, 96), 32, bits, form, order=order, fields=fields * 0)
    tensors, values = {}, {}
    for name, weight in (("a", a), ("b", b), ("x.c", c)):
        tensors.update(arrays_of(name, weight.arguments))
        values[f"{name}.weight"] = weight.values
    full = {"quant_method": "gptq", "group_size": 32, "bits": bits, **config}
    return Kind(full, tensors, values, dict.fromkeys(values, f"gptq-{bits}bit"))


def gptq_dynamic(rng: np.random.Generator) -> Kind:
    kind = gptq(rng, bits=4, dynamic={"+:.*d.*": {"bits": 8}})
    more = gptq_weight(rng, (40, 96), 32, 8, fields=rng.integers(0, 255, (40, 3)))
    return kind._replace(
        tensors={**kind.tensors, **arrays_of("d", more.arguments)},
        values={**kind.values, "d.weight": more.values},
        types={**kind.types, "d.weight": "gptq-8bit"},
    )


def awq(rng: np.random.Generator) -> Kind:
    a, b = awq_weight(rng, (40, 64), 32), awq_weight(rng, (24, 64), 32)
    b.arguments["qzeros"][:] = 0x33333333
    values = {"a.weight": a.values, "b.weight": b._replace(zeros=b.zeros * 0 + 3).values}
    tensors = {**arrays_of("a", a.arguments), **arrays_of("b", b.arguments)}
    config = {"quant_method": "awq", "bits": 4, "version": "gemm", "group_size": 32}
    return Kind(config, tensors, values, dict.fromkeys(values, "awq-4bit"))


def bitsandbytes(rng: np.random.Generator) -> Kind:
    a, a_values, _ = random_state(rng, (40, 64), 64, "nf4", nested=True, name="a.weight")
    b, b_values, _ = random_state(rng, (24, 48), 64, "fp4", name="b.weight")
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    types = {"a.weight": "bitsandbytes-nf4", "b.weight": "bitsandbytes-fp4"}
    return Kind(config, {**a, **b}, {"a.weight": a_values, "b.weight": b_values}, types)


def compressed(rng: np.random.Generator, layout: str = "dense", zeros: str = "packed") -> Kind:
    """Two numbers of bits, of which the number of words tells which one a module has."""
    tensors, values, types = {}, {}, {}
    for name, bits, depth in (("a", 3, 320), ("b", 4, 64), ("c", 4, 80)):
        weight = random_compressed(rng, (40, depth), 32, bits, zeros, layout, ordered=name != "b")
        shape = np.array(weight.arguments["weight_shape"], np.int64)
        tensors.update(arrays_of(name, {**weight.arguments, "weight_shape": shape}))
        values[f"{name}.weight"] = weight.values
        types[f"{name}.weight"] = f"pack-quantized-{bits}bit"
    groups = {
        f"group_{bits}": {
            "targets": ["Linear"],
            "weights": {"num_bits": bits, "type": "int", "group_size": 32, "strategy": "group"},
        }
        for bits in (3, 4)
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": groups,
    }
    return Kind(config, tensors, values, types)


def e2m1_codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def mixed(rng: np.random.Generator) -> Kind:
    """All three packed formats of compressed-tensors in one checkpoint."""
    kind = compressed(rng)
    codes = e2m1_codes(rng, 40, 32)
    small = rng.integers(0, 127, (40, 4), np.uint8)
    powers = rng.integers(110, 140, (40, 2), np.uint8)
    tensors = {
        **kind.tensors,
        "n.weight_packed": codes,
        "n.weight_scale": small.view(E4M3),
        "n.weight_global_scale": np.float32([3.5]),
        "m.weight_packed": codes,
        "m.weight_scale": powers,
    }
    n = nvfp4.from_arrays(codes, small, 3.5, convention="divide")
    m = mxfp4.from_arrays(codes, powers)
    values = {**kind.values, "n.weight": n.dequantize(), "m.weight": m.dequantize()}
    types = {**kind.types, "n.weight": "nvfp4", "m.weight": "mxfp4"}
    return Kind({**kind.config, "format": "mixed-precision"}, tensors, values, types)


def modelopt(rng: np.random.Generator) -> Kind:
    codes, small = e2m1_codes(rng, 40, 32), rng.integers(0, 127, (40, 4), np.uint8)
    tensors = {
        "n.weight": codes,
        "n.weight_scale": small.view(E4M3),
        "n.weight_scale_2": np.array(0.25, np.float32),
    }
    n = nvfp4.from_arrays(codes, small, 0.25, convention="multiply")
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    return Kind(config, tensors, {"n.weight": n.dequantize()}, {"n.weight": "nvfp4"})


def gpt_oss(rng: np.random.Generator) -> Kind:
    blocks, scales = e2m1_codes(rng, 3, 40, 2, 16), rng.integers(110, 140, (3, 40, 2), np.uint8)
    values: dict[str, Any] = {
        "e.up_proj": [w.dequantize() for w in mxfp4.from_arrays(blocks, scales)],
        "one": mxfp4.from_arrays(blocks[0], scales[0]).dequantize(),
    }
    tensors = {
        "e.up_proj_blocks": blocks,
        "e.up_proj_scales": scales,
        "e.up_proj_bias": np.zeros((3, 40), ml_dtypes.bfloat16),
        "one_blocks": blocks[0],
        "one_scales": scales[0].view(E8M0),
    }
    return Kind({"quant_method": "mxfp4"}, tensors, values, dict.fromkeys(values, "mxfp4"))


def hqq(rng: np.random.Generator, own: bool = True, bits: float = 3) -> Kind:
    """With the numbers beside the tensors, or in the configuration."""
    weight = random_hqq(rng, (40, 64), 32, round(bits))
    tensors = arrays_of("a", weight.arguments)
    tensors["a.shape"] = np.array([40, 64])
    parameters = {"nbits": bits, "group_size": 32, "axis": 1}
    if own:
        # Numbers have the types that the package gives them, of text there are the bytes.
        types = {int: np.int32, float: np.float32}
        tensors.update({f"a.{k}": np.array(v, types[type(v)]) for k, v in parameters.items()})
        tensors["a.packing"] = np.frombuffer(b"3bit_32", np.uint8)
        tensors["a.view_as_float"] = np.array(0, np.uint8)
        parameters = {"nbits": 4, "group_size": 64, "axis": 0}
    config = {"quant_method": "hqq", "quant_config": {"weight_quant_params": parameters}}
    values = {"a.weight": weight.values.astype(np.float32)}
    return Kind(config, tensors, values, {"a.weight": f"hqq-{round(bits)}bit"})


KINDS = {
    "none": lambda rng: Kind(None, {}, {}, {}),
    "gptq": gptq,
    "gptq-plain": lambda rng: gptq(rng, order="plain"),
    "gptq-2bit": lambda rng: gptq(rng, bits=2),
    "gptq-3bit": lambda rng: gptq(rng, bits=3, desc_act=True),
    "gptq-8bit": lambda rng: gptq(rng, bits=8, checkpoint_format="gptq_v2"),
    "gptq-dynamic": gptq_dynamic,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "dense": compressed,
    "padded": lambda rng: compressed(rng, "padded"),
    "symmetric": lambda rng: compressed(rng, zeros="none"),
    "mixed": mixed,
    "modelopt": modelopt,
    "mxfp4": gpt_oss,
    "hqq": hqq,
    "hqq-config": lambda rng: hqq(rng, own=False),
    "hqq-1.58bit": lambda rng: hqq(rng, bits=1.58),
    "hqq-1.58bit-config": lambda rng: hqq(rng, own=False, bits=1.58),
}
OTHERS = {
    "norm.weight": np.ones(7, ml_dtypes.bfloat16),
    "embed.weight": np.arange(20, dtype=np.float32).reshape(4, 5),
}


def write_file(path: Path, tensors: Arrays) -> None:
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        spec = spec_of(array)
        header[name] = {
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_folder(folder: Path, tensors: Arrays, config: Any = None, shards: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    if config is not None:
        fields = {"model_type": "tests", "eps": 1e-6, "quantization_config": config}
        (folder / "config.json").write_text(json.dumps(fields))
    if not shards:
        write_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for i in range(shards):
        part = f"model-{i}.safetensors"
        names = list(tensors)[i::shards]
        write_file(folder / part, {name: tensors[name] for name in names})
        weight_map.update(dict.fromkeys(names, part))
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
