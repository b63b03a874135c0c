# SPDX-License-Identifier: Apache-2.0
"""Damaged GGUF files: a ValueError that names file, tensor and field, and nothing else."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nibblas.io import gguf
from nibblas.io._gguf_file import MAX_NESTING, TYPES

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
UINT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def entry(name: str | bytes, dims: tuple[int, ...], kind: int | str, offset: int = 0) -> bytes:
    number = NUMBERS[kind] if isinstance(kind, str) else kind
    head = text(name) + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, number, offset)


METADATA = (
    pair("general.architecture", STRING, text("test")),
    pair("tokens", ARRAY, array(STRING, 2, text("a") + text("bc"))),
    pair("numbers", ARRAY, array(UINT32, 3, struct.pack("<3I", 1, 2, 3))),
    pair("flag", BOOL, b"\1"),
)
ENTRIES = (
    entry("w", (64, 3), "Q4_0", 0),  # 108 bytes
    entry("norm", (5,), "F32", 128),  # 20 bytes
    entry("experts", (256, 2, 2), "Q6_K", 160),  # 840 bytes
)
DATA = bytes(1000)


def file_bytes(
    metadata: tuple[bytes, ...] = METADATA,
    entries: tuple[bytes, ...] = ENTRIES,
    data: bytes = DATA,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    kv_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (
        len(entries) if tensor_count is None else tensor_count,
        len(metadata) if kv_count is None else kv_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(metadata) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def read_everything(path: Path) -> None:
    model = gguf.load(path)
    for name in model:
        _ = model[name]


def expect_error(path: Path, content: bytes, *fields: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the fields are looked at here)
        read_everything(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    for field in fields:
        assert field in message, message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_the_file_that_the_others_are_made_from_is_good(path):
    path.write_bytes(file_bytes())
    model = gguf.load(path)
    assert [w.shape for w in model["experts"]] == [(2, 256)] * 2
    assert model["w"].shape == (3, 64)
    assert model["norm"].shape == (5,)
    assert model.metadata["tokens"] == ["a", "bc"]
    assert model.metadata["numbers"].tolist() == [1, 2, 3]
    for good in (file_bytes(version=2), file_bytes((), ()), file_bytes((), (), b"")):
        path.write_bytes(good)
        read_everything(path)


def test_every_truncation_is_found(path):
    content = file_bytes()
    for size in range(len(content)):
        expect_error(path, content[:size])
    expect_error(path, content[:-1], "tensor 'experts': offset", "truncated")
    expect_error(path, content[:10], "24 bytes")


def test_head(path):
    expect_error(path, file_bytes(magic=b"GGML"), "magic", "b'GGML'")
    expect_error(path, file_bytes(version=1), "version: expected 2 or 3, got 1")
    expect_error(path, file_bytes(version=4), "version", "got 4")
    big = b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64)
    expect_error(path, big, "big-endian")
    for count in (2**64 - 1, 2**40, 10**6):
        expect_error(path, file_bytes(tensor_count=count), "tensor_count", str(count))
        expect_error(path, file_bytes(kv_count=count), "metadata_kv_count", str(count))
    expect_error(path, file_bytes(tensor_count=4), "tensor")
    expect_error(path, file_bytes(kv_count=5))


BAD_METADATA = {
    "twice": ((pair("a", BOOL, b"\1"), pair("a", BOOL, b"\0")), ("metadata 'a'", "twice")),
    "no UTF-8": ((pair(b"\xff\xfe", BOOL, b"\1"),), ("metadata 0: key", "UTF-8")),
    "long key": ((struct.pack("<Q", 2**63) + b"abc",), ("metadata 0: key: length", str(2**63))),
    "type": ((pair("a", 13, b"\1"),), ("metadata 'a': type", "13")),
    "bool": ((pair("a", BOOL, b"\2"),), ("metadata 'a'", "bool", "2")),
    "string": ((pair("a", STRING, struct.pack("<Q", 2**62)),), ("metadata 'a'", str(2**62))),
    "elements": ((pair("a", ARRAY, array(99, 1, b"")),), ("metadata 'a'", "99")),
    "array": ((pair("a", ARRAY, array(UINT64, 2**61, b"")),), ("metadata 'a'", str(2**61))),
    "strings": ((pair("a", ARRAY, array(STRING, 2**60, b"")),), ("metadata 'a'", str(2**60))),
    "nested": (
        (pair("a", ARRAY, array(ARRAY, 1, b"") * (MAX_NESTING + 2)),),
        ("metadata 'a'", "nested"),
    ),
    "split": ((pair("split.count", UINT32, struct.pack("<I", 3)),), ("split.count", "3 parts")),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata(path, case):
    metadata, fields = BAD_METADATA[case]
    expect_error(path, file_bytes(metadata), *fields)


def test_alignment(path):
    for value in (0, 3, 4, 48, 2**31):
        metadata = (pair("general.alignment", UINT32, struct.pack("<I", value)),)
        expect_error(path, file_bytes(metadata), "'general.alignment'", f"got {value}")
    for kind, value in ((FLOAT32, struct.pack("<f", 32)), (STRING, text("32")), (BOOL, b"\1")):
        metadata = (pair("general.alignment", kind, value),)
        expect_error(path, file_bytes(metadata), "'general.alignment'")
    metadata = (pair("general.alignment", UINT32, struct.pack("<I", 64)),)
    expect_error(path, file_bytes(metadata, alignment=64), "tensor 'experts': offset", "of 64")
    entries = (entry("w", (64, 3), "Q4_0", 64),)
    path.write_bytes(file_bytes(metadata, entries, alignment=64))
    assert gguf.load(path)["w"].shape == (3, 64)


BAD_ENTRIES = {
    "twice": ((entry("w", (4,), "F32"), entry("w", (4,), "F32", 32)), ("'w': name", "twice")),
    "no UTF-8": ((entry(b"\xc3", (4,), "F32"),), ("tensor 0: name", "UTF-8")),
    "dimensions": ((entry("w", (2,) * 5, "F32"),), ("tensor 'w': n_dims", "5")),
    "type": ((entry("w", (4,), 99),), ("tensor 'w': type", "99")),
    "old type": ((entry("w", (32,), 4),), ("tensor 'w': type", "4")),
    "partial block": ((entry("w", (48, 2), "Q4_0"),), ("tensor 'w': dims", "32", "48")),
    "no block": ((entry("w", (), "Q4_0"),), ("tensor 'w': dims", "32")),
    "product": ((entry("w", (2**32, 2**32), "F32"),), ("tensor 'w': dims", str(2**32))),
    "product 0": ((entry("w", (2**63, 0), "F32"),), ("tensor 'w': dims", str(2**63))),
    "large": ((entry("w", (2**40, 32), "Q8_0"),), ("tensor 'w': offset", "truncated")),
    "outside": ((entry("w", (4,), "F32", 1024),), ("tensor 'w': offset", "truncated")),
    "far outside": ((entry("w", (4,), "F32", 2**64 - 32),), ("tensor 'w': offset", "truncated")),
    "odd": ((entry("w", (4,), "F32", 8),), ("tensor 'w': offset", "multiple of 32", "8")),
    "overlap": (
        (entry("a", (64,), "F32", 0), entry("b", (64,), "F32", 224)),
        ("tensor 'b': offset", "256", "224"),
    ),
    "no such type here": ((entry("w", (256, 2), "IQ2_XXS"),), ("tensor 'w': type", "IQ2_XXS")),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_tensors(path, case):
    entries, fields = BAD_ENTRIES[case]
    expect_error(path, file_bytes(entries=entries), *fields)


def test_a_block_that_cannot_be_packed_names_its_tensor(path):
    content = file_bytes(entries=(entry("t", (256, 2), "TQ2_0"),), data=b"\xff" * 132)
    expect_error(path, content, "tensor 't'", "got 3")


def test_empty_tensors_and_scalars_are_tensors(path):
    entries = (
        entry("scalar", (), "F32", 0),
        entry("no rows", (64, 0), "Q4_0", 32),
        entry("no experts", (64, 4, 0), "Q4_0", 32),
        entry("no columns", (0, 3), "Q4_K", 32),
        entry("nothing", (0,), "F16", 32),
    )
    path.write_bytes(file_bytes(entries=entries))
    model = gguf.load(path)
    shapes = [getattr(model[name], "shape", model[name]) for name in model]
    assert shapes == [(), (0, 64), [], (3, 0), (0,)]


def test_tokens_may_be_any_bytes(path):
    tokens = array(STRING, 1, text(b"\xff\xfe"))
    path.write_bytes(file_bytes((pair("tokens", ARRAY, tokens),)))
    (token,) = gguf.load(path).metadata["tokens"]
    assert token.encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        gguf.load(tmp_path / "none.gguf")
    with pytest.raises(OSError, match="directory"):
        gguf.load(tmp_path)


CONTENT = file_bytes(data=np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes())
EDITS = st.lists(
    st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=0, max_size=6
)
HEADER_EDITS = st.lists(
    st.tuples(st.integers(0, len(file_bytes(data=b"")) - 1), st.integers(0, 255)), max_size=4
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(edits=EDITS, header=HEADER_EDITS, size=st.integers(0, 2 * len(CONTENT)))
def test_damage_is_a_value_error_and_costs_no_memory(tmp_path_factory, edits, header, size):
    content = bytearray(CONTENT)
    for position, value in [*edits, *header]:
        content[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.unlink(missing_ok=True)  # the last one may still be mapped
    path.write_bytes(content[:size])
    tracemalloc.start()
    try:
        read_everything(path)
    except ValueError as error:
        message = str(error)
    else:
        message = f"{path}: no error"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert message.startswith(f"{path}: ")
    assert peak < 10 * len(CONTENT) + 2**20


def test_many_small_things_take_memory_in_proportion(path):
    count = 20000
    arrays = {
        "bytes": array(UINT8, 8 * count, bytes(8 * count)),
        "strings": array(STRING, count, text("") * count),
        "tokens": array(STRING, count, text("ab") * count),
    }
    for name, value in arrays.items():
        content = file_bytes((pair(name, ARRAY, value),), ())
        path.write_bytes(content)
        tracemalloc.start()
        gguf.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * len(content) + 2**20, name
