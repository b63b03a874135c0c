# SPDX-License-Identifier: Apache-2.0
"""The command line: info, inspect, quantize, and what all commands do with errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nibblas
from nibblas.cli import _text, main
from nibblas.schemes import SCHEMES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def checkpoint(rng, tmp_path):
    tensors = {
        "layer.0.weight": rng.standard_normal((48, 96), dtype=np.float32),
        "layer.0.bias": rng.standard_normal(48, dtype=np.float32),
        "layer.1.weight": rng.standard_normal((32, 80)).astype(np.float16),
        "embed.weight": rng.standard_normal((20, 64), dtype=np.float32),
        "conv.weight": rng.standard_normal((4, 4, 4), dtype=np.float32),
        "ids": np.arange(6).reshape(2, 3),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path, tensors


# --- errors and help


def subprocess_run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nibblas", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "no-such-file"),
        ("quantize", "no-such-file", "out"),
        ("bench", "--shapes", "4x"),
        ("bench", "--schemes", "int9"),
        ("bench", "--rows", "0"),
        ("bench", "--target", "sse9", "--shapes", "16x64"),
        ("bench", "--threads", "0"),
    ],
)
def test_an_error_is_one_line(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith(f"nibblas {arguments[0]}: error: ")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_an_error_in_a_process(tmp_path):
    done = subprocess_run("inspect", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("nibblas inspect: error:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["inspect", "frobnicate", "quantize a", "info x"])
def test_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert "usage: nibblas" in capsys.readouterr().err


def test_no_command_shows_help(run):
    code, out, _ = run()
    assert code == 2
    assert all(command in out for command in ("info", "bench", "quantize", "inspect"))


@pytest.mark.parametrize("command", ["info", "bench", "quantize", "convert", "inspect"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: nibblas {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"nibblas {nibblas.__version__}\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
def test_a_reader_that_leaves():
    command = f"{sys.executable} -m nibblas info | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# --- info


def test_info(run, report):
    code, out, err = run("info")
    assert (code, err) == (0, "")
    for fact in (nibblas.__version__, nibblas.target(), np.__version__, "threads", "features"):
        assert str(fact) in out
    for target in nibblas.cpu_info()["targets"]:
        assert target["name"] in out
        assert target["reason"] in out
    facts = report("info")
    assert facts["version"] == nibblas.__version__
    assert facts["target"] == nibblas.target()
    assert facts["available_targets"] == nibblas.available_targets()
    assert facts["num_threads"] == nibblas.get_num_threads()
    assert facts["cpu"] == json.loads(json.dumps(nibblas.cpu_info()))


def test_info_says_where_choices_come_from(report):
    environment = {**os.environ, "NIBBLAS_NUM_THREADS": "2", "NIBBLAS_TARGET": "scalar"}
    done = subprocess_run("info", "--json", env=environment)
    facts = json.loads(done.stdout)
    assert facts["num_threads"] == 2
    assert facts["num_threads_from"] == "NIBBLAS_NUM_THREADS"
    assert facts["target"] == "scalar"
    assert facts["target_from"] == "NIBBLAS_TARGET"


# --- quantize


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize(scheme, checkpoint, report, tmp_path):
    path, tensors = checkpoint
    out = tmp_path / "out.safetensors"
    facts = report("quantize", path, out, "--scheme", scheme, "--exclude", "embed*")
    done = {entry["name"]: entry for entry in facts["tensors"]}
    assert done.keys() == {"layer.0.weight", "layer.1.weight"}
    assert facts["copied"] == 4
    found = nibblas.load(out)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name in done:
            expected = nibblas.quantize(tensor, scheme)
            assert found[name].scheme == scheme
            assert found[name].group_size == expected.group_size
            for plane, array in expected.planes.items():
                assert np.array_equal(found[name].planes[plane], array)
                assert found[name].planes[plane].ctypes.data % 64 == 0
            entry = done[name]
            assert entry["nbytes_before"] == tensor.nbytes
            assert entry["nbytes_after"] == expected.nbytes
            dense = tensor.astype(np.float64)
            error = np.linalg.norm(expected.dequantize() - dense) / np.linalg.norm(dense)
            assert entry["relative_error"] == pytest.approx(error, rel=1e-6)
        else:
            assert found[name].dtype == tensor.dtype
            assert np.array_equal(found[name], tensor)
    planes = (*SCHEMES[scheme].code_planes, "scales")
    assert load_file(out).keys() >= {"ids", *(f"layer.0.weight.{plane}" for plane in planes)}


def test_quantize_text(checkpoint, run, tmp_path):
    path, _ = checkpoint
    code, out, err = run("quantize", path, tmp_path / "out")
    assert (code, err) == (0, "")
    assert "3 tensors quantized to int4, 3 copied" in out
    assert "embed.weight" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"--group-size": "16"}, {"group_size": 16}),
        ({"--group-size": "none"}, {"group_size": None}),
        ({"--group-size": "auto"}, {}),
        ({"--rule": "absmax"}, {"rule": "absmax"}),
        ({"--scale-dtype": "float32"}, {"scale_dtype": "float32"}),
        ({"--scale-dtype": "bfloat16"}, {"scale_dtype": "bfloat16"}),
        ({"--scheme": "uint4", "--offset": "min"}, {"scheme": "uint4", "offset": "min"}),
        ({"--scheme": "uint8", "--offset": "zero_point"}, {"scheme": "uint8"}),
        ({"--threads": "1"}, {}),
        (
            {"--scheme": "uint4", "--offset": "min", "--scale-dtype": "bfloat16"},
            {"scheme": "uint4", "offset": "min", "scale_dtype": "bfloat16"},
        ),
    ],
)
def test_quantize_options(options, expected, checkpoint, report, tmp_path):
    path, tensors = checkpoint
    arguments = [part for option in options.items() for part in option]
    report("quantize", path, tmp_path / "out", *arguments)
    found = nibblas.load(tmp_path / "out")["layer.0.weight"]
    wanted = nibblas.quantize(tensors["layer.0.weight"], **expected)
    assert found.planes.keys() == wanted.planes.keys()
    for plane, array in wanted.planes.items():
        assert np.array_equal(found.planes[plane], array)


def test_quantize_patterns(checkpoint, report, tmp_path):
    path, _ = checkpoint
    facts = report("quantize", path, tmp_path / "out", "--include", "layer.*", "--include", "emb*")
    assert len(facts["tensors"]) == 3
    facts = report("quantize", path, tmp_path / "out", "--include", "layer.*", "--exclude", "*.1.*")
    assert [entry["name"] for entry in facts["tensors"]] == ["layer.0.weight"]


def test_quantize_in_place_and_again(checkpoint, report, tmp_path):
    path, tensors = checkpoint
    report("quantize", path, path, "--include", "layer.0.*", "--scheme", "int8")
    facts = report("quantize", path, path, "--include", "layer.1.*", "--scheme", "uint4")
    assert facts["copied"] == 5
    found = nibblas.load(path)
    assert found.keys() == tensors.keys()
    assert found["layer.0.weight"].scheme == "int8"
    assert found["layer.1.weight"].scheme == "uint4"
    assert os.listdir(tmp_path) == [path.name]


def test_quantize_bfloat16(rng, report, tmp_path):
    dense = rng.standard_normal((32, 64)).astype(BFLOAT16)
    nibblas.save(tmp_path / "in", {"w": dense})
    report("quantize", tmp_path / "in", tmp_path / "out")
    found, expected = nibblas.load(tmp_path / "out")["w"], nibblas.quantize(dense)
    for plane, array in expected.planes.items():
        assert np.array_equal(found.planes[plane], array)


def test_quantize_keeps_metadata(checkpoint, report, tmp_path):
    path, _ = checkpoint
    report("quantize", path, tmp_path / "out")
    assert report("inspect", tmp_path / "out")["metadata"] == {"format": "pt"}


def test_quantize_that_fails_leaves_nothing(checkpoint, run, tmp_path):
    path, tensors = checkpoint
    tensors["layer.1.weight"][3, 3] = np.nan
    save_file(tensors, path)
    code, _, err = run("quantize", path, tmp_path / "out")
    assert code == 1
    assert "tensor 'layer.1.weight'" in err
    assert str(path) in err
    assert os.listdir(tmp_path) == [path.name]
    code, _, err = run("quantize", path, tmp_path / "out", "--include", "nothing*")
    assert code == 1
    assert "no 2-D tensor" in err
    code, _, err = run("quantize", path, tmp_path / "out", "--group-size", "48")
    assert code == 1
    assert "power of two" in err
    assert os.listdir(tmp_path) == [path.name]


# --- inspect


def test_inspect(rng, run, report, tmp_path):
    w = nibblas.quantize(rng.standard_normal((20, 100), dtype=np.float32), "uint4")
    path = tmp_path / "model"
    nibblas.save(path, {"w": w, "b": np.zeros((), np.float16), "x": np.zeros(5, BFLOAT16)})
    facts = report("inspect", path)
    entries = {entry["name"]: entry for entry in facts["tensors"]}
    assert entries.keys() == {"w", "b", "x"}
    assert entries["w"]["scheme"] == "uint4"
    assert entries["w"]["offset"] == "zero_point"
    assert entries["w"]["bits_per_weight"] == w.bits_per_weight
    assert entries["w"]["planes"]["codes"]["shape"] == list(w.planes["codes"].shape)
    assert entries["x"]["dtype"] == "BF16"
    assert facts["nbytes"] == w.nbytes + 2 + 10
    code, out, err = run("inspect", path)
    assert (code, err) == (0, "")
    for word in ("uint4", "20x100", "zero_point", "scalar", "BF16", "1 packed weights"):
        assert word in out
    w.save(path)
    assert "(no name)" in run("inspect", path)[1]


def test_inspect_a_file_of_others(checkpoint, run):
    code, out, _ = run("inspect", checkpoint[0])
    assert code == 0
    assert "layer.0.weight" in out
    assert "0 packed weights, 6 other tensors" in out


def test_inspect_refuses_a_damaged_file(checkpoint, run):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = run("inspect", path)
    assert code == 1
    assert "truncated" in err


# --- text


def test_table():
    text = _text.table(("name", "n"), [("a", "1"), ("bcdef", "100")])
    assert text == "name     n\n-----  ---\na        1\nbcdef  100"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234e-6, "1.23 us"),
        (9.996e-6, "10.0 us"),
        (9.996e-4, "1.00 ms"),
        (0.5, "500 ms"),
        (2, "2.00 s"),
    ],
)
def test_duration(seconds, text):
    assert _text.duration(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_437_184, "9.4 MB"), (5e9, "5.00 GB")],
)
def test_size(nbytes, text):
    assert _text.size(nbytes) == text


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_is_for_terminals_only(capsys):
    with _text.Progress(2) as progress:
        progress.step("one")
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    with _text.Progress(2, terminal) as progress:
        progress.step("one")
        progress.step("two")
    assert "  0%  one" in terminal.text
    assert terminal.text.endswith("\r\x1b[K")
