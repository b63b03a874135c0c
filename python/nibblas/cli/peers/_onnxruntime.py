# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: MatMulNBits, DynamicQuantizeMatMul and MatMulInteger."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nibblas._arrays import Array
from nibblas.cli.peers._base import Bound, Op, Weight

REQUIRES = ("onnxruntime", "onnx")

INT8_ACCURACY = 4
"""MatMulNBits' accuracy_level that lets it quantize activations to int8."""

OPSETS = (("", 21), ("com.microsoft", 1))


def version() -> str:
    """Of ONNX Runtime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def ops(weight: Weight, threads: int) -> Iterator[Op]:
    """The operators for this kind of weight."""
    kind = weight.kind
    if kind.integers:
        # int8 by int8 has no fast kernel on x86: uint8 with a zero point is the same product.
        arrays = {"B": np.ascontiguousarray(weight.codes.T), "zero": np.array(128, np.uint8)}
        yield _op("MatMulInteger", weight, threads, arrays, {}, "")
    elif kind.name == "int8":
        arrays = {"B": np.ascontiguousarray(weight.codes.T), "b_scale": weight.scales[:, 0]}
        yield _op("DynamicQuantizeMatMul", weight, threads, arrays, {})
    elif kind.scheme == "int4" and kind.group_size and not kind.blocks:
        cols, depth = weight.shape
        group = kind.group_size
        packed = weight.nibbles(unsigned=True).reshape(cols, depth // group, group // 2)
        arrays = {"B": packed, "scales": weight.scales}
        attributes = {"K": depth, "N": cols, "bits": 4, "block_size": group}
        attributes["accuracy_level"] = INT8_ACCURACY
        yield _op("MatMulNBits", weight, threads, arrays, attributes)


def _op(
    name: str,
    weight: Weight,
    threads: int,
    arrays: dict[str, Array],
    attributes: dict[str, Any],
    domain: str = "com.microsoft",
) -> Op:
    @functools.cache
    def model() -> bytes:
        return _model(name, weight, arrays, attributes, domain)

    nbytes = sum(array.nbytes for array in arrays.values())
    return Op(f"ONNX Runtime {name}", lambda: _Session(model(), nbytes, threads))


def _model(
    name: str, weight: Weight, arrays: dict[str, Array], attributes: dict[str, Any], domain: str
) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    integers = weight.kind.integers
    cols, depth = weight.shape
    x_type = TensorProto.UINT8 if integers else TensorProto.FLOAT
    y_type = TensorProto.INT32 if integers else TensorProto.FLOAT
    node = helper.make_node(name, ["x", *arrays], ["y"], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", x_type, ["rows", depth])],
        [helper.make_tensor_value_info("y", y_type, ["rows", cols])],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    opsets = [helper.make_opsetid(*entry) for entry in OPSETS]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = made.SerializeToString()
    return serialized


@functools.cache
def _shared_pool(threads: int) -> bool:
    """Let all sessions use one pool of threads; false where that cannot be had.

    Cold weights are hundreds of sessions: woken one after the other, their own threads would sleep.
    """
    import onnxruntime

    try:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
    except (AttributeError, RuntimeError):  # too old, or there is a pool of another size
        return False
    return True


class _Session:
    def __init__(self, model: bytes, nbytes: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads > 1 and _shared_pool(threads):
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.nbytes = nbytes
        self.cols = self.session.get_outputs()[0].shape[1]

    def bind(self, x: Array) -> Bound:
        import onnxruntime

        out = np.empty((len(x), self.cols), np.int32 if x.dtype == np.int8 else np.float32)
        if x.dtype == np.int8:
            x = x.view(np.uint8) ^ 128
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        keep = value(x), value(out)
        binding: Any = self.session.io_binding()
        binding.bind_ortvalue_input("x", keep[0])
        binding.bind_ortvalue_output("y", keep[1])
        session = self.session

        def whole() -> Array:
            y: Array = session.run(None, {"x": x})[0]
            return y

        run = session.run_with_iobinding
        return Bound(lambda: run(binding), lambda: np.asarray(keep[1].numpy()), whole)
