# SPDX-License-Identifier: Apache-2.0
"""Products and activation quantization: thin, since the native module checks and computes."""

from __future__ import annotations

import numpy.typing as npt
from numpy import ndarray

from nibblas import _nibblas
from nibblas._arrays import Array, as_array, output_type_name, thread_count
from nibblas.schemes import stored_group_size
from nibblas.weights import PackedWeight, TransposedWeight

_linear = _nibblas.linear


def linear(
    x: Array,
    weight: PackedWeight,
    bias: Array | None = None,
    *,
    compute: str = "int8",
    activation: str | None = None,
    out: Array | None = None,
    dtype: npt.DTypeLike | None = None,
    num_threads: int | None = None,
) -> Array:
    """``activation(x @ W.T + bias)``, bit for bit the same on every CPU and thread count.

    Parameters
    ----------
    x : ndarray or CPU tensor
        (..., K) float32, float16 or bfloat16, any strides. Objects with ``__dlpack__``, such as
        PyTorch tensors, are read in place.
    weight : PackedWeight
        (N, K).
    bias : ndarray, optional
        (N,), float32, float16 or bfloat16.
    compute : str
        "int8": each group of activations is quantized to 8 bits on the fly, and products are
        summed exactly in integers. "float32": activations are used as they are.
    activation : str, optional
        "relu", "gelu", "gelu_tanh" or "silu", applied to each output.
    out : ndarray, optional
        (..., N), of one of the three types, any strides, no overlap with an input; filled and
        returned.
    dtype : dtype or str, optional
        Type of the output; that of `x` if None. With `out`, its type.
    num_threads : int, optional
        Threads for this call. Never changes the result.

    Returns
    -------
    ndarray
        (..., N).

    Raises
    ------
    TypeError
        An array is of another type; the message says how to convert it.
    ValueError
        Shapes do not fit, `out` overlaps or is read-only, or a name is unknown.

    Notes
    -----
    The arithmetic is written down, operation by operation, in `nibblas.numerics`.

    In the main thread a signal's handler (Ctrl-C's, say) runs during a long call, about a tenth of
    a second after the signal. If it raises, the call ends with that exception, and `out` holds
    values that mean nothing. So it is with all functions of this package.

    Examples
    --------
    >>> w = nibblas.quantize(np.eye(16, 64, dtype=np.float32), "int8")
    >>> x = np.ones((2, 3, 64), np.float32)
    >>> nibblas.linear(x, w, np.ones(16, np.float32), activation="relu").shape
    (2, 3, 16)
    """
    # Small products take a microsecond: what is not needed here is not done here.
    try:
        native = weight._native
    except AttributeError:
        raise _not_a_weight(weight) from None
    given = out
    if not isinstance(x, ndarray):
        x = as_array(x, "x")
    if bias is not None and not isinstance(bias, ndarray):
        bias = as_array(bias, "bias")
    if out is not None and not isinstance(out, ndarray):
        out = as_array(out, "out")
    type_name = None if dtype is None else output_type_name(dtype)
    if not isinstance(compute, str):
        raise TypeError(f"compute must be a string, got {type(compute).__name__}")
    threads = 0 if num_threads is None else thread_count(num_threads)
    y = _linear(x, native, bias, compute, activation, out, type_name, threads)
    return y if given is None else given


def matmul_integer(
    a: Array,
    b: Array | PackedWeight | TransposedWeight,
    a_zero_point: Array | int | None = None,
    b_zero_point: Array | int | None = None,
    out: Array | None = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """``(a - a_zero_point) @ (b - b_zero_point)`` in int32 modulo 2^32, as ONNX MatMulInteger.

    Nothing saturates on the way, on any CPU.

    Parameters
    ----------
    a : ndarray
        (..., M, K) or (K,), int8 or uint8.
    b : ndarray or PackedWeight
        (K, N), int8 or uint8; or a packed weight (N, K) or its ``.T``, whose integers are used
        (what ``unpack()["codes"]`` gives) and whose scales are not.
    a_zero_point : int or ndarray, optional
        A scalar, or (M,): one for each row. Of the type of `a`.
    b_zero_point : int or ndarray, optional
        A scalar, or (N,): one for each column. Of the type of `b`.
    out : ndarray, optional
        (..., M, N) int32; filled and returned.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    ndarray
        (..., M, N) int32.

    Examples
    --------
    >>> a = np.full((1, 1000), 255, np.uint8)
    >>> nibblas.matmul_integer(a, np.full((1000, 1), -128, np.int8))
    array([[-32640000]], dtype=int32)
    """
    if isinstance(b, TransposedWeight):
        b = b.T
    if isinstance(b, PackedWeight):
        matrix: Array | _nibblas.Weight = b._native
    else:
        matrix = b if isinstance(b, ndarray) else as_array(b, "b")
    if not isinstance(a, ndarray):
        a = as_array(a, "a")
    given = out
    if out is not None and not isinstance(out, ndarray):
        out = as_array(out, "out")
    c = _nibblas.matmul_integer(
        a, matrix, a_zero_point, b_zero_point, out, thread_count(num_threads)
    )
    return c if given is None else given


def quantize_activations(
    x: Array, group_size: int | None = None, *, num_threads: int | None = None
) -> tuple[Array, Array]:
    """What `linear` does to its activations with compute="int8".

    Parameters
    ----------
    x : ndarray
        (..., K) float32, float16 or bfloat16.
    group_size : int, optional
        Input features that share a scale, a power of two from 16 to 4096; None is the whole row.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    codes : ndarray
        (..., K) int8, from -127 to 127: ``rint(x * (127 / amax))`` with the largest |x| of the
        group as amax.
    scales : ndarray
        (..., G) float32 with G = ceil(K / group_size): ``amax / 127``.

    Notes
    -----
    A group that holds a NaN or an infinity has the scale NaN and codes 0; one too small for
    127 / amax to be finite has scale 0 and codes 0.

    Examples
    --------
    >>> nibblas.quantize_activations(np.array([127, -1.5, 0.5], np.float32))
    (array([127,  -2,   0], dtype=int8), array([1.], dtype=float32))
    """
    if not isinstance(x, ndarray):
        x = as_array(x, "x")
    group = stored_group_size(group_size, x.shape[-1]) if x.ndim else None
    return _nibblas.quantize_activations(x, group or 0, thread_count(num_threads))


def _not_a_weight(weight: object) -> TypeError:
    if isinstance(weight, TransposedWeight):
        return TypeError("weight must be the packed weight (N, K) itself, not its transpose .T")
    hint = ": make one with nibblas.quantize" if isinstance(weight, ndarray) else ""
    return TypeError(f"weight must be a PackedWeight, got {type(weight).__name__}{hint}")
