# SPDX-License-Identifier: Apache-2.0
"""The quantized modules of a checkpoint: which tensors make up a weight, and how it is read."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from nibblas._arrays import Array
from nibblas.io import awq, bitsandbytes, compressed_tensors, gptq, hqq, mxfp4, nvfp4
from nibblas.io._quantization_config import QuantizationConfig
from nibblas.io._source import Value, slice_rows, with_zero_points
from nibblas.io.safetensors import SafetensorsFile
from nibblas.weights import PackedWeight

Files = Mapping[str, SafetensorsFile]
"""The file of each tensor."""

# Words of 32 bits begin every 32 outputs, whatever the bits of a code.
_RUN = 32


class Module(ABC):
    """A weight made of several tensors.

    Attributes
    ----------
    type : str
        What the weight is called in a listing, such as "gptq-4bit".
    parts : dict of str to str
        The tensors, by what they are.
    """

    type: str
    parts: dict[str, str]

    def __init__(self, files: Files, parts: dict[str, str]) -> None:
        self._files = files
        self.parts = parts

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the files."""
        entries = [self._files[name].tensors[name] for name in self.parts.values()]
        return sum(entry.end - entry.begin for entry in entries)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(N, K), or with experts (E, N, K)."""

    @abstractmethod
    def read(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop): start is a multiple of 32, and so is stop unless it is N."""

    def whole(self) -> Value:
        """All of it."""
        return self.read(0, self.shape[0])

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop), start a multiple of 16."""
        first = start // _RUN * _RUN
        last = min(-(-stop // _RUN) * _RUN, self.shape[0])
        return slice_rows(self.read(first, last), start - first, stop - first)

    def array(self, part: str) -> Array:
        """A tensor; 8-bit floats as their bytes."""
        name = self.parts[part]
        file = self._files[name]
        if file.tensors[name].dtype.startswith("F8"):
            return file.raw(name).reshape(file.tensors[name].shape)
        return file.array(name)

    def shape_of(self, part: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor, which must have so many dimensions."""
        name = self.parts[part]
        shape = self._files[name].tensors[name].shape
        if len(shape) != dimensions:
            raise ValueError(f"{name!r}: expected {dimensions} dimensions, got shape {shape}")
        return shape

    def optional(self, part: str) -> Array | None:
        """A tensor, or None."""
        return self.array(part) if part in self.parts else None


def _pack_rows(parts: Any, start: int, stop: int) -> PackedWeight:
    """Rows of a weight that an importer has read. Zero points are a plane in each or in none."""
    zeros = parts.zero_points
    weight: PackedWeight = parts.rows(start, stop).pack()
    if zeros is None or not zeros.size or (zeros == zeros.flat[0]).all():
        return weight
    return with_zero_points(weight)


class _Gptq(Module):
    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self._bits = config.size("bits")
        self._format = config.text("checkpoint_format", "gptq")
        self._group_size = config.group_size("group_size")
        self.type = f"gptq-{self._bits}bit"

    @property
    def shape(self) -> tuple[int, int]:
        height, cols = self.shape_of("qweight", 2)
        return cols, height * 32 // max(self._bits, 1)

    def read(self, start: int, stop: int) -> PackedWeight:
        parts = gptq.read(
            self.array("qweight"),
            self.array("qzeros"),
            self.array("scales"),
            self.optional("g_idx"),
            bits=self._bits,
            checkpoint_format=self._format,
            group_size=self._group_size_for(self.shape[1]),
        )
        return _pack_rows(parts, start, stop)

    def _group_size_for(self, depth: int) -> int | None:
        size = self._group_size
        return None if size is None or size >= depth else size


class _Awq(Module):
    type = "awq-4bit"

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self._bits = config.size("bits", config.size("w_bit", 4))
        version = config.text("version", "gemm").lower()
        if version != "gemm":
            raise ValueError(f'version: only "gemm" can be read, got {version!r}')

    @property
    def shape(self) -> tuple[int, int]:
        depth, words = self.shape_of("qweight", 2)
        return 8 * words, depth

    def read(self, start: int, stop: int) -> PackedWeight:
        arrays = (self.array(name) for name in ("qweight", "qzeros", "scales"))
        return _pack_rows(awq.read(*arrays, bits=self._bits), start, stop)


class _Bitsandbytes(Module):
    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        kind = next(name for part, name in parts.items() if part.startswith("quant_state"))
        self.type = f"bitsandbytes-{kind.rpartition('__')[2]}"

    @functools.cached_property
    def _state(self) -> bitsandbytes.State:
        name = self.parts["weight"]
        tensors = {part: self.array(key) for key, part in self.parts.items()}
        return bitsandbytes.read_state(tensors, name.removesuffix("weight"))

    @property
    def shape(self) -> tuple[int, int]:
        return self._state.shape

    def read(self, start: int, stop: int) -> PackedWeight:
        return bitsandbytes.pack_rows(self._state, start, stop)


class _PackQuantized(Module):
    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self._bits = config.weights_bits(parts["weight_packed"])
        self.type = f"pack-quantized-{self._bits}bit"

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        sizes = self.array("weight_shape")
        if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 0:
            raise ValueError(f"weight_shape: expected two sizes, got {sizes.dtype} {sizes.shape}")
        shape = (int(sizes[0]), int(sizes[1]))
        if self.shape_of("weight_packed", 2)[0] != shape[0]:
            raise ValueError(
                f"weight_packed: expected {shape[0]} rows, "
                f"got shape {self.shape_of('weight_packed', 2)}"
            )
        return shape

    def read(self, start: int, stop: int) -> PackedWeight:
        parts = compressed_tensors.read(
            self.array("weight_packed"),
            self.array("weight_scale"),
            self.optional("weight_zero_point"),
            self.optional("weight_g_idx"),
            weight_shape=self.shape,
            bits=self._bits,
        )
        return _pack_rows(parts, start, stop)


class _Nvfp4(Module):
    def __init__(
        self, files: Files, parts: dict[str, str], config: QuantizationConfig, *, convention: str
    ) -> None:
        super().__init__(files, parts)
        self._convention = convention
        self.type = "nvfp4"

    @property
    def shape(self) -> tuple[int, int]:
        cols, width = self.shape_of("weight_packed", 2)
        return cols, 2 * width

    def read(self, start: int, stop: int) -> PackedWeight:
        return nvfp4.from_arrays(
            self.array("weight_packed")[start:stop],
            self.array("weight_scale")[start:stop],
            self.array("global_scale"),
            convention=self._convention,  # type: ignore[arg-type]  # one of the two
        )


class _Mxfp4(Module):
    type = "mxfp4"

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)

    @property
    def shape(self) -> tuple[int, ...]:
        name = self.parts["blocks"]
        *lead, groups, size = self._files[name].tensors[name].shape or (0, 0)
        return (*lead, groups * size * 2)

    def read(self, start: int, stop: int) -> PackedWeight:
        w = mxfp4.from_arrays(self.array("blocks")[start:stop], self.array("scales")[start:stop])
        if not isinstance(w, PackedWeight):
            raise ValueError(f"expected a matrix, got shape {self.shape}")
        return w

    def whole(self) -> Value:
        return mxfp4.from_arrays(self.array("blocks"), self.array("scales"))


class _Hqq(Module):
    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self._bits = self._number("nbits", config.hqq("nbits"))
        self._group_size = self._number("group_size", config.hqq("group_size"))
        self._axis = self._number("axis", config.hqq("axis"))
        self.type = f"hqq-{self._bits}bit"

    def _number(self, part: str, default: Any) -> Any:
        if part not in self.parts:
            return default
        value = self.array(part)
        if value.size != 1:
            raise ValueError(f"{self.parts[part]!r}: expected one number, got shape {value.shape}")
        return value.reshape(-1)[0].item()

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        sizes = self.array("shape")
        if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
            raise ValueError(f"shape: expected two sizes, got {sizes.dtype} {sizes.shape}")
        return int(sizes[0]), int(sizes[1])

    def read(self, start: int, stop: int) -> PackedWeight:
        # Rows lie apart from each other in the packed matrix: it is read as a whole.
        w = self.whole()
        return w if (start, stop) == (0, self.shape[0]) else slice_rows(w, start, stop)

    def whole(self) -> PackedWeight:
        return hqq.from_arrays(
            self.array("W_q"),
            self.array("scale"),
            self.array("zero"),
            bits=self._bits,
            shape=self.shape,
            group_size=self._group_size,
            axis=1 if self._axis is None else self._axis,
        )


Make = Callable[[Files, dict[str, str], QuantizationConfig], Module]


def _modules(
    files: Files,
    config: QuantizationConfig,
    make: Make,
    mark: str,
    weight: str,
    needed: Mapping[str, str],
    optional: Mapping[str, str] | None = None,
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
        found[stem + weight] = make(files, parts, config)
    return found


def find_modules(files: Files, fields: Any) -> dict[str, Module]:
    """The quantized modules of a checkpoint with this quantization_config, by weight."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {type(fields).__name__}")
    config = QuantizationConfig(fields)
    method = config.text("quant_method")
    if method == "gptq":
        parts = {name: f".{name}" for name in ("qweight", "qzeros", "scales")}
        return _modules(files, config, _Gptq, ".qweight", ".weight", parts, {"g_idx": ".g_idx"})
    if method == "awq":
        parts = {name: f".{name}" for name in ("qweight", "qzeros", "scales")}
        return _modules(files, config, _Awq, ".qweight", ".weight", parts)
    if method == "hqq":
        parts = {name: f".{name}" for name in ("W_q", "scale", "zero", "shape")}
        more = {name: f".{name}" for name in ("nbits", "group_size", "axis")}
        return _modules(files, config, _Hqq, ".W_q", ".weight", parts, more)
    if method == "mxfp4":
        parts = {"blocks": "_blocks", "scales": "_scales"}
        return _modules(files, config, _Mxfp4, "_blocks", "", parts)
    if method == "bitsandbytes":
        return _bitsandbytes(files, config)
    if method in ("compressed-tensors", "modelopt"):
        return _by_format(files, config, method)
    raise ValueError(
        f"quant_method: expected gptq, awq, bitsandbytes, compressed-tensors, hqq, modelopt or "
        f"mxfp4, got {method!r:.80}"
    )


def _bitsandbytes(files: Files, config: QuantizationConfig) -> dict[str, Module]:
    if config.fields.get("load_in_8bit") is True:
        raise ValueError("load_in_8bit: only 4-bit weights of bitsandbytes can be read")
    found: dict[str, Module] = {}
    for kind in ("nf4", "fp4"):
        mark = f".weight.quant_state.bitsandbytes__{kind}"
        parts = {
            "weight": ".weight",
            "absmax": ".weight.absmax",
            "quant_map": ".weight.quant_map",
            "quant_state": mark,
        }
        more = {name: f".weight.{name}" for name in ("nested_absmax", "nested_quant_map")}
        found.update(_modules(files, config, _Bitsandbytes, mark, ".weight", parts, more))
    return found


def _by_format(files: Files, config: QuantizationConfig, method: str) -> dict[str, Module]:
    if method == "modelopt":
        algorithm = config.text("quant_algo")
        if algorithm != "NVFP4":
            raise ValueError(f"quant_algo: only NVFP4 can be read, got {algorithm!r:.80}")
        make = functools.partial(_Nvfp4, convention="multiply")
        parts = {
            "weight_packed": ".weight",
            "weight_scale": ".weight_scale",
            "global_scale": ".weight_scale_2",
        }
        return _modules(files, config, make, ".weight_scale_2", ".weight", parts)
    form = config.text("format")
    if form == "nvfp4-pack-quantized":
        make = functools.partial(_Nvfp4, convention="divide")
        parts = {
            "weight_packed": ".weight_packed",
            "weight_scale": ".weight_scale",
            "global_scale": ".weight_global_scale",
        }
        return _modules(files, config, make, ".weight_packed", ".weight", parts)
    if form == "pack-quantized":
        parts = {part: f".{part}" for part in ("weight_packed", "weight_scale", "weight_shape")}
        more = {part: f".{part}" for part in ("weight_zero_point", "weight_g_idx")}
        return _modules(files, config, _PackQuantized, ".weight_packed", ".weight", parts, more)
    raise ValueError(f"format: expected pack-quantized or nvfp4-pack-quantized, got {form!r:.80}")
