# SPDX-License-Identifier: Apache-2.0
"""Files: what is written is read back, by us and by others, mapped and shared; bad ones refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import nibblas
from nibblas.io.packed import KEY
from nibblas.io.safetensors import PADDING, SafetensorsFile, Writer, spec_of

from .cases import all_variants, random_weight

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make_weight(rng, scheme="uint4", group=32, offset=None, **options) -> nibblas.PackedWeight:
    dense = rng.standard_normal((20, 100), dtype=np.float32)
    return nibblas.quantize(dense, scheme, group, offset=offset, **options)


def same(one: nibblas.PackedWeight, other: nibblas.PackedWeight) -> bool:
    facts = [(repr(w), w._zero, w._tensor_numbers(), list(w.planes)) for w in (one, other)]
    assert facts[0] == facts[1]
    return all(
        plane.dtype == other.planes[name].dtype and np.array_equal(plane, other.planes[name])
        for name, plane in one.planes.items()
    )


def header(path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def is_mapped(array: np.ndarray) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, memoryview) or type(array).__name__ == "mmap"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("group", [None, 16, 32])
@all_variants
def test_one_weight(variant, group, mmap, rng, tmp_path):
    w = random_weight(rng, variant, (20, 100), group)
    path = tmp_path / "w.safetensors"
    w.save(path)
    found = nibblas.load(path, mmap=mmap)
    assert isinstance(found, nibblas.PackedWeight)
    assert same(found, w)
    for plane in found.planes.values():
        assert plane.ctypes.data % 64 == 0
        assert not plane.flags.writeable
        assert is_mapped(plane) == mmap
    x = rng.standard_normal((3, 100), dtype=np.float32)
    assert np.array_equal(x @ found.T, x @ w.T)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_pack_with_order_zero_and_bfloat16(rng, tmp_path):
    codes = rng.integers(0, 16, (20, 100), np.uint8)
    scales = rng.standard_normal((20, 4), dtype=np.float32).astype(BFLOAT16)
    w = nibblas.pack(
        codes, scales, 5, scheme="uint4", group_size=32, input_order=rng.permutation(100)
    )
    w.save(tmp_path / "w")
    assert header(tmp_path / "w")["scales"]["dtype"] == "BF16"
    found = nibblas.load(tmp_path / "w")
    assert same(found, w)
    assert np.array_equal(found.dequantize(), w.dequantize())
    assert found.scale_dtype == "bfloat16"


@pytest.mark.parametrize("shape", [(0, 64), (5, 0), (0, 0), (1, 1)])
def test_tiny_weights(shape, tmp_path):
    w = nibblas.quantize(np.ones(shape, np.float32), "uint8")
    w.save(tmp_path / "w")
    assert same(nibblas.load(tmp_path / "w"), w)
    assert safetensors.numpy.load_file(tmp_path / "w").keys() >= w.planes.keys()


def arrays(rng) -> dict[str, np.ndarray]:
    return {
        "bias": rng.standard_normal(20, dtype=np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "bytes": rng.integers(0, 256, 7, np.uint8),
        "flags": np.array([True, False]),
        "scalar": np.array(2.5),
        "nothing": np.zeros((0, 3), np.int64),
        "transposed": np.arange(12, dtype=np.int32).reshape(3, 4).T,
        "complex": np.array([1 + 2j], np.complex64),
    }


@pytest.mark.parametrize("mmap", [True, False])
def test_many(mmap, rng, tmp_path):
    tensors = {
        "a.weight": make_weight(rng, "int4"),
        "b.weight": make_weight(rng, "uint8", None),
        "bf16": rng.standard_normal(9).astype(BFLOAT16),
        "über/grün": np.zeros(3, np.float32),
        **arrays(rng),
    }
    path = tmp_path / "model.safetensors"
    nibblas.save(path, tensors, metadata={"format": "np", "origin": "test"})
    found = nibblas.load(path, mmap=mmap)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if isinstance(tensor, nibblas.PackedWeight):
            assert same(found[name], tensor)
        else:
            assert found[name].dtype == tensor.dtype
            assert np.array_equal(found[name], tensor)
            assert found[name].shape == tensor.shape
            assert not found[name].flags.writeable
            assert not tensor.size or is_mapped(found[name]) == mmap
    assert SafetensorsFile(path).metadata["origin"] == "test"


def test_only_arrays(tmp_path):
    nibblas.save(tmp_path / "x", {"x": np.arange(3)})
    assert np.array_equal(nibblas.load(tmp_path / "x")["x"], np.arange(3))
    nibblas.save(tmp_path / "none", {})
    assert nibblas.load(tmp_path / "none") == {}


def test_the_format_s_own_library_reads_it(rng, tmp_path):
    tensors = {"w": make_weight(rng, "uint4", 16), "v": make_weight(rng), **arrays(rng)}
    path = tmp_path / "model.safetensors"
    nibblas.save(path, tensors)
    found = safetensors.numpy.load_file(path)
    for name in ("w", "v"):
        for plane, array in tensors[name].planes.items():
            assert np.array_equal(found.pop(f"{name}.{plane}"), array)
    for name, array in arrays(rng).items():
        if name != "complex":  # its NumPy side lacks it in older versions
            assert found[name].shape == array.shape
    padding = [name for name in found if name.startswith(PADDING)]
    assert all(found[name].size < 64 and not found[name].any() for name in padding)
    with safetensors.safe_open(path, framework="numpy") as file:
        description = json.loads(file.metadata()[KEY])
    assert description["format_version"] == 1
    assert description["layout_version"] == 1
    assert description["weights"]["w"]["scheme"] == "uint4"


def test_every_tensor_starts_at_64_bytes(rng, tmp_path):
    path = tmp_path / "model.safetensors"
    for count in range(1, 8):
        some = dict(list(arrays(rng).items())[:count])
        nibblas.save(path, {"w": make_weight(rng, "uint4", 16), **some, "x" * count: np.zeros(3)})
        entries = header(path)
        start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert start % 64 == 0
        assert all(
            entry["data_offsets"][0] % 64 == 0
            for name, entry in entries.items()
            if name != "__metadata__" and not name.startswith(PADDING)
        )
        assert path.stat().st_size == start + max(
            entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"
        )


def test_overwriting_the_mapped_file_is_safe(rng, tmp_path):
    path = tmp_path / "w"
    first, second = make_weight(rng, "int4"), make_weight(rng, "int8")
    first.save(path)
    mapped = nibblas.load(path)
    second.save(path)
    assert same(mapped, first)
    mapped.save(path)  # from the mapping of a file that is no longer there
    assert same(nibblas.load(path), first)


def test_a_failed_write_leaves_the_old_file_and_no_other(rng, tmp_path):
    path = tmp_path / "w"
    w = make_weight(rng)
    w.save(path)
    before = path.read_bytes()
    specs = {"x": spec_of(np.zeros(3)), "y": spec_of(np.zeros(4))}

    def interrupted():
        with Writer(path, specs, {}) as writer:
            writer.write("x", np.zeros(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="'y' was not written"), Writer(path, specs, {}) as writer:
        writer.write("x", np.zeros(3))
    with pytest.raises(ValueError, match="expected 24 bytes"), Writer(path, specs, {}) as writer:
        writer.write("x", np.zeros(4))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes and links")
def test_mode_and_links(rng, tmp_path):
    w = make_weight(rng)
    w.save(tmp_path / "new")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "new").chmod(0o640)
    (tmp_path / "link").symlink_to("new")
    w.copy().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "new"]


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
def test_kinds_of_path(kind, rng, tmp_path):
    w = make_weight(rng)
    w.save(kind(tmp_path / "ä"))
    assert same(nibblas.load(kind(tmp_path / "ä")), w)


def test_paths_that_cannot_be(rng, tmp_path):
    w = make_weight(rng)
    with pytest.raises(FileNotFoundError):
        w.save(tmp_path / "no" / "folder")
    with pytest.raises(FileNotFoundError):
        nibblas.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not a regular file"):
        w.save(tmp_path)
    with pytest.raises(OSError, match=r"[Dd]irectory|[Pp]ermission"):
        nibblas.load(tmp_path)
    with pytest.raises(TypeError):
        w.save(3.5)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ([("x", np.zeros(1))], TypeError, "mapping from names, got list"),
        ({1: np.zeros(1)}, TypeError, "name must be a string, got 1"),
        ({"": np.zeros(1)}, ValueError, "cannot be empty"),
        ({"x": [1.0]}, TypeError, "tensor 'x' must be a NumPy array"),
        ({"x": np.zeros(1, object)}, TypeError, "tensor 'x': safetensors has no type for"),
        ({"x": np.zeros(1, ">f4")}, TypeError, "tensor 'x': safetensors has no type for"),
        ({"x": np.zeros(1, np.complex128)}, TypeError, "tensor 'x': safetensors has no type for"),
        ({"__metadata__": np.zeros(1)}, ValueError, "reserved name"),
        ({f"{PADDING}0": np.zeros(1)}, ValueError, "reserved name"),
    ],
)
def test_save_refuses(tensors, error, message, tmp_path):
    with pytest.raises(error, match=message):
        nibblas.save(tmp_path / "x", tensors)
    assert os.listdir(tmp_path) == []


def test_bfloat16_without_ml_dtypes(rng, tmp_path, monkeypatch):
    w = make_weight(rng, scale_dtype="bfloat16")
    nibblas.save(tmp_path / "x", {"w": w, "b": np.zeros(3, BFLOAT16)})
    nibblas.save(tmp_path / "w", {"w": w})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert same(nibblas.load(tmp_path / "w")["w"], w)
    with pytest.raises(ImportError, match=r"tensor 'b' is BF16.*nibblas\[ml_dtypes\]"):
        nibblas.load(tmp_path / "x")


def test_save_refuses_one_name_twice(rng, tmp_path):
    with pytest.raises(ValueError, match=r"two tensors would have the name 'w\.codes'"):
        nibblas.save(tmp_path / "x", {"w": make_weight(rng), "w.codes": np.zeros(1)})
    with pytest.raises(ValueError, match="written by nibblas itself"):
        nibblas.save(tmp_path / "x", {}, metadata={KEY: "mine"})


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_shared_between_processes(method, rng, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    w = make_weight(rng)
    w.save(tmp_path / "w")
    expected = (np.ones((2, 100), np.float32) @ w.T).tobytes()
    # A process of its own: pytest's has threads of others, which fork warns about.
    code = (
        "import multiprocessing, sys\n"
        "import numpy as np, nibblas\n"
        "def use(path):\n"
        "    w = nibblas.load(path)\n"
        "    return (np.ones((2, w.shape[1]), np.float32) @ w.T).tobytes()\n"
        "if __name__ == '__main__':\n"
        "    use(sys.argv[1])\n"
        "    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:\n"
        "        results = set(pool.map(use, [sys.argv[1]] * 4))\n"
        "    print(*(result.hex() for result in results))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path / "w", method],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [expected.hex()]


def test_a_tensor_in_pieces(tmp_path):
    array = np.arange(100, dtype=np.float32)
    path = tmp_path / "out"
    with Writer(path, {"a": spec_of(array), "b": spec_of(array[:0])}, {}) as writer:
        writer.write_piece("a", 160, array[40:])
        writer.write_piece("b", 0, array[:0])
        for start, size in ((-4, 1), (400, 1), (4, 100)):
            with pytest.raises(ValueError, match=rf"{4 * size} bytes from {start} on, of 400"):
                writer.write_piece("a", start, array[:size])
        writer.write_piece("a", 0, array[:40])
    assert np.array_equal(SafetensorsFile(path).array("a"), array)
    path.unlink()
    with (
        pytest.raises(ValueError, match="'a' was not written"),
        Writer(path, {"a": spec_of(array)}, {}) as writer,
    ):
        writer.write_piece("a", 0, array[1:])
    assert os.listdir(tmp_path) == []
