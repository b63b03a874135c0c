# SPDX-License-Identifier: Apache-2.0
"""ggml, the kernels of llama.cpp: its own library, through ctypes.

The library is that of an installed llama-cpp-python, or in the folder named by NIBBLAS_GGML.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ()

FLOAT32 = 0
TYPES = {"Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14}
"""Of enum ggml_type."""

LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
CONTEXT_BYTES = 1 << 20  # of descriptions of tensors and graphs, no data


def version() -> str:
    """Of ggml."""
    library = _library()
    return str(library.ggml_version().decode())


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """Matrix products; the weights rearranged where ggml has a faster arrangement for them."""
    _library()
    if weight.kind.blocks:
        yield Op("ggml", functools.partial(_Tensor, weight, threads))


def _folder() -> Path:
    named = os.environ.get("NIBBLAS_GGML")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llama-cpp-python is not installed", name="llama_cpp")
    return Path(spec.origin).parent / "lib"


class _Params(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("size", c_size_t), ("memory", c_void_p), ("no_data", ctypes.c_bool))


SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # name: (result, arguments)
    "ggml_version": (c_char_p, ()),
    "ggml_log_set": (None, (c_void_p, c_void_p)),
    "ggml_init": (c_void_p, (_Params,)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph": (c_void_p, (c_void_p,)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_reg": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, (c_void_p, c_void_p)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
}


class _Library:
    """The functions above, wherever among the libraries they are."""

    def __init__(self, folder: Path) -> None:
        loaded = [
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            for name in LIBRARIES
            if (folder / name).exists()
        ]
        if not loaded:
            raise FileNotFoundError(f"there is no {LIBRARIES[-1]} in {folder}")
        for name, (result, arguments) in SIGNATURES.items():
            function = next((getattr(lib, name) for lib in loaded if hasattr(lib, name)), None)
            if function is None:
                raise OSError(f"the ggml in {folder} has no {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # set in __init__; this tells type checkers
        raise AttributeError(name)


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _silence(level: int, text: bytes, data: int | None) -> None:
    """Takes what ggml would print."""


@functools.cache
def _library() -> _Library:
    library = _Library(_folder())
    library.ggml_log_set(_silence, None)
    return library


@functools.cache
def _backend() -> int:
    backend: int = _library().ggml_backend_cpu_init()
    return backend


def _buffer_types() -> list[int]:
    """Kinds of memory for weights, those that rearrange them first."""
    lib = _library()
    device = lib.ggml_backend_reg_dev_get(lib.ggml_backend_cpu_reg(), 0)
    address = lib.ggml_backend_reg_get_proc_address(
        lib.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
    )
    found: list[int] = []
    if address:
        extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
        while extra and extra[len(found)]:
            found.append(extra[len(found)])
    return [*found, lib.ggml_backend_cpu_buffer_type()]


class _Context:
    """Descriptions of tensors, and the memory that one kind of buffer gives them."""

    def __init__(self) -> None:
        self.lib = _library()
        self.handle = self.lib.ggml_init(_Params(CONTEXT_BYTES, None, True))
        self.buffer: int | None = None

    def allocate(self, buffer_type: int) -> None:
        self.buffer = self.lib.ggml_backend_alloc_ctx_tensors_from_buft(self.handle, buffer_type)
        if not self.buffer:
            raise MemoryError("ggml could not allocate a tensor")

    def __del__(self) -> None:
        if self.buffer:
            self.lib.ggml_backend_buffer_free(self.buffer)
        self.lib.ggml_free(self.handle)


class _Tensor:
    """The weight, in ggml's memory."""

    def __init__(self, weight: Weight, threads: int) -> None:
        assert weight.blocks is not None
        assert weight.kind.blocks is not None
        self.lib, self.threads = _library(), threads
        self.cols, self.depth = weight.shape
        self.nbytes = weight.blocks.nbytes
        for buffer_type in _buffer_types():
            self.context = _Context()
            self.tensor = self.lib.ggml_new_tensor_2d(
                self.context.handle, TYPES[weight.kind.blocks], self.depth, self.cols
            )
            self.context.allocate(buffer_type)
            if self._multiplies():
                break
        blocks = np.ascontiguousarray(weight.blocks)
        self.lib.ggml_backend_tensor_set(self.tensor, blocks.ctypes.data, 0, blocks.nbytes)

    def _multiplies(self) -> bool:
        """Whether a product takes the weight as it lies in this kind of memory."""
        context = _Context()
        x = self.lib.ggml_new_tensor_2d(context.handle, FLOAT32, self.depth, 1)
        y = self.lib.ggml_mul_mat(context.handle, self.tensor, x)
        device = self.lib.ggml_backend_reg_dev_get(self.lib.ggml_backend_cpu_reg(), 0)
        return bool(self.lib.ggml_backend_dev_supports_op(device, y))

    def bind(self, x: Array) -> Bound:
        return _Product(self, x).bound()


class _Product:
    def __init__(self, weight: _Tensor, x: Array) -> None:
        lib = self.lib = weight.lib
        self.weight, self.context = weight, _Context()
        given = lib.ggml_new_tensor_2d(self.context.handle, FLOAT32, weight.depth, len(x))
        self.y = lib.ggml_mul_mat(self.context.handle, weight.tensor, given)
        self.graph = lib.ggml_new_graph(self.context.handle)
        lib.ggml_build_forward_expand(self.graph, self.y)
        self.context.allocate(lib.ggml_backend_cpu_buffer_type())
        self.x = np.ascontiguousarray(x, np.float32)
        self.given = given
        self.input()
        self.shape = (len(x), weight.cols)

    def bound(self) -> Bound:
        lib, backend, graph = self.lib, _backend(), self.graph
        lib.ggml_backend_cpu_set_n_threads(backend, self.weight.threads)
        compute = lib.ggml_backend_graph_compute

        def whole() -> Array:
            self.input()
            compute(backend, graph)
            return self.output()

        return Bound(lambda: compute(backend, graph), self.output, whole)

    def input(self) -> None:
        self.lib.ggml_backend_tensor_set(self.given, self.x.ctypes.data, 0, self.x.nbytes)

    def output(self) -> Array:
        out = np.empty(self.shape, np.float32)
        self.lib.ggml_backend_tensor_get(self.y, out.ctypes.data, 0, out.nbytes)
        return out
