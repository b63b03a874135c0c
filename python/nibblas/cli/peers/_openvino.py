# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: products with compressed weights and activations that it quantizes dynamically."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ("openvino",)


def version() -> str:
    """Of OpenVINO."""
    import openvino

    return str(openvino.__version__).split("-")[0]


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """MatMul with a constant that is decompressed on the fly."""
    kind = weight.kind
    if kind.integers or kind.blocks or kind.scheme not in ("int8", "int4"):
        return
    compiled = functools.partial(_Compiled, weight, threads)
    yield Op("OpenVINO compressed", compiled)


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


class _Compiled:
    def __init__(self, weight: Weight, threads: int) -> None:
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": weight.kind.group_size or weight.shape[1],
        }
        self.cols = weight.shape[0]
        codes = weight.codes.nbytes // (2 if weight.kind.scheme == "int4" else 1)
        self.nbytes = codes + 2 * weight.scales.size
        self.compiled = _core().compile_model(_model(weight), "CPU", properties)

    def bind(self, x: Array) -> Bound:
        import openvino

        out = np.empty((len(x), self.cols), np.float32)
        request = self.compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))

        def call() -> None:
            request.start_async()
            request.wait()

        def whole() -> Array:
            y = np.empty_like(out)
            request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
            request.set_output_tensor(openvino.Tensor(y, shared_memory=True))
            call()
            return y

        return Bound(call, lambda: out, whole)


def _model(weight: Weight) -> Any:
    """Codes, groups in a dimension of their own, times scales; then x times all that."""
    import openvino
    from openvino import opset13 as opset

    cols, depth = weight.shape
    groups = weight.scales.shape[1]
    split = [cols, groups, depth // groups] if groups > 1 else [cols, depth]
    if weight.kind.scheme == "int4":
        element, stored = openvino.Type.i4, weight.nibbles()
    else:
        element, stored = openvino.Type.i8, weight.codes
    tensor = openvino.Tensor(element, split)
    stored_there = tensor.data.view(np.uint8).reshape(-1)
    stored_there[:] = stored.view(np.uint8).reshape(-1)
    codes = openvino.op.Constant(tensor)
    scales = weight.scales.reshape([*split[:-1], 1]).astype(np.float16)
    values = opset.multiply(opset.convert(codes, "f16"), opset.constant(scales))
    if groups > 1:
        values = opset.reshape(values, opset.constant([cols, depth]), False)
    x = opset.parameter([-1, depth], np.float32)
    y = opset.matmul(x, opset.convert(values, "f32"), False, True)
    return openvino.Model([y], [x])
