# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Hugging Face, quantized by any of the usual tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from nibblas._arrays import Array
from nibblas.io._methods import find_modules
from nibblas.io._modules import Module, Rows
from nibblas.io._source import Entry, Source, Value
from nibblas.io.safetensors import SafetensorsFile, TensorSpec
from nibblas.weights import PackedWeight

__all__ = ["Checkpoint", "load_checkpoint"]

INDEX = "model.safetensors.index.json"
MOST_JSON = 64 << 20
"""Bytes of a configuration or an index; the index of a model of 100,000 tensors takes 10 MB."""

SIDECARS = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files that older tools have written in place of a quantization_config, and their methods."""


class Checkpoint(Source):
    """The weights of a checkpoint by name, made when they are asked for; see `load_checkpoint`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        index = os.path.join(folder, INDEX)
        indexed: dict[str, str] = {}
        if folder != self.path:
            paths = [self.path]
        elif os.path.exists(index):
            indexed = _read_index(index)
            paths = list(dict.fromkeys(indexed.values()))
        else:
            paths = _files_of(folder)
        self._files = [SafetensorsFile(one) for one in paths]
        self._where: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.tensors:
                if name in self._where:
                    raise file.error(f"tensor {name!r}: {self._where[name].path} has it, too")
                self._where[name] = file
        for name, one in indexed.items():
            if name not in self._where or self._where[name].path != one:
                raise ValueError(f"{index}: weight_map: {one} has no tensor {name!r}")
        self._config = _read_config(folder)
        self._opened: tuple[str, Rows] | None = None
        self._modules: dict[str, Module] = {}
        quantization = self._config.get("quantization_config")
        if quantization is not None:
            try:
                self._modules = find_modules(self._where, quantization)
            except ValueError as error:
                raise ValueError(f"{self.path}: quantization_config: {error}") from None
        parts = {part for module in self._modules.values() for part in module.parts.values()}
        others = (name for name in self._where if name not in parts)
        self._names = dict.fromkeys([*self._modules, *others])

    @property
    def metadata(self) -> dict[str, Any]:
        """The configuration: what config.json has; a copy."""
        return dict(self._config)

    def describe(self, name: str) -> Entry:
        """What the tensor is, without reading its data; KeyError if there is none."""
        module = self._modules.get(self._known(name))
        if module is None:
            tensor = self._where[name].tensors[name]
            return Entry("array", tensor.dtype, tensor.shape, tensor.end - tensor.begin)
        with self._naming(name):
            return Entry("weight", module.type, module.shape, module.nbytes)

    def __getitem__(self, name: str) -> Value:
        module = self._modules.get(self._known(name))
        if module is None:
            return self._where[name].array(name)
        with self._naming(name):
            return module.whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def rows(self, name: str, start: int, stop: int) -> PackedWeight:
        """The outputs from `start`, a multiple of 16, to `stop` of a weight, as a weight."""
        self.check_rows(name, start, stop)
        with self._naming(name):
            opened = self._opened  # once: another thread may open another weight
            if opened is None or opened[0] != name:
                self._opened = opened = (name, self._modules[name].open())
            return opened[1](start, stop)

    def experts(self, name: str) -> Iterator[PackedWeight]:
        """The matrices of a weight with three dimensions, each made when it is due."""
        module = self._modules.get(self._known(name))
        if module is None or len(module.shape) != 3:
            raise TypeError(f"tensor {name!r} is no list of matrices")
        with self._naming(name):
            yield from module.experts()

    def stored(self, name: str) -> tuple[TensorSpec, Array]:
        """A tensor that is an array, of any type: its type and shape, and its bytes."""
        if self._known(name) in self._modules:
            raise KeyError(name)
        tensor = self._where[name].tensors[name]
        return TensorSpec(tensor.dtype, tensor.shape), self._where[name].raw(name)

    def release(self) -> None:
        """Give up the memory of what was read of the mapped files so far."""
        for file in self._files:
            file.release()

    def _known(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return name

    def _naming(self, name: str) -> _Naming:
        return _Naming(f"{self.path}: tensor {name!r}")


class _Naming:
    """Puts the file and the tensor before what an importer complains of."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, TypeError | ValueError):
            raise ValueError(f"{self._what}: {error}") from None


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of Hugging Face: its low-bit weights as they are, the rest as arrays.

    Parameters
    ----------
    path : path
        A folder with config.json and model.safetensors, or with an index and the files it names;
        or one .safetensors file, beside which config.json lies.

    Returns
    -------
    Checkpoint
        A mapping from names to packed weights and read-only arrays, which are made when they are
        asked for. A weight has the name of its module's weight, such as
        "model.layers.0.mlp.up_proj.weight". Files are memory-mapped.

        What config.json's quantization_config says decides how weights are read: quant_method
        "gptq" (checkpoint_format, or as some files have it format; "gptq" where there is neither,
        as files of the first version lack it), "awq" (GEMM), "bitsandbytes" (4 bits),
        "compressed-tensors" (pack-quantized, nvfp4, mxfp4), "hqq", "modelopt" (NVFP4) and "mxfp4".
        Without it (or a quantize_config.json, quant_config.json or hf_quant_config.json of older
        tools) all tensors are arrays.

    Raises
    ------
    ValueError
        A file is damaged or missing, or the method is none of these; the message names the file,
        the tensor and the field. Of the weights themselves when they are asked for.
    OSError
        A file cannot be opened.
    """
    return Checkpoint(path)


def _read_json(path: str) -> dict[str, Any]:
    size = os.path.getsize(path)
    if size > MOST_JSON:
        raise ValueError(f"{path}: {size} bytes of JSON, expected at most {MOST_JSON}")
    with open(path, "rb") as file:
        data = file.read(MOST_JSON + 1)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _read_config(folder: str) -> dict[str, Any]:
    """config.json, with the quantization_config of whichever place has it."""
    path = os.path.join(folder, "config.json")
    config = _read_json(path) if os.path.exists(path) else {}
    if "quantization_config" in config:
        return config
    inner = config.get("text_config")  # of models that see, too
    if isinstance(inner, dict) and "quantization_config" in inner:
        return {**config, "quantization_config": inner["quantization_config"]}
    for name, method in SIDECARS.items():
        path = os.path.join(folder, name)
        if os.path.exists(path):
            found = _read_json(path)
            fields = found.get("quantization", found)  # where modelopt has it
            if isinstance(fields, dict):
                fields = {"quant_method": method, **fields}
            return {**config, "quantization_config": fields}
    return config


def _files_of(folder: str) -> list[str]:
    """The files of a folder without an index."""
    single = os.path.join(folder, "model.safetensors")
    if os.path.exists(single):
        return [single]
    found = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    if not found:
        raise ValueError(f"{folder}: no .safetensors file in this folder")
    return [os.path.join(folder, name) for name in found]


def _read_index(index: str) -> dict[str, str]:
    """The path of each tensor's file, which is in the folder of the index."""
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(f"{index}: weight_map: expected a map from tensors to files")
    paths = {}
    for name in dict.fromkeys(names.values()):
        if os.path.basename(name) != name or name in ("", ".", "..") or set(name) & set("\\\0"):
            raise ValueError(
                f"{index}: weight_map: expected names of files in the folder, got {name!r:.80}"
            )
        paths[name] = os.path.join(os.path.dirname(index), name)
        if not os.path.isfile(paths[name]):
            raise ValueError(f"{index}: weight_map: there is no file {paths[name]}")
    return {tensor: paths[name] for tensor, name in names.items()}
