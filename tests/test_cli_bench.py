# SPDX-License-Identifier: Apache-2.0
"""nibblas bench: its engine's choices, and that its figures hang together."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nibblas
from nibblas.cli import _bench, main

QUICK = ("--shapes", "48x96,32x64", "--rows", "1,5", "--seconds", "0.001")


@pytest.fixture(scope="module")
def report() -> dict:
    """One small run, as a program reads it."""
    patch = pytest.MonkeyPatch()
    printed: list[str] = []
    patch.setattr("builtins.print", lambda *parts, **options: printed.append(" ".join(parts)))
    try:
        schemes = "int8,int4-g32,uint4-g16-min,uint8-channel-zp"
        assert main(["bench", *QUICK, "--schemes", schemes, "--threads", "1", "--json"]) == 0
    finally:
        patch.undo()
    return json.loads("\n".join(printed))


def test_every_case_is_there(report):
    cases = [(tuple(case["shape"]), case["rows"], case["contender"]) for case in report["cases"]]
    labels = ("NumPy float32", "int8", "int4-g32", "uint4-g16-min", "uint8-channel-zp")
    expected = [
        (shape, rows, label)
        for shape in ((48, 96), (32, 64))
        for rows in (1, 5)
        for label in labels
    ]
    assert cases == expected
    assert report["target"] == nibblas.target()
    assert report["threads"] == 1
    assert report["compute"] == "int8"
    assert not report["cold"]


def test_figures_follow_from_each_other(report):
    for case in report["cases"]:
        cols, depth = case["shape"]
        low, high = case["seconds_quartiles"]
        assert 0 < low <= case["seconds"] <= high
        assert case["samples"] >= 5
        operations = 2 * case["rows"] * cols * depth
        assert case["gops"] == pytest.approx(operations / case["seconds"] / 1e9)
        assert case["gbps"] == pytest.approx(case["nbytes"] / case["seconds"] / 1e9)
        assert case["peak_share"] == pytest.approx(case["gops"] / case["peak_gops"])
        assert case["read_share"] == pytest.approx(case["gbps"] / case["read_gbps"])
        if case["contender"] == "NumPy float32":
            base = case["seconds"]
            assert case["error_dequantized"] is None
            assert case["error_exact"] < 1e-5
        assert case["speedup"] == pytest.approx(base / case["seconds"])


def test_errors_are_those_of_the_schemes(report):
    by_label = {entry["contender"]: entry for entry in report["accuracy"]}
    assert list(by_label) == ["int8", "int4-g32", "uint4-g16-min", "uint8-channel-zp"]
    # Steps of an 8-bit code: 1/255 of a range of some 5 sigma; of a 4-bit one 16 times that.
    for label, low, high in (("int8", 1e-3, 2e-2), ("int4-g32", 3e-2, 0.2)):
        assert low < by_label[label]["error_weights"] < high
        assert low < by_label[label]["error_exact"] < high
        # Activations have 8 bits in any case.
        assert 1e-3 < by_label[label]["error_dequantized"] < 2e-2
    # 96 inputs are stored as 128, 64 as they are: 6 and 4.5 bits.
    assert by_label["int4-g32"]["bits_per_weight"] == pytest.approx((6 + 4.5) / 2)


def test_float32_compute_errs_less(capsys):
    command = ["bench", *QUICK, "--schemes", "int8", "--compute", "float32", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"][0]["error_dequantized"] < 1e-6


def test_text_ends_with_the_accuracy(capsys):
    assert main(["bench", *QUICK, "--schemes", "int8", "--target", "scalar", "--threads", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "target scalar" in printed.out
    assert "2 threads" in printed.out
    for word in ("48x96", "32x64", "NumPy float32", "GOP/s", "of peak", "err exact"):
        assert word in printed.out
    head, _, tail = printed.out.partition("Accuracy")
    assert "speed-up" in head
    assert "bits/weight" in tail


def test_cold_rotates_over_many_copies(monkeypatch, rng):
    monkeypatch.setattr(_bench, "COLD_BYTES", 100_000)
    settings = _bench.Settings(shapes=(), schemes=_bench.parse_schemes("int8"), cold=True)
    dense = rng.standard_normal((48, 96), dtype=np.float32)
    weight = nibblas.quantize(dense, "int8")
    copies = _bench._copies(weight, settings)
    assert sum(copy.nbytes for copy in copies) >= 100_000
    assert len({copy.planes["codes"].ctypes.data for copy in copies}) == len(copies)
    contender = _bench._packed_contender(dense[:2], "int8", copies, settings)
    calls = []
    contender.calls = [lambda i=i: calls.append(i) for i in range(3)]
    contender.repeats = 4
    contender.sample()
    contender.sample()
    assert calls == [0, 1, 2, 0, 1, 2, 0, 1]


def test_plot(tmp_path, capsys):
    path = tmp_path / "speed.png"
    assert main(["bench", *QUICK, "--schemes", "int8,int4", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_fails_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["bench", *QUICK, "--plot", str(tmp_path / "x.png")]) == 1
    assert "pip install nibblas[plot]" in capsys.readouterr().err


def test_parse_shapes():
    shapes = _bench.parse_shapes("16x32,default")
    assert shapes[0] == ("", 16, 32)
    assert len(shapes) == 1 + len(_bench.DEFAULT_SHAPES)
    for text in ("", "16", "16x", "x16", "16x32x64", "0x16", "16x-1", "axb", "default,"):
        with pytest.raises(ValueError, match="4096x4096"):
            _bench.parse_shapes(text)


def test_parse_rows():
    assert _bench.parse_rows("1,512") == [1, 512]
    for text in ("", "0", "1,", "a", "-1", "1.5"):
        with pytest.raises(ValueError, match="rows are numbers"):
            _bench.parse_rows(text)


def test_parse_schemes():
    assert _bench.parse_schemes("int8,int4-g64,uint4-channel-min,uint8-zp") == [
        ("int8", "int8", "auto", None),
        ("int4-g64", "int4", 64, None),
        ("uint4-channel-min", "uint4", None, "min"),
        ("uint8-zp", "uint8", "auto", "zero_point"),
    ]
    for text in ("", "int5", "int4-32", "int4-g", "int4-min", "int4-zp", "uint4-symmetric"):
        with pytest.raises(ValueError, match=r"scheme|expected|offsets"):
            _bench.parse_schemes(text)


def test_relative_rms():
    expected = np.array([3.0, 4.0])
    assert _bench.relative_rms(np.array([3.0, 4.5], np.float32), expected) == pytest.approx(0.1)
    assert _bench.relative_rms(np.zeros(2), np.zeros(2)) == 0
