# SPDX-License-Identifier: Apache-2.0
"""The quantized modules of a checkpoint: which tensors make up a weight, and how it is read."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from nibblas._arrays import Array
from nibblas.io import awq, bitsandbytes, compressed_tensors, gptq, hqq, mxfp4, nvfp4
from nibblas.io._quantization_config import QuantizationConfig
from nibblas.io._source import Value, slice_rows, with_zero_points
from nibblas.io.safetensors import SafetensorsFile, Tensor
from nibblas.weights import PackedWeight

Files: TypeAlias = Mapping[str, SafetensorsFile]
"""The file of each tensor."""

Rows: TypeAlias = Callable[[int, int], PackedWeight]
"""Outputs [start, stop) of a weight that was read, start being a multiple of 16."""


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
        entries = [self.entry(part) for part in self.parts]
        return sum(entry.end - entry.begin for entry in entries)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(N, K), or with experts (E, N, K)."""

    @abstractmethod
    def open(self) -> Rows:
        """Check all tensors; what is returned keeps little of them in memory."""

    def whole(self) -> Value:
        """All of it."""
        return self.open()(0, self.shape[0])

    def experts(self) -> Iterator[PackedWeight]:
        """Its matrices one by one, if it has several."""
        raise TypeError("it is one matrix, without experts")

    def entry(self, part: str) -> Tensor:
        """What the file's header says of a tensor."""
        name = self.parts[part]
        return self._files[name].tensors[name]

    def sizes(self, part: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor, which must have so many dimensions."""
        shape = self.entry(part).shape
        if len(shape) != dimensions:
            raise ValueError(
                f"{self.parts[part]!r}: expected {dimensions} dimensions, got shape {shape}"
            )
        return shape

    def array(self, part: str, floats: str = "") -> Array:
        """A tensor; one of the 8-bit floats called `floats` as its bytes."""
        name = self.parts[part]
        file, entry = self._files[name], self.entry(part)
        if floats and entry.dtype == floats:
            return file.raw(name).reshape(entry.shape)
        return file.array(name)

    def optional(self, part: str) -> Array | None:
        """A tensor, or None."""
        return self.array(part) if part in self.parts else None

    def pair(self, part: str) -> tuple[int, int]:
        """The two numbers in a small tensor."""
        array = self.array(part)
        if array.shape != (2,) or array.dtype.kind not in "iu" or array.min() < 1:
            raise ValueError(
                f"{self.parts[part]!r}: expected two sizes, got {array.dtype} {array.shape}"
            )
        return int(array[0]), int(array[1])


def _rows(parts: gptq.Parts | awq.Parts | compressed_tensors.Parts, zeros: Array | None) -> Rows:
    """Rows of what an importer has read: all pieces have a plane of zero points, or none."""
    differ = zeros is not None and zeros.size > 0 and bool((zeros != zeros.flat[0]).any())

    def rows(start: int, stop: int) -> PackedWeight:
        weight = parts.rows(start, stop).pack()
        return with_zero_points(weight) if differ else weight

    return rows


class Gptq(Module):
    """A module of GPTQ."""

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        if config.fields.get("is_marlin_format"):
            raise ValueError("is_marlin_format: weights packed for Marlin cannot be read")
        self._bits = config.size("bits")
        if config.fields.get("dynamic"):
            # Modules differ in bits then, but each has N zero points in N * bits / 32 words.
            words, cols = self.sizes("qzeros", 2)[1], self.sizes("scales", 2)[1]
            self._bits = words * 32 // max(cols, 1)
        # AutoGPTQ has called it "format" for a while, and nothing else.
        named = "checkpoint_format" in config.fields
        self._format = config.text("checkpoint_format" if named else "format", "gptq")
        self._group_size = config.group_size("group_size")
        self.type = f"gptq-{self._bits}bit"

    @property
    def shape(self) -> tuple[int, int]:
        words, cols = self.sizes("qweight", 2)
        index = self.entry("g_idx").shape if "g_idx" in self.parts else ()
        if len(index) == 1 and index[0]:  # an empty one is none
            return cols, index[0]
        return cols, words * 32 // max(self._bits, 1)

    def open(self) -> Rows:
        depth, groups = self.shape[1], self.sizes("scales", 2)[0]
        parts = gptq.read(
            self.array("qweight"),
            self.array("qzeros"),
            self.array("scales"),
            self.optional("g_idx"),
            bits=self._bits,
            checkpoint_format=self._format,
            group_size=self._group_size if groups and depth % groups else None,
        )
        return _rows(parts, parts.zero_points)


class Awq(Module):
    """A module of AWQ, of the layout GEMM."""

    type = "awq-4bit"

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self._bits = config.size("bits", config.size("w_bit", 4))
        version = config.text("version", "gemm").lower()
        if version != "gemm":
            raise ValueError(f'version: only "gemm" can be read, got {version!r:.80}')

    @property
    def shape(self) -> tuple[int, int]:
        depth, words = self.sizes("qweight", 2)
        return 8 * words, depth

    def open(self) -> Rows:
        arrays = (self.array(part) for part in ("qweight", "qzeros", "scales"))
        parts = awq.read(*arrays, bits=self._bits)
        return _rows(parts, parts.zero_points)


class PackQuantized(Module):
    """A module of compressed-tensors with integers."""

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        groups = config.groups()
        depth, words = self.shape[1], self.sizes("weight_packed", 2)[1]
        # Where modules differ in bits, the number of words tells them.
        fitting = {
            bits: size
            for bits, size in groups.items()
            if words in (-(-depth * bits // 32), -(-depth // (32 // bits)))
        }
        if len(fitting) != 1:
            raise ValueError(
                f"config_groups: expected weights of one number of bits for "
                f"{self.parts['weight_packed']!r} of {words} words and {depth} inputs, "
                f"got {sorted(fitting or groups)}"
            )
        ((self._bits, self._group_size),) = fitting.items()
        self.type = f"pack-quantized-{self._bits}bit"

    @property
    def shape(self) -> tuple[int, int]:
        return self.pair("weight_shape")

    def open(self) -> Rows:
        depth, scales = self.shape[1], self.entry("weight_scale").shape
        groups = scales[1] if len(scales) == 2 else 1
        parts = compressed_tensors.read(
            self.array("weight_packed"),
            self.array("weight_scale"),
            self.optional("weight_zero_point"),
            self.optional("weight_g_idx"),
            weight_shape=self.shape,
            bits=self._bits,
            group_size=self._group_size if groups and depth % groups else None,
        )
        return _rows(parts, parts.zero_points)


class Bitsandbytes(Module):
    """A module of bitsandbytes, of 4 bits."""

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        self.type = f"bitsandbytes-{parts['quant_state'].rpartition('__')[2]}"

    @property
    def shape(self) -> tuple[int, int]:
        return bitsandbytes.read_shape(self.parts["quant_state"], self.array("quant_state"))

    def open(self) -> Rows:
        tensors = {name: self.array(part) for part, name in self.parts.items()}
        state = bitsandbytes.read_state(tensors, self.parts["weight"].removesuffix("weight"))
        return functools.partial(bitsandbytes.pack_rows, state)


class Nvfp4(Module):
    """A module of NVFP4 blocks."""

    type = "nvfp4"

    def __init__(
        self, files: Files, parts: dict[str, str], config: QuantizationConfig, *, convention: str
    ) -> None:
        super().__init__(files, parts)
        self._convention: Any = convention

    @property
    def shape(self) -> tuple[int, int]:
        cols, width = self.sizes("weight_packed", 2)
        return cols, 2 * width

    def open(self) -> Rows:
        codes, scales = self.array("weight_packed"), self.array("weight_scale", "F8_E4M3")
        number = self.array("global_scale")

        def rows(start: int, stop: int) -> PackedWeight:
            pair = codes[start:stop], scales[start:stop]
            return nvfp4.from_arrays(*pair, number, convention=self._convention)

        nvfp4.from_arrays(codes[:0], scales[:0], number, convention=self._convention)
        return rows


class Mxfp4(Module):
    """A module of MXFP4 blocks, or the experts of one."""

    type = "mxfp4"

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, groups = self.entry("scales").shape or (0,)
        if len(lead) not in (1, 2):
            shape = self.entry("scales").shape
            raise ValueError(f"{self.parts['scales']!r}: expected 2 or 3 dimensions, got {shape}")
        return (*lead, groups * mxfp4.BLOCK)

    def open(self) -> Rows:
        return self._matrix(self.array("blocks"), self.array("scales", "F8_E8M0"))

    def whole(self) -> Value:
        return list(self.experts()) if len(self.shape) == 3 else super().whole()

    def experts(self) -> Iterator[PackedWeight]:
        if len(self.shape) != 3:
            return super().experts()
        blocks, scales = self.array("blocks"), self.array("scales", "F8_E8M0")
        if len(blocks) != len(scales):
            raise ValueError(
                f"blocks must have {len(scales)} experts like the scales, got {len(blocks)}"
            )
        pairs = zip(blocks, scales, strict=True)
        return (self._matrix(*pair)(0, self.shape[1]) for pair in pairs)

    def _matrix(self, blocks: Array, scales: Array) -> Rows:
        if len(blocks) != len(scales):
            raise ValueError(f"blocks must have {len(scales)} rows, got {len(blocks)}")

        def rows(start: int, stop: int) -> PackedWeight:
            weight = mxfp4.from_arrays(blocks[start:stop], scales[start:stop])
            assert isinstance(weight, PackedWeight)  # of two dimensions
            return weight

        return rows


class Hqq(Module):
    """A module of HQQ."""

    def __init__(self, files: Files, parts: dict[str, str], config: QuantizationConfig) -> None:
        super().__init__(files, parts)
        bits = self._number("nbits", config)
        # What HQQ calls 1.58 bits are codes of 2; beside the tensors it is a float32.
        ternary = isinstance(bits, float) and math.isclose(bits, 1.58, rel_tol=2**-24)
        self._bits = 2 if ternary else bits
        self._group_size = self._number("group_size", config)
        self._axis = self._number("axis", config)
        self.type = f"hqq-{self._bits}bit"

    def _number(self, part: str, config: QuantizationConfig) -> Any:
        if part not in self.parts:
            return config.hqq(part)
        value = self.array(part)
        if value.size != 1:
            raise ValueError(f"{self.parts[part]!r}: expected one number, got shape {value.shape}")
        return value.reshape(-1)[0].item()

    @property
    def shape(self) -> tuple[int, int]:
        return self.pair("shape")

    def open(self) -> Rows:
        # Rows lie apart from each other in the packed matrix: it is read as a whole.
        weight = hqq.from_arrays(
            self.array("W_q"),
            self.array("scale"),
            self.array("zero"),
            bits=self._bits,
            shape=self.shape,
            group_size=self._group_size,
            axis=1 if self._axis is None else self._axis,
        )
        return functools.partial(slice_rows, weight)
