# SPDX-License-Identifier: Apache-2.0
"""Damaged and foreign files: always a ValueError that names the file, never much memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import nibblas
from nibblas.io.packed import KEY
from nibblas.io.safetensors import PADDING


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with one packed weight of every plane, an array, and padding."""
    rng = np.random.default_rng(0)
    w = nibblas.pack(
        rng.integers(0, 16, (20, 100), np.uint8),
        rng.standard_normal((20, 7), dtype=np.float32),
        rng.integers(0, 16, (20, 7), np.uint8),
        scheme="uint4",
        group_size=16,
        input_order=rng.permutation(100),
    )
    path = tmp_path_factory.mktemp("good") / "good"
    nibblas.save(path, {"w": w, "bias": np.ones(3, np.float32)})
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bad.safetensors"


def split(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def refuses(path: Path, data: bytes, *words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match="bad") as caught:
        nibblas.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_good_file_is_good(good, path):
    header, body = split(good)
    assert {"w.codes", "w.scales", "w.zero_points", "w.input_order", "bias"} <= header.keys()
    assert any(name.startswith(PADDING) for name in header)
    for data in (good, join(header, body)):  # the second with planes at odd addresses
        path.write_bytes(data)
        found = nibblas.load(path)
        assert found.keys() == {"w", "bias"}
        assert found["w"].dequantize().shape == (20, 100)
        assert (found["bias"] == 1).all()


def test_planes_at_any_address(good, path, rng):
    header, body = split(good)
    x = rng.standard_normal((3, 100), dtype=np.float32)
    path.write_bytes(good)
    expected = x @ nibblas.load(path)["w"].T
    text = json.dumps(header).encode()
    for shift in range(16):
        path.write_bytes(join(text + b" " * shift, body))
        assert np.array_equal(x @ nibblas.load(path)["w"].T, expected)


def test_truncated_at_every_byte(good, path):
    start = len(good) - len(split(good)[1])
    for size in (*range(start + 2), *range(start + 2, len(good), 97), len(good) - 1):
        refuses(path, good[:size])


def test_extended(good, path):
    refuses(path, good + b"\0", "1 bytes of data belong to no tensor")


@pytest.mark.parametrize(
    "length", [0, 1, 7, 2**10, 2**27, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1]
)
def test_header_length(length, good, path):
    tracemalloc.start()
    refuses(path, length.to_bytes(8, "little") + good[8:], "header")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"", "JSON"),
        (b" []", "object"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"x"', "object"),
        (b"{", "JSON"),
        (b"{}}", "JSON"),
        (b"{'a': 1}", "JSON"),
        (b'{"a": }', "JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1.5}', "1.5"),
        (b'{"a": 1e400}', "1e400"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"\xff": 1}', "utf-8"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b"\xef\xbb\xbf{}", "JSON"),
        ("{}".encode("utf-16"), "JSON"),
        (b"{" + b'"a":{' * 100_000, "JSON"),
        (b'{"a":' + b"[" * 100_000, "JSON"),
        (b'{"a": {}, "a": {}}', "'a' stands in it twice"),
        (b'{"__metadata__": {"x": "1", "x": "1"}}', "'x' stands in it twice"),
        (b'{"a": {"dtype": "U8", "dtype": "U8"}}', "'dtype' stands in it twice"),
        (b'{"__metadata__": []}', "__metadata__"),
        (b'{"__metadata__": {"nibblas": 1}}', "__metadata__"),
        (b'{"__metadata__": null}', "__metadata__"),
        (b"{}", "nibblas has not written this file"),
    ],
)
def test_header_text(text, word, path):
    refuses(path, join(text, b""), word)


Change = Callable[[dict], object]
ENTRIES: list[tuple[str, Change, tuple[str, ...]]] = [
    ("entry is a list", lambda h: h.update(bias=[]), ("'bias'", "entry")),
    ("entry is empty", lambda h: h.update(bias={}), ("'bias'", "dtype")),
    ("no shape", lambda h: h["bias"].pop("shape"), ("'bias'", "shape")),
    ("no offsets", lambda h: h["bias"].pop("data_offsets"), ("'bias'", "data_offsets")),
    ("dtype unknown", lambda h: h["bias"].update(dtype="F31"), ("'bias'", "dtype", "F31")),
    ("dtype a number", lambda h: h["bias"].update(dtype=32), ("'bias'", "dtype")),
    ("dtype wider", lambda h: h["bias"].update(dtype="F64"), ("'bias'", "data_offsets", "24")),
    ("shape a number", lambda h: h["bias"].update(shape=3), ("'bias'", "shape")),
    ("shape negative", lambda h: h["bias"].update(shape=[-3]), ("'bias'", "shape")),
    ("shape a bool", lambda h: h["bias"].update(shape=[True]), ("'bias'", "shape")),
    ("shape text", lambda h: h["bias"].update(shape=["3"]), ("'bias'", "shape")),
    ("shape huge", lambda h: h["bias"].update(shape=[2**70]), ("'bias'", "shape")),
    ("shape wraps", lambda h: h["bias"].update(shape=[2**61, 8, 3]), ("'bias'", "data_offsets")),
    ("too many sizes", lambda h: h["bias"].update(shape=[1] * 65), ("'bias'", "shape")),
    ("offsets negative", lambda h: h["bias"].update(data_offsets=[-12, 0]), ("'bias'", "offsets")),
    ("offsets reversed", lambda h: h["bias"].update(data_offsets=[12, 0]), ("'bias'", "offsets")),
    ("offsets of one", lambda h: h["bias"].update(data_offsets=[12]), ("'bias'", "offsets")),
    ("offsets null", lambda h: h["bias"].update(data_offsets=None), ("'bias'", "data_offsets")),
    ("overlap", lambda h: h["bias"].update(data_offsets=[0, 12]), ("data_offsets", "overlap")),
    (
        "outside",
        lambda h: h["bias"].update(data_offsets=[2**60, 2**60 + 12]),
        ("'bias'", "data_offsets"),
    ),
    ("hole", lambda h: h.pop("w.scales"), ("data_offsets", "hole")),
    ("unclaimed end", lambda h: h.pop("bias"), ("12 bytes of data belong to no tensor",)),
    ("codes missing", lambda h: h.update(z=h.pop("w.codes")), ("'w'", "'w.codes' is missing")),
    (
        "codes of another type",
        lambda h: h["w.codes"].update(dtype="I8"),
        ("'w'", "'codes'", "expected uint8", "int8"),
    ),
    (
        "codes of another shape",
        lambda h: h["w.codes"].update(shape=[2, 16, 32, 2]),
        ("'w'", "'codes'", "(2, 16, 16, 4)", "(2, 16, 32, 2)"),
    ),
    (
        "scales of another type",
        lambda h: h["w.scales"].update(dtype="I32"),
        ("'w'", "'scales'", "int32"),
    ),
    (
        "scales of half the size",
        lambda h: h["w.scales"].update(dtype="F16", shape=[2, 16, 16]),
        ("'w'", "'scales'", "(2, 8, 16)"),
    ),
    (
        "zero points of another type",
        lambda h: h["w.zero_points"].update(dtype="I8"),
        ("'w'", "'zero_points'"),
    ),
    (
        "input order of another type",
        lambda h: h["w.input_order"].update(dtype="U32"),
        ("'w'", "'input_order'", "uint32"),
    ),
    ("an array named like a weight", lambda h: h.update(w=h.pop("bias")), ("'w'",)),
]


@pytest.mark.parametrize(("change", "words"), [e[1:] for e in ENTRIES], ids=[e[0] for e in ENTRIES])
def test_tensor_entries(change, words, good, path):
    header, body = split(good)
    change(header)
    refuses(path, join(header, body), *words)


DESCRIPTIONS: list[tuple[str, Change, tuple[str, ...]]] = [
    ("version newer", lambda d: d.update(format_version=2), ("format_version is 2", "newer")),
    ("layout newer", lambda d: d.update(layout_version=2), ("layout_version is 2", "newer")),
    ("version text", lambda d: d.update(format_version="1"), ("format_version",)),
    ("version zero", lambda d: d.update(layout_version=0), ("layout_version",)),
    ("version true", lambda d: d.update(format_version=True), ("format_version",)),
    ("no version", lambda d: d.pop("format_version"), ("format_version",)),
    ("no weights", lambda d: d.pop("weights"), ("weights",)),
    ("weights a list", lambda d: d.update(weights=[]), ("weights",)),
    ("weight null", lambda d: d["weights"].update(w=None), ("'w'",)),
    ("weight unknown", lambda d: d["weights"].update(v=d["weights"]["w"]), ("'v'", "v.codes")),
]
FIELDS = {
    "scheme": (None, 4, "int3", "int4", "int8", "uint8"),
    "shape": (None, 20, [20], [20, 100, 1], [20, -1], ["20", 100], [2**62, 2**62], [20, 164]),
    "group_size": (None, 0, 8, 24, 32, 128, 8192, "16", True, 2**40),
    "zero": (None, -1, 3, 16, 255, 256, "0"),
    "planes": (None, "codes", [], [1], ["codes"], ["codes", "codes", "scales"], ["codes", "mins"]),
}
DESCRIPTIONS += [
    (f"{field} {value}", lambda d, f=field, v=value: d["weights"]["w"].update({f: v}), ("'w'",))
    for field, values in FIELDS.items()
    for value in values
]
DESCRIPTIONS += [
    (f"no {field}", lambda d, f=field: d["weights"]["w"].pop(f), ("'w'",))
    for field in FIELDS
    if field != "group_size"  # is null then, which the planes contradict all the same
]


@pytest.mark.parametrize(
    ("change", "words"), [e[1:] for e in DESCRIPTIONS], ids=[e[0] for e in DESCRIPTIONS]
)
def test_descriptions(change, words, good, path):
    header, body = split(good)
    description = json.loads(header["__metadata__"][KEY])
    change(description)
    header["__metadata__"][KEY] = json.dumps(description)
    refuses(path, join(header, body), *words)


@pytest.mark.parametrize(
    "text",
    ["", "1", "[]", "null", "{", '{"format_version": 1, "format_version": 1}', "[" * 100_000],
)
def test_description_text(text, good, path):
    header, body = split(good)
    header["__metadata__"][KEY] = text
    refuses(path, join(header, body), KEY)


@pytest.mark.parametrize(
    ("tensor", "dtype", "index", "value", "words"),
    [
        ("w.input_order", np.int32, 5, -1, ("'input_order'",)),
        ("w.input_order", np.int32, 5, 100, ("'input_order'",)),
        ("w.input_order", np.int32, 5, 2**31 - 1, ("'input_order'",)),
        ("w.scales", np.float32, 7 * 16, 1, ("'scales'", "padding")),
        ("w.scales", np.float32, 7 * 16, np.nan, ("'scales'", "padding")),
        ("w.scales", np.float32, 8 * 16 + 4, np.inf, ("'scales'", "padding")),
    ],
)
def test_values(tensor, dtype, index, value, words, good, path):
    header, body = split(good)
    data = bytearray(body)
    begin, end = header[tensor]["data_offsets"]
    np.frombuffer(data, dtype, (end - begin) // np.dtype(dtype).itemsize, begin)[index] = value
    refuses(path, join(header, bytes(data)), "'w'", *words)


def test_input_order_twice_the_same(good, path):
    header, body = split(good)
    data = bytearray(body)
    begin = header["w.input_order"]["data_offsets"][0]
    data[begin : begin + 4] = data[begin + 4 : begin + 8]
    refuses(path, join(header, bytes(data)), "'input_order'", "once")


def test_a_file_of_others(path):
    save_file({"x": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"nibblas has not written this file.*nibblas quantize"):
        nibblas.load(path)


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.booleans(),
)
def test_flipped_bytes(good, tmp_path_factory, flips, anywhere):
    """Whatever is flipped, a file is refused, or it is a whole weight that can be used."""
    path = tmp_path_factory.getbasetemp() / "flipped"
    data = bytearray(good)
    limit = len(good) if anywhere else len(good) - len(split(good)[1])
    for place, mask in flips:
        data[int(place * limit)] ^= mask
    path.write_bytes(data)
    try:
        found = nibblas.load(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return
    weights = found.values() if isinstance(found, dict) else [found]
    for w in weights:
        if isinstance(w, nibblas.PackedWeight):
            assert nibblas.linear(np.ones((2, w.shape[1]), np.float32), w).shape == (2, w.shape[0])
            assert w.dequantize().shape == w.shape
