# SPDX-License-Identifier: Apache-2.0
"""Weights of MatMulNBits, what they mean, and ONNX models with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Weight(NamedTuple):
    """The inputs and attributes of a node, and the codes and zero points (N, K) in them."""

    arrays: dict[str, np.ndarray]
    attributes: dict[str, int]
    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """By the formula, in float64: exact for all but float zero points."""
        return (self.codes.astype(np.float64) - self.zeros) * self.scales

    @property
    def magnitudes(self) -> np.ndarray:
        """Of the terms ``code * scale`` and ``zero * scale`` where they are added separately."""
        return (self.codes.astype(np.float64) + np.abs(self.zeros)) * np.abs(self.scales)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Bytes of codes along the last axis, the first code in the lowest bits; 0 fills the last."""
    in_byte = 8 // bits
    size = -(-codes.shape[-1] // in_byte)
    data = np.zeros((*codes.shape[:-1], size), np.uint8)
    for k in range(codes.shape[-1]):
        data[..., k // in_byte] |= codes[..., k] << np.uint8(bits * (k % in_byte))
    return data


def random_weight(
    rng: np.random.Generator,
    N: int,
    K: int,
    bits: int,
    block_size: int,
    zero_points: str = "none",
    scale_dtype: Any = np.float32,
    ordered: bool = True,
) -> Weight:
    """A node with `zero_points` "none", "packed", "one" (the same for all) or "float"."""
    blocks = -(-K // block_size)
    codes = rng.integers(0, 1 << bits, (N, blocks * block_size), np.uint8)  # the tail is noise
    data = pack_bits(codes.reshape(N, blocks, block_size), bits)
    scales = (rng.uniform(-1, 1, (N, blocks)) / 8).astype(np.float32).astype(scale_dtype)
    scales[rng.random((N, blocks)) < 0.05] = 0
    arrays = {"B": data, "scales": scales}
    zeros: np.ndarray = np.full((N, blocks), 1 << (bits - 1), np.float64)
    if zero_points in ("packed", "one"):
        integers = rng.integers(0, 1 << bits, (N, blocks), np.uint8)
        if zero_points == "one":
            integers[:] = 1
        elif integers.size > 1:
            integers.flat[0], integers.flat[-1] = 0, (1 << bits) - 1
        arrays["zero_points"] = pack_bits(integers, bits)
        zeros = integers.astype(np.float64)
    elif zero_points == "float":
        floats = rng.uniform(0, (1 << bits) - 1, (N, blocks)).astype(np.float32)
        arrays["zero_points"] = floats.astype(scale_dtype)
        zeros = arrays["zero_points"].astype(np.float64)
    block_of = np.arange(K) // block_size
    if not ordered:
        block_of = rng.permutation(block_of)
        arrays["g_idx"] = block_of.astype(np.int32)
        # The k-th code is input k's, whichever block it belongs to.
    return Weight(
        arrays,
        {"N": N, "K": K, "bits": bits, "block_size": block_size},
        codes[:, :K],
        zeros[:, block_of],
        scales.astype(np.float64)[:, block_of],
    )


def model_of(nodes: dict[str, Weight], others: dict[str, np.ndarray] | None = None) -> Any:
    """A model of MatMulNBits nodes that all read "x", and of further initializers."""
    import onnx
    from onnx import helper, numpy_helper

    made, inits, inputs, outputs = [], [], [], []
    for name, weight in nodes.items():
        names = []
        for key in ("B", "scales", "zero_points", "g_idx"):
            names.append(f"{name}.{key}" if key in weight.arrays else "")
            if key in weight.arrays:
                inits.append(numpy_helper.from_array(weight.arrays[key], names[-1]))
        element = helper.np_dtype_to_tensor_dtype(weight.arrays["scales"].dtype)
        made.append(
            helper.make_node(
                "MatMulNBits",
                [f"{name}.x", *names],
                [f"{name}.y"],
                name=name,
                domain="com.microsoft",
                accuracy_level=1,
                **weight.attributes,
            )
        )
        N, K = weight.codes.shape
        inputs.append(helper.make_tensor_value_info(f"{name}.x", element, ("rows", K)))
        outputs.append(helper.make_tensor_value_info(f"{name}.y", element, ("rows", N)))
    for name, array in (others or {}).items():
        inits.append(numpy_helper.from_array(array, name))
    graph = helper.make_graph(made, "graph", inputs, outputs, inits)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests")
    helper.set_model_props(model, {"kind": "small"})
    if nodes:
        onnx.checker.check_model(onnx.ModelProto.FromString(model.SerializeToString()))
    return model
