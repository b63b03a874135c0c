# SPDX-License-Identifier: Apache-2.0
"""nibblas bench: its engine's choices, and that its figures hang together."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nibblas
from nibblas.cli import _accuracy, _bench, _measure, main

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


@pytest.fixture
def small_matrices(monkeypatch):
    """For tests that do not look at the size of an error."""
    for name, size in (("COLS", 33), ("DEPTH", 256), ("ROWS", 5)):
        monkeypatch.setattr(_accuracy, name, size)


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
        low, high = case["speedup_quartiles"]
        assert 0 < low <= case["speedup"] <= high
        if case["contender"] == "NumPy float32":
            assert case["speedup"] == low == high == 1
            assert case["error_dequantized"] is None
            assert case["error_exact"] < 1e-5
    for entry in report["speedups"]:
        first, second = (
            case["speedup"]
            for case in report["cases"]
            if (case["contender"], case["rows"]) == (entry["contender"], entry["rows"])
        )
        assert entry["speedup"] == pytest.approx((first * second) ** 0.5)
    assert len(report["speedups"]) == 2 * 4


def test_the_clock_is_of_the_thread_that_does_all(report):
    assert report["clock"] == "thread CPU"
    assert _measure.clock_name(2, 2) == "wall"
    assert _measure.clock_name(1, None) == "wall"


def test_errors_are_those_of_the_schemes(report):
    errors = {(entry["matrix"], entry["contender"]): entry for entry in report["accuracy"]}
    labels = ("int8", "int4-g32", "uint4-g16-min", "uint8-channel-zp")
    assert list(errors) == [(m.name, label) for m in _accuracy.MATRICES for label in labels]
    # Steps of an 8-bit code: 1/255 of a range of some 5 sigma; of a 4-bit one 16 times that.
    for label, low, high in (("int8", 1e-3, 2e-2), ("int4-g32", 3e-2, 0.2)):
        entry = errors["normal", label]
        assert low < entry["error_weights"] < high
        assert low < entry["error_outputs"] < high
        # Activations have 8 bits in any case.
        assert 1e-3 < entry["error_activations"] < 2e-2
        cases = [case for case in report["cases"] if case["contender"] == label]
        for case in cases:  # the timed products err as much: what was timed was right
            assert low < case["error_exact"] < high
            assert 1e-3 < case["error_dequantized"] < 2e-2
    assert errors["normal", "int4-g32"]["bits_per_weight"] == 4.5


def test_the_matrices_show_what_they_are_there_for():
    choices = _bench.parse_schemes("int8,int8-g32,int4-g32,uint4-g32,uint4-g128")
    errors = {
        (entry["matrix"], entry["contender"]): entry for entry in _accuracy.errors(choices, "int8")
    }

    def output(matrix, label):
        return errors[matrix, label]["error_outputs"]

    # Small groups keep an outlier's harm to few weights; zero points serve what is off centre.
    assert output("heavy tails", "uint4-g32") < 0.8 * output("heavy tails", "uint4-g128")
    assert output("heavy tails", "int4-g32") > 1.2 * output("normal", "int4-g32")
    assert output("off centre", "uint4-g32") < 0.7 * output("off centre", "int4-g32")
    # A row's large inputs set its scale, unless they have groups of their own.
    assert output("outlier inputs", "int8-g32") < 0.5 * output("outlier inputs", "int8")


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_the_accuracy_does_not_depend_on_the_machine(compute, target, small_matrices):
    choices = _bench.parse_schemes("int8,int4-g32,uint4-g32-min")
    with nibblas.use_target("scalar"):
        expected = _accuracy.errors(choices, compute, 1)
    assert _accuracy.errors(choices, compute, 2) == expected


def test_float32_compute_errs_less(capsys, small_matrices):
    command = ["bench", *QUICK, "--schemes", "int8", "--compute", "float32", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"][0]["error_activations"] < 1e-6


def test_text_ends_with_the_accuracy(capsys, small_matrices):
    assert main(["bench", *QUICK, "--schemes", "int8", "--target", "scalar", "--threads", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "target scalar" in printed.out
    assert "2 threads" in printed.out
    for word in ("48x96", "32x64", "NumPy float32", "GOP/s", "of peak", "error"):
        assert word in printed.out
    head, _, tail = printed.out.partition("Accuracy")
    assert "speed-up" in head
    assert "bits/weight" in tail
    assert tail.rstrip().split("\n")[-1].startswith("int8 ")
    assert max(map(len, printed.out.splitlines())) <= 100


def test_cold_rotates_over_many_copies(monkeypatch, rng):
    monkeypatch.setattr(_measure, "COLD_BYTES", 100_000)
    dense = rng.standard_normal((48, 96), dtype=np.float32)
    weight = nibblas.quantize(dense, "int8")
    copies = _bench.packed_copies(weight, cold=True)
    assert sum(copy.nbytes for copy in copies) >= 100_000
    assert len({copy.planes["codes"].ctypes.data for copy in copies}) == len(copies)
    dense_copies = _bench.dense_weight_copies(dense, cold=True)
    assert sum(copy.nbytes for copy in dense_copies) >= 100_000
    assert len(_bench.packed_copies(weight, cold=False)) == 1
    product = _bench.packed_product(dense[:2], "int8", copies, "int8", 1)
    contender = product.contender
    assert len(contender.calls) == len(copies)
    assert contender.nbytes == weight.nbytes
    calls = []
    contender.calls = [lambda i=i: calls.append(i) for i in range(3)]
    contender.repeats = 4
    contender.sample()
    contender.sample()
    assert calls == [0, 1, 2, 0, 1, 2, 0, 1]


def test_rounds_interleave():
    order = []
    contenders = [
        _measure.Contender(name, 1, [lambda name=name: order.append(name)]) for name in "abc"
    ]
    ticks = iter(range(10_000_000))
    _measure.run_rounds(contenders, 0, lambda: next(ticks), True, lambda: order.append("|"))
    rounds = "".join(order).split("|")[1:]
    # Each sample is one call that is not timed and one that is: by that clock a call takes long.
    assert rounds == ["aabbcc", "bbccaa", "ccaabb", "aabbcc", "bbccaa"]
    assert all(contender.samples == [1] * 5 for contender in contenders)


def test_speedups_are_of_the_same_round():
    slow, fast = _measure.Contender("slow", 1, []), _measure.Contender("fast", 1, [])
    slow.samples, fast.samples = [2.0, 8.0, 3.0], [1.0, 4.0, 1.0]
    assert fast.speedups(slow) == [2, 2, 3]
    assert slow.seconds == 3


def test_limits_grow_with_the_threads(monkeypatch):
    monkeypatch.setattr(_measure._nibblas, "peak_dot", lambda seconds: 100.0)
    sizes = []
    monkeypatch.setattr(
        _measure._nibblas, "read_bandwidth", lambda nbytes: sizes.append(nbytes) or 10.0
    )
    assert _measure.peak_gops(1) == 100
    assert _measure.peak_gops(3) == 300
    assert _measure.read_gbps(1 << 20, 2) == 20
    assert sizes == [1 << 19] * 2
    assert _measure.read_gbps(100, 1) == 10
    assert sizes[-1] == _measure.SMALLEST_SET


@pytest.mark.parametrize("fresh", [False, True])
def test_copying_counts_what_is_read_and_written(fresh, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr(_measure.time, "perf_counter", lambda: next(seconds))
    assert _measure.copy_gbps(1 << 20, 1, fresh) == (1 << 20) / 1e9
    assert _measure.copy_gbps(100, 1, fresh) == 2 * _measure.SMALLEST_SET / 1e9


def test_plot(tmp_path, capsys, small_matrices):
    path = tmp_path / "speed.png"
    assert main(["bench", *QUICK, "--schemes", "int8,int4", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_fails_before_measuring(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name, message in (("x.tif_", "draws"), ("missing/x.png", "no folder")):
        assert main(["bench", "--plot", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err


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
    for text in ("", "int9", "int4-32", "int4-g", "int4-min", "int4-zp", "uint4-symmetric"):
        with pytest.raises(ValueError, match=r"scheme|expected|offsets"):
            _bench.parse_schemes(text)


def test_relative_rms():
    expected = np.array([3.0, 4.0])
    assert _measure.relative_rms(np.array([3.0, 4.5], np.float32), expected) == pytest.approx(0.1)
    assert _measure.relative_rms(np.zeros(2), np.zeros(2)) == 0
