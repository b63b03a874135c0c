# SPDX-License-Identifier: Apache-2.0
"""Packed weights in safetensors files.

Each plane of a weight is a tensor "NAME.PLANE" (of a weight without a name, "PLANE"). The metadata
field "nibblas" holds JSON: format_version, layout_version, and under "weights" for each name the
scheme, shape, group_size, zero and planes (and tensor_scale or tensor_divisor as hexadecimal
floats, where a weight has one). All other tensors are plain arrays.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from nibblas._arrays import Array, aligned_copy, as_array, read_only
from nibblas.io.safetensors import (
    PADDING,
    SafetensorsFile,
    TensorSpec,
    parse_object,
    spec_of,
    write,
)
from nibblas.schemes import LAYOUT_VERSION, get_scheme
from nibblas.weights import PackedWeight, make_weight

FORMAT_VERSION = 1
"""Version of what the metadata and the names of tensors mean."""

KEY = "nibblas"
"""The metadata field that describes the packed weights."""


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, PackedWeight | Array],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write packed weights and arrays to one file in the safetensors format.

    The file appears at once and whole: it is written under another name in the same folder, then
    renamed. So it may replace a file that weights are mapped from. Every tensor starts at a
    multiple of 64 bytes. Programs that know the format read the planes as tensors.

    Parameters
    ----------
    path : path
        Where to.
    tensors : mapping of str to PackedWeight or ndarray
        By name.
    metadata : mapping of str to str, optional
        Further metadata of the file.

    Raises
    ------
    TypeError, ValueError
        A name or a type that cannot be written, or two tensors of one name.

    Examples
    --------
    >>> w = nibblas.quantize(np.eye(32, dtype=np.float32), "int8")
    >>> nibblas.save("layer.safetensors", {"weight": w, "bias": np.zeros(32, np.float32)})
    >>> sorted(nibblas.load("layer.safetensors"))
    ['bias', 'weight']
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping from names, got {type(tensors).__name__}")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"a tensor's name must be a string, got {name!r}")
        if not name:
            raise ValueError("a tensor's name cannot be empty")
    if metadata is not None and KEY in metadata:
        raise ValueError(f"the metadata field {KEY!r} is written by nibblas itself")
    save_weights(path, tensors, metadata)


def save_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, PackedWeight | Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `save`; the name "" stands for a weight that is the file's only one."""
    entries: dict[str, tuple[TensorSpec, Array]] = {}
    weights = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, PackedWeight):
            weights[name] = describe(tensor)
            parts = {tensor_name(name, p): (p, a) for p, a in tensor.planes.items()}
            new = {key: (plane_spec(p, a), a) for key, (p, a) in parts.items()}
        else:
            array = as_array(tensor, f"tensor {name!r}")
            try:
                new = {name: (spec_of(array), array)}
            except TypeError as error:
                raise TypeError(f"tensor {name!r}: {error}") from None
        twice = entries.keys() & new.keys()
        if twice:
            raise ValueError(f"two tensors would have the name {min(twice)!r}")
        entries.update(new)
    write(
        path,
        [(name, spec, array) for name, (spec, array) in entries.items()],
        {**(metadata or {}), KEY: encode_description(weights)},
    )


def load(
    path: str | os.PathLike[str], mmap: bool = True
) -> PackedWeight | dict[str, PackedWeight | Array]:
    """Read a file that `PackedWeight.save`, `save` or ``nibblas quantize`` has written.

    Parameters
    ----------
    path : path
        The file.
    mmap : bool
        Map the file: planes are read from it when they are first used, and shared by all processes
        that map it. Do not cut or overwrite a mapped file in place; to replace it is safe. If
        False, planes are copied into memory.

    Returns
    -------
    PackedWeight or dict
        The weight, if the file was written by its method `save`; else a dict of packed weights and
        read-only arrays by name.

    Raises
    ------
    ValueError
        The file is damaged, too new, or holds no packed weights; the message names what is wrong.
    OSError
        It cannot be read.
    """
    file = SafetensorsFile(path)
    weights, others = read_weights(file)
    if not mmap:
        weights = {name: weight.copy() for name, weight in weights.items()}
    if weights.keys() == {""} and not others:
        return weights[""]
    arrays = {name: file.array(name) for name in others}
    if not mmap:
        arrays = {name: read_only(aligned_copy(array)) for name, array in arrays.items()}
    return {**weights, **arrays}


def read_weights(file: SafetensorsFile) -> tuple[dict[str, PackedWeight], list[str]]:
    """The packed weights of a file, mapped, and the names of the other tensors."""
    claimed: set[str] = set()
    weights = {
        name: _read_weight(file, name, description, claimed)
        for name, description in read_description(file).items()
    }
    others = [n for n in file.tensors if n not in claimed and not n.startswith(PADDING)]
    for name in others:
        if name in weights:
            raise file.error(f"tensor {name!r} has the name of a packed weight")
    return weights, others


def tensor_name(weight: str, plane: str) -> str:
    """The name of the tensor that holds a plane of a weight."""
    return f"{weight}.{plane}" if weight else plane


def plane_spec(name: str, plane: Array) -> TensorSpec:
    """How a plane is written: scales that are bfloat16 bits in uint16 as BF16."""
    spec = spec_of(plane)
    return spec._replace(dtype="BF16") if plane.dtype == np.uint16 else spec


def describe(weight: PackedWeight) -> dict[str, Any]:
    """The entry of a weight under "weights" of the metadata."""
    return {
        "scheme": weight.scheme,
        "shape": weight.shape,
        "group_size": weight.group_size,
        "zero": weight._zero,
        **{name: float(n).hex() for name, n in weight._tensor_numbers().items()},
        "planes": list(weight.planes),
    }


def encode_description(weights: Mapping[str, Mapping[str, Any]]) -> str:
    """The value of the metadata field."""
    return json.dumps(
        {"format_version": FORMAT_VERSION, "layout_version": LAYOUT_VERSION, "weights": weights},
        separators=(",", ":"),
    )


def read_description(file: SafetensorsFile) -> dict[str, Any]:
    """The map "weights" of the metadata, once the versions are checked."""
    text = file.metadata.get(KEY)
    if text is None:
        raise file.error(
            f"the metadata has no field {KEY!r}: nibblas has not written this file. "
            "The command `nibblas quantize` makes packed weights of a checkpoint"
        )
    try:
        description = parse_object(text)
    except ValueError as error:
        raise file.error(f"metadata {KEY!r} is not JSON as expected: {error}") from None
    known = {"format_version": FORMAT_VERSION, "layout_version": LAYOUT_VERSION}
    for field, ours in known.items():
        version = description.get(field)
        if type(version) is not int or version < 1:
            raise file.error(f"metadata {KEY!r}: {field}: expected {ours}, got {version!r:.80}")
        if version > ours:
            raise file.error(
                f"metadata {KEY!r}: {field} is {version}, this nibblas reads up to {ours}: "
                "a newer nibblas reads the file"
            )
    weights = description.get("weights")
    if not isinstance(weights, dict):
        raise file.error(f"metadata {KEY!r}: weights: expected an object")
    return weights


def _read_weight(
    file: SafetensorsFile, name: str, description: Any, claimed: set[str]
) -> PackedWeight:
    def field(key: str, expected: str, good: Any) -> Any:
        value = description.get(key)
        if not good(value):
            raise file.error(f"weight {name!r}: {key}: expected {expected}, got {value!r:.80}")
        return value

    if not isinstance(description, dict):
        raise file.error(f"weight {name!r}: expected an object in the metadata {KEY!r}")
    scheme_name = field("scheme", "a string", lambda v: isinstance(v, str))
    shape = field(
        "shape",
        "two sizes",
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_size(size) for size in v),
    )
    group_size = field("group_size", "a size or null", lambda v: v is None or _is_size(v))
    zero = field("zero", "a code", _is_size)
    tensor_numbers = {
        key: float.fromhex(field(key, "a hexadecimal float", _is_hex_float))
        for key in ("tensor_scale", "tensor_divisor")
        if key in description
    }
    names = field(
        "planes",
        "names",
        lambda v: isinstance(v, list) and all(isinstance(p, str) for p in v),
    )
    planes: dict[str, Array] = {}
    for plane in names:
        tensor = tensor_name(name, plane)
        if tensor not in file.tensors:
            raise file.error(f"weight {name!r}: its tensor {tensor!r} is missing")
        if tensor in claimed:
            raise file.error(f"weight {name!r}: the tensor {tensor!r} is used twice")
        claimed.add(tensor)
        planes[plane] = _read_plane(file, tensor)
    try:
        return make_weight(
            get_scheme(scheme_name),
            (shape[0], shape[1]),
            group_size,
            planes,
            zero,
            **tensor_numbers,
        )
    except ValueError as error:
        raise file.error(f"weight {name!r}: {error}") from None


def _read_plane(file: SafetensorsFile, name: str) -> Array:
    if file.tensors[name].dtype != "BF16":
        return file.array(name)
    bits = file.raw(name).view("<u2").reshape(file.tensors[name].shape)
    return bits if bits.flags.aligned else aligned_copy(bits)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_hex_float(value: Any) -> bool:
    # Text, because the header's numbers are sizes, and exact.
    if not isinstance(value, str) or len(value) > 32:
        return False
    try:
        return math.isfinite(float.fromhex(value))
    except (ValueError, OverflowError):
        return False
