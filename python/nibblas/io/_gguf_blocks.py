# SPDX-License-Identifier: Apache-2.0
"""The blocks of GGUF files: to and from floats, and to packed weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nibblas import _nibblas
from nibblas._arrays import Array, aligned_empty, as_array, output_array, thread_count
from nibblas.io._gguf_file import TYPES
from nibblas.packing import pack
from nibblas.schemes import PANEL, get_scheme, group_count
from nibblas.weights import PackedWeight, make_weight


class _Scheme(NamedTuple):
    """What a block type is called here, and how its parts are named."""

    name: str
    shift: int = 0  # from a stored code to the signed one that `pack` takes
    signed_scales: bool = False


_SCHEMES = {
    "Q4_0": _Scheme("int4", shift=8),
    "Q4_1": _Scheme("uint4"),
    "Q5_0": _Scheme("int5", shift=16),
    "Q5_1": _Scheme("uint5"),
    "Q8_0": _Scheme("int8"),
    "Q2_K": _Scheme("q2_k"),
    "Q3_K": _Scheme("q3_k", signed_scales=True),
    "Q4_K": _Scheme("q4_k"),
    "Q5_K": _Scheme("q5_k"),
    "Q6_K": _Scheme("q6_k", signed_scales=True),
    "IQ4_NL": _Scheme("iq4_nl"),
    "IQ4_XS": _Scheme("iq4_xs", signed_scales=True),
    "MXFP4": _Scheme("mxfp4"),
    "TQ1_0": _Scheme("ternary", shift=1),
    "TQ2_0": _Scheme("ternary", shift=1),
}

BLOCK_SHAPES: dict[str, tuple[int, int, int]] = _nibblas.block_shapes()
"""Elements, bytes and groups of a block."""

_CHUNK_CODES = 1 << 22
"""Codes unpacked at a time: what `from_blocks` needs besides its result is a few times that."""


def _type_name(qtype: object) -> str:
    """The name of a type given as a name, a number, or an enumeration's member."""
    name = qtype if isinstance(qtype, str) else getattr(qtype, "name", None)
    if name is None and isinstance(qtype, int | np.integer) and not isinstance(qtype, bool):
        if int(qtype) not in TYPES:
            raise ValueError(f"qtype: {int(qtype)} is the number of no type that is known")
        name = TYPES[int(qtype)][0]
    if not isinstance(name, str):
        raise TypeError(
            f"qtype must be a name, a number or a GGMLQuantizationType, got {type(qtype).__name__}"
        )
    return name.upper()


def _block_type(qtype: object, others: tuple[str, ...] = ()) -> str:
    name = _type_name(qtype)
    if name not in BLOCK_SHAPES and name not in others:
        known = ", ".join([*BLOCK_SHAPES, *others])
        raise ValueError(f"qtype must be one of {known}, got {name}")
    return name


def _as_bytes(data: Any, name: str, size: int, of: str) -> Array:
    """`data` as bytes in C order whose rows are whole blocks of `size` bytes."""
    array = as_array(data, name)
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension")
    array = np.ascontiguousarray(array)
    if array.dtype != np.uint8:
        array = array.view(np.uint8)
    if array.shape[-1] % size:
        raise ValueError(
            f"{name}: expected rows of a multiple of {size} bytes for {of}, got shape {array.shape}"
        )
    return array


def dequantize(
    data: Array, qtype: object, out: Array | None = None, *, num_threads: int | None = None
) -> Array:
    """Return the float32 values of blocks, as ``gguf.quants.dequantize`` does.

    Parameters
    ----------
    data : ndarray
        (..., bytes) of uint8, or of another type that holds the same bytes.
    qtype : str, int or gguf.GGMLQuantizationType
        "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
        "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0", "F32", "F16" or "BF16"; also the number of one.
    out : ndarray, optional
        (..., K) float32 in C order; filled and returned. Where many large tensors are decoded, the
        first touch of new memory takes longer than decoding.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    ndarray
        (..., K) float32, bit for bit what the package gives; every NaN is the quiet one. (MXFP4's
        scale of byte 255 is a power of two here, as in ggml; the standard, and so a PackedWeight,
        has NaN.)

    Raises
    ------
    TypeError, ValueError
        The type is unknown, or rows are not whole blocks.

    Examples
    --------
    >>> from nibblas.io import gguf
    >>> raw = gguf.quantize(np.linspace(-8, 7, 32, dtype=np.float32), "Q4_0")
    >>> raw.shape, gguf.dequantize(raw, "Q4_0")[:3]
    ((18,), array([-8., -8., -7.], dtype=float32))
    """
    name = _block_type(qtype, ("F32", "F16", "BF16"))
    if name in BLOCK_SHAPES:
        raw = _as_bytes(data, "data", BLOCK_SHAPES[name][1], name)
        return _nibblas.dequantize_blocks(raw, name, out, thread_count(num_threads))
    if name == "F32":
        values = as_array(data, "data").view(np.float32)
    elif name == "F16":
        values = as_array(data, "data").view(np.float16).astype(np.float32)
    else:
        values = from_bfloat16(_as_bytes(data, "data", 2, name).view(np.uint16))
    if out is None:
        return values
    output_array(out, values.shape, "float32")[...] = values
    return out


def quantize(data: Array, qtype: object, *, num_threads: int | None = None) -> Array:
    """Return the blocks that floats become, as ``gguf.quants.quantize`` does.

    Byte for byte so for the types that the package writes (its bytes on x86-64, where they differ
    between CPUs: with scales too small for an inverse). The K-quants, IQ4_NL and IQ4_XS, which it
    only reads, get scales of least squares (``docs/numerics.md``).

    Parameters
    ----------
    data : ndarray
        (..., K), of a type that converts to float32; K a multiple of 32, or of 256.
    qtype : str, int or gguf.GGMLQuantizationType
        As for `dequantize`.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    ndarray
        (..., bytes) uint8; of "F32" and "F16" floats.

    Raises
    ------
    TypeError
        data is no array of real numbers, or the type is none.
    ValueError
        The type is unknown, K no multiple, data has NaN or infinity; or is too large for the
        float16 scales of a K-quant, IQ4_NL or IQ4_XS.

    Examples
    --------
    >>> from nibblas.io import gguf
    >>> x = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    >>> gguf.quantize(x, "Q4_K").shape
    (4, 288)
    """
    name = _block_type(qtype, ("F32", "F16", "BF16"))
    array = as_array(data, "data")
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"data must have real numbers, got {array.dtype}")
    with np.errstate(invalid="ignore"):  # signalling NaNs: NumPy warns of them on some CPUs
        if name == "F16":
            return array.astype(np.float16, copy=False)
        values = array.astype(np.float32, copy=False)
    if name == "F32":
        return values
    if array.ndim == 0:
        raise ValueError("data must have at least one dimension")
    values = np.ascontiguousarray(values)
    if name == "BF16":
        return _to_bfloat16(values).view(np.uint8)
    elements = BLOCK_SHAPES[name][0]
    if values.shape[-1] % elements:
        raise ValueError(
            f"data: expected rows of a multiple of {elements} for {name}, got shape {array.shape}"
        )
    return _nibblas.quantize_blocks(values, name, thread_count(num_threads))


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: Array) -> Array:
    """To nearest even; a NaN keeps its upper bits and becomes quiet."""
    bits = values.view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    bits = np.where(is_nan, bits & 0xFFFF0000 | 0x00400000, bits)
    return (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_blocks(raw: Array, qtype: object, *, num_threads: int | None = None) -> PackedWeight:
    """Pack the blocks of a matrix; no value changes.

    Parameters
    ----------
    raw : uint8 ndarray
        (N, bytes per row): the rows of a weight (N, K), each K / 32 or K / 256 blocks.
    qtype : str, int or gguf.GGMLQuantizationType
        "Q4_0" becomes the scheme "int4", "Q4_1" "uint4" with mins, "Q5_0" "int5", "Q5_1" "uint5"
        with mins, "Q8_0" "int8", "TQ1_0" and "TQ2_0" "ternary"; "Q2_K", "Q3_K", "Q4_K", "Q5_K",
        "Q6_K", "IQ4_NL", "IQ4_XS" and "MXFP4" become the scheme of the same name.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    PackedWeight
        Of shape (N, K). Memory that is needed besides is bounded, whatever the size.

    Raises
    ------
    TypeError
        raw is not uint8.
    ValueError
        The type is unknown, rows are not whole blocks, or a ternary block has the code 3.

    Examples
    --------
    >>> from nibblas.io import gguf
    >>> x = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32)
    >>> w = gguf.from_blocks(gguf.quantize(x, "Q6_K"), "Q6_K")
    >>> w.scheme, w.shape
    ('q6_k', (48, 256))
    """
    name = _block_type(qtype)
    blocks = as_array(raw, "raw")
    if blocks.dtype != np.uint8:
        raise TypeError(f"raw must be uint8, got {blocks.dtype}")
    elements, size, _ = BLOCK_SHAPES[name]
    if blocks.ndim != 2 or blocks.shape[1] % size:
        raise ValueError(
            f"raw must have shape (N, bytes), bytes a multiple of {size} for {name}, "
            f"got {blocks.shape}"
        )
    rows, depth = blocks.shape[0], blocks.shape[1] // size * elements
    step = max(_CHUNK_CODES // max(depth, 1) // PANEL, 1) * PANEL
    if rows <= step:
        return _pack_rows(blocks, name, num_threads)
    # In chunks of whole panels, which follow each other in every plane but the codebook's.
    planes: dict[str, Array] = {}
    for start in range(0, rows, step):
        chunk = _pack_rows(blocks[start : start + step], name, num_threads)
        for key, plane in chunk.planes.items():
            if plane.ndim == 1:
                planes[key] = plane
                continue
            if key not in planes:
                planes[key] = aligned_empty((-(-rows // PANEL), *plane.shape[1:]), plane.dtype)
            first = start // PANEL
            planes[key][first : first + len(plane)] = plane
    scheme = get_scheme(_SCHEMES[name].name)
    return make_weight(scheme, (rows, depth), chunk.group_size, planes, scheme.zero)


def quantize_weight(weight: Array, scheme: str, *, num_threads: int | None = None) -> PackedWeight:
    """Quantize a matrix (N, K) of any K to a two-level scheme, by way of its GGUF blocks."""
    cols, depth = weight.shape
    name = scheme.upper()
    elements, _, groups_of_block = BLOCK_SHAPES[name]
    group = elements // groups_of_block
    padded = np.zeros((cols, -(-depth // elements) * elements), np.float32)
    padded[:, :depth] = weight
    blocks = _nibblas.quantize_blocks(padded, name, thread_count(num_threads))
    if depth == padded.shape[1]:
        return from_blocks(blocks, name, num_threads=num_threads)
    arguments = _pack_rows(blocks, name, num_threads).unpack(num_threads=num_threads)
    arguments["codes"] = arguments["codes"][:, :depth]
    for key in ("scales", "mins"):
        if key in arguments:
            arguments[key] = arguments[key][:, : group_count(depth, group)]
    return pack(**arguments, num_threads=num_threads)


def _pack_rows(blocks: Array, name: str, num_threads: int | None) -> PackedWeight:
    threads = thread_count(num_threads)
    parts = _nibblas.unpack_blocks(np.ascontiguousarray(blocks), name, threads)
    scheme = _SCHEMES[name]
    codes = parts["codes"]
    if name == "Q8_0":
        codes = codes.view(np.int8)
    elif scheme.shift:
        np.subtract(codes, scheme.shift, out=codes)  # modulo 256
        codes = codes.view(np.int8)
    if scheme.name == "ternary" and codes.size and codes.max() > 1:
        raise ValueError(f"raw: expected the codes 0, 1 and 2 of {name}, got 3")
    arguments: dict[str, Any] = {"group_size": BLOCK_SHAPES[name][0] // BLOCK_SHAPES[name][2]}
    if get_scheme(scheme.name).two_level:
        scales = parts["scales"]
        arguments["scales"] = scales.view(np.int8) if scheme.signed_scales else scales
        arguments["super_scales"] = parts["block_scales"]
        if "mins" in parts:
            arguments["mins"] = parts["mins"]
            # What is added is -dmin times the sub-min.
            arguments["super_mins"] = (parts["block_mins"].view(np.uint16) ^ 0x8000).view(
                np.float16
            )
    else:
        arguments["scales"] = parts["scales"] if name == "MXFP4" else parts["block_scales"]
        if "block_mins" in parts:
            arguments["mins"] = parts["block_mins"]
    return pack(
        codes,
        scheme=scheme.name,
        allow_non_finite=True,
        num_threads=num_threads,
        **arguments,
    )
