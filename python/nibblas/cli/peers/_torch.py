# SPDX-License-Identifier: Apache-2.0
"""PyTorch: dynamic int8 linear, int8pack, int4pack and _int_mm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ("torch",)

INNER_TILES = 2
"""Of int4pack's layout; its CPU kernels ignore it."""


def version() -> str:
    """Of PyTorch."""
    import torch

    return str(torch.__version__)


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """The operators for this kind of weight. int8pack and int4pack compute with bfloat16."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    kind = weight.kind
    if kind.integers:
        yield Op("PyTorch _int_mm", lambda: _Integers(weight))
    elif kind.name == "int8":
        yield Op("PyTorch dynamic int8 (oneDNN)", lambda: _Dynamic(weight, "onednn"))
        if torch.backends.cpu.get_cpu_capability() == "AVX2":  # what PyTorch chooses there
            yield Op("PyTorch dynamic int8 (FBGEMM)", lambda: _Dynamic(weight, "fbgemm"))
        scales = _rounded(weight.scales)
        yield Op("PyTorch int8pack", lambda: _Int8Pack(weight), _times(weight, scales))
    elif kind.scheme == "int4" and kind.group_size and not kind.blocks:
        scales = _rounded(weight.scales)
        yield Op("PyTorch int4pack", lambda: _Int4Pack(weight), _times(weight, scales))


def _rounded(scales: Array) -> Array:
    """Scales as bfloat16 keeps them."""
    import torch

    rounded: Array = torch.from_numpy(scales).bfloat16().float().numpy()
    return rounded


def _times(weight: Weight, scales: Array) -> Array:
    return weight.codes * scales.repeat(weight.shape[1] // scales.shape[1], axis=1)


class _Weights:
    """`product` of x; subclasses set it, and `nbytes`, and say in which type they take x."""

    nbytes: int
    product: Callable[[Any], Any]

    def convert(self, x: Any) -> Any:
        return x

    def bind(self, x: Array) -> Bound:
        import torch

        given = self.convert(torch.from_numpy(x))
        convert = self.convert
        last: list[Any] = [None]
        product = self.product

        def call() -> None:
            last[0] = product(given)

        def whole() -> Array:
            return np.asarray(product(convert(torch.from_numpy(x))).float().numpy())

        return Bound(call, lambda: np.asarray(last[0].float().numpy()), whole)


class _Dynamic(_Weights):
    def __init__(self, weight: Weight, engine: str) -> None:
        import torch

        torch.backends.quantized.engine = engine
        cols, _ = weight.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such tensors are to go, these products with them
            matrix = torch._make_per_channel_quantized_tensor(
                torch.from_numpy(weight.codes),
                torch.from_numpy(weight.scales[:, 0].astype(np.float64)),
                torch.zeros(cols, dtype=torch.int64),
                0,
            )
        packed = torch.ops.quantized.linear_prepack(matrix, None)
        self.nbytes = weight.codes.nbytes + weight.scales.nbytes
        # FBGEMM adds products in 16 bits: seven bits of activations keep them from saturating.
        run, reduce_range = torch.ops.quantized.linear_dynamic, engine == "fbgemm"
        self.product = lambda x: run(x, packed, reduce_range)


class _Int8Pack(_Weights):
    def __init__(self, weight: Weight) -> None:
        import torch

        codes = torch.from_numpy(weight.codes.copy())
        scales = torch.from_numpy(weight.scales[:, 0]).bfloat16()
        self.nbytes = weight.codes.nbytes + 2 * scales.numel()
        run = torch.ops.aten._weight_int8pack_mm
        self.product = lambda x: run(x, codes, scales)

    def convert(self, x: Any) -> Any:
        return x.bfloat16()


class _Int4Pack(_Weights):
    def __init__(self, weight: Weight) -> None:
        import torch

        group = weight.kind.group_size
        codes = torch.from_numpy(weight.codes.astype(np.int32) + 8)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, INNER_TILES)
        scales = torch.from_numpy(weight.scales.T.copy()).bfloat16()
        both = torch.stack((scales, torch.zeros_like(scales)), 2).contiguous()
        self.nbytes = packed.numel() * packed.element_size() + 2 * both.numel()
        run = torch.ops.aten._weight_int4pack_mm_for_cpu
        self.product = lambda x: run(x, packed, group, both)

    def convert(self, x: Any) -> Any:
        return x.bfloat16()


class _Integers:
    def __init__(self, weight: Weight) -> None:
        import torch

        self.codes = torch.from_numpy(weight.codes.copy()).t()
        self.nbytes = weight.codes.nbytes

    def bind(self, x: Array) -> Bound:
        import torch

        given = torch.from_numpy(x)
        out = torch.empty((len(x), self.codes.shape[1]), dtype=torch.int32)
        codes = self.codes
        return Bound(
            lambda: torch._int_mm(given, codes, out=out),
            lambda: np.asarray(out.numpy()),
            lambda: np.asarray(torch._int_mm(torch.from_numpy(x), codes).numpy()),
        )
