# SPDX-License-Identifier: Apache-2.0
"""The native module. Private: it checks what memory safety needs, the package does the rest.

num_threads is a number, or 0 for the number set for the process. bfloat16 arrays are of the type
of ml_dtypes; planes hold bfloat16 as its bits in uint16.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

LAYOUT_VERSION: int
CONTRACT_VERSION: int

class _NativeType(type): ...

class Weight(metaclass=_NativeType):
    """A packed weight as kernels see it: it keeps the planes alive and copies nothing."""

    def __init__(self, /, *args: object, **kwargs: object) -> None: ...  # raises TypeError

def make_weight(
    shape: tuple[int, int],
    group_size: int,
    bits: int,
    codes: list[npt.NDArray[np.uint8]],
    scales: npt.NDArray[Any],
    *,
    scale_type: str,
    zero: int = 0,
    is_signed: bool = False,
    zero_points: npt.NDArray[Any] | None = None,
    mins: npt.NDArray[Any] | None = None,
    nibble_mins: bool = False,
    super_scales: npt.NDArray[np.float16] | None = None,
    super_mins: npt.NDArray[np.float16] | None = None,
    codebook: npt.NDArray[Any] | None = None,
    tensor_scale: float | None = None,
    tensor_divisor: float | None = None,
    input_order: npt.NDArray[np.int32] | None = None,
) -> Weight: ...

class _QuantizedPlanes(TypedDict):
    codes: list[npt.NDArray[np.uint8]]
    scales: npt.NDArray[Any]
    zero_points: npt.NDArray[np.uint8] | None
    mins: npt.NDArray[Any] | None
    tensor_scale: float

def linear(
    x: npt.NDArray[Any],
    weight: Weight,
    bias: npt.NDArray[Any] | None = None,
    compute: str = "int8",
    activation: str | None = None,
    out: npt.NDArray[Any] | None = None,
    dtype: str | None = None,
    num_threads: int = 0,
) -> npt.NDArray[Any]: ...
def matmul_integer(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any] | Weight,
    a_zero_point: npt.NDArray[Any] | int | None = None,
    b_zero_point: npt.NDArray[Any] | int | None = None,
    out: npt.NDArray[np.int32] | None = None,
    num_threads: int = 0,
) -> npt.NDArray[np.int32]: ...
def quantize_activations(
    x: npt.NDArray[Any], group_size: int = 0, num_threads: int = 0
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]: ...
def quantize(
    weight: npt.NDArray[Any],
    bits: int,
    offset: str,
    group_size: int,
    candidates: npt.ArrayLike,
    scale_type: str,
    *,
    is_ternary: bool = False,
    codebook: npt.ArrayLike | None = None,
    num_threads: int = 0,
) -> _QuantizedPlanes: ...
def pack_codes(
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8],
    bits: int,
    group_size: int,
    num_threads: int = 0,
    two_level: bool = False,
    add: int = 0,
    top: int = 255,
    input_order: npt.NDArray[np.int32] | None = None,
) -> list[npt.NDArray[np.uint8]] | None: ...
def unpack_codes(weight: Weight, num_threads: int = 0, add: int = 0) -> npt.NDArray[np.uint8]: ...
def dequantize(
    weight: Weight, out: npt.NDArray[Any], num_threads: int = 0, is_fresh: bool = False
) -> None: ...
def take(
    weight: Weight, indices: npt.NDArray[np.int64], out: npt.NDArray[Any], num_threads: int = 0
) -> None: ...
def block_shapes() -> dict[str, tuple[int, int, int]]:
    """Elements, bytes and groups of a block, by the name of its type."""

def dequantize_blocks(
    raw: npt.NDArray[np.uint8],
    type: str,
    out: npt.NDArray[np.float32] | None = None,
    num_threads: int = 0,
) -> npt.NDArray[np.float32]: ...
def unpack_blocks(
    raw: npt.NDArray[np.uint8], type: str, num_threads: int = 0
) -> dict[str, npt.NDArray[Any]]: ...
def empty(dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]: ...
def quantize_blocks(
    x: npt.NDArray[np.float32], type: str, num_threads: int = 0
) -> npt.NDArray[np.uint8]: ...
def activate(x: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]: ...
def from_dlpack_bf16(obj: object) -> npt.NDArray[np.uint16]: ...
def target() -> str: ...
def available_targets() -> list[str]: ...
def set_target(name: str) -> None: ...
def targets_on(features: Sequence[str], why_no_tiles: str = "") -> list[tuple[str, str]]: ...
def why_no_tiles() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def cpu_info() -> dict[str, Any]: ...
def explain(
    rows: int, weight: Weight, compute: str = "int8", num_threads: int = 0
) -> dict[str, Any]: ...
def peak_dot(seconds: float) -> float: ...
def read_bandwidth(nbytes: int) -> float: ...
def build_info() -> dict[str, Any]: ...
