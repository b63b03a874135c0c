# SPDX-License-Identifier: Apache-2.0
"""LiteRT: its fully connected layer on XNNPACK, activations quantized on the fly."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import version as version_of
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ("ai_edge_litert", "flatbuffers")


def version() -> str:
    """Of LiteRT."""
    return version_of("ai-edge-litert")


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """Fully connected, with int8 or int4 weights."""
    kind = weight.kind
    if kind.integers or kind.blocks or kind.scheme not in ("int8", "int4"):
        return
    model = functools.cache(lambda: _model(weight))
    yield Op("LiteRT fully connected", lambda: _Interpreter(weight, model(), threads))


class _Interpreter:
    def __init__(self, weight: Weight, model: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        codes = weight.codes.nbytes // (2 if weight.kind.scheme == "int4" else 1)
        self.nbytes = codes + weight.scales.size * (2 if weight.kind.group_size else 4)
        self.interpreter = Interpreter(model_content=model, num_threads=threads)
        self.input = self.interpreter.get_input_details()[0]["index"]
        self.output = self.interpreter.get_output_details()[0]["index"]

    def bind(self, x: Array) -> Bound:
        interpreter = self.interpreter
        interpreter.resize_tensor_input(self.input, list(x.shape))
        interpreter.allocate_tensors()
        interpreter.set_tensor(self.input, x)

        def output() -> Array:
            y: Array = interpreter.get_tensor(self.output)
            return y

        def whole() -> Array:
            interpreter.set_tensor(self.input, x)
            interpreter.invoke()
            return output()

        return Bound(interpreter.invoke, output, whole)


def _model(weight: Weight) -> bytes:
    """A model of one layer, in the schema's own flat buffers."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    cols, depth = weight.shape
    int4 = weight.kind.scheme == "int4"
    buffers = [schema.BufferT()]

    def buffer(array: Array | None) -> int:
        entry = schema.BufferT()
        if array is not None:
            entry.data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        buffers.append(entry)
        return len(buffers) - 1

    def tensor(name: str, shape: list[int], kind: int, data: Array | None = None) -> Any:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type = name, shape, kind
        entry.buffer = buffer(data)
        return entry

    x = tensor("x", [1, depth], schema.TensorType.FLOAT32)
    y = tensor("y", [1, cols], schema.TensorType.FLOAT32)
    x.shapeSignature, y.shapeSignature = [-1, depth], [-1, cols]
    kind = schema.TensorType.INT4 if int4 else schema.TensorType.INT8
    matrix = tensor("w", [cols, depth], kind, weight.nibbles() if int4 else weight.codes)
    tensors = [x, matrix, y]
    matrix.quantization = quantization = schema.QuantizationParametersT()
    if weight.kind.group_size:
        scales = weight.scales.astype(np.float16)
        tensors.append(tensor("scales", list(scales.shape), schema.TensorType.FLOAT16, scales))
        blocks = schema.BlockwiseQuantizationT()
        blocks.scales, blocks.zeroPoints, blocks.blockSize = 3, -1, weight.kind.group_size
        quantization.details = blocks
        quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    else:
        quantization.scale = weight.scales[:, 0]
        quantization.zeroPoint = np.zeros(cols, np.int64)
    quantization.quantizedDimension = 0

    options = schema.FullyConnectedOptionsT()
    options.asymmetricQuantizeInputs = False
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, -1], [2]
    layer.builtinOptions = options
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [layer], [0], [2]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 12
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
