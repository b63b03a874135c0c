# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Hugging Face, quantized by any of the usual tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from nibblas._arrays import Array
from nibblas.io._modules import Module, find_modules
from nibblas.io._source import Entry, Source, Value
from nibblas.io.safetensors import SafetensorsFile, TensorSpec
from nibblas.weights import PackedWeight

__all__ = ["Checkpoint", "load_checkpoint"]

INDEX = "model.safetensors.index.json"
MOST_JSON = 64 << 20
"""Bytes of a configuration or an index; the index of a model of 100,000 tensors takes 10 MB."""


class Checkpoint(Source):
    """The weights of a checkpoint by name, made when they are asked for; see `load_checkpoint`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        folder = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        if folder == self.path:
            paths = _shards(folder)
        else:
            paths = [self.path]
        self._files = [SafetensorsFile(one) for one in paths]
        self._where: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.tensors:
                if name in self._where:
                    raise file.error(f"tensor {name!r}: {self._where[name].path} has it, too")
                self._where[name] = file
        self._config = _read_config(os.path.join(folder, "config.json"))
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
        """The configuration, as config.json has it; a copy."""
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
            return self._modules[name].rows(start, stop)

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
        "gptq" (checkpoint_format "gptq" where there is none, as files of the first version lack
        it), "awq", "bitsandbytes" (4 bits), "compressed-tensors" (pack-quantized, nvfp4), "hqq",
        "modelopt" (NVFP4) and "mxfp4". Without it all tensors are arrays.

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


def _read_config(path: str) -> dict[str, Any]:
    config = _read_json(path) if os.path.exists(path) else {}
    # Some models with pictures keep it with the language model.
    inner = config.get("text_config")
    if "quantization_config" not in config and isinstance(inner, dict):
        return {**config, **{k: v for k, v in inner.items() if k == "quantization_config"}}
    return config


def _shards(folder: str) -> list[str]:
    """The files of a folder, as its index names them; names may not lead out of the folder."""
    index = os.path.join(folder, INDEX)
    if not os.path.exists(index):
        single = os.path.join(folder, "model.safetensors")
        if os.path.exists(single):
            return [single]
        found = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        if not found:
            raise ValueError(f"{folder}: no .safetensors file in this folder")
        return [os.path.join(folder, name) for name in found]
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(f"{index}: weight_map: expected a map from tensors to files")
    files = list(dict.fromkeys(names.values()))
    for name in files:
        if os.path.basename(name) != name or name in ("", ".", "..") or "\\" in name:
            raise ValueError(f"{index}: weight_map: {name!r} is no name of a file in the folder")
    paths = [os.path.join(folder, name) for name in files]
    for one in paths:
        if not os.path.isfile(one):
            raise ValueError(f"{index}: weight_map: there is no file {one}")
    return paths
