# SPDX-License-Identifier: Apache-2.0
"""nibblas bench --peers: with NumPy alone, with made-up libraries, with whatever is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import nibblas
from nibblas.cli import _measure, main, peers
from nibblas.cli.peers import _command, _compare, _ggml
from nibblas.cli.peers._base import KINDS, Weight

SMALL = ("--shapes", "48x256", "--rows", "1,9", "--seconds", "0.001")


@pytest.fixture(autouse=True)
def _few_copies(monkeypatch):
    monkeypatch.setattr(_measure, "COLD_BYTES", 100_000)


def dense_weight(rng, cols=48, depth=256):
    return rng.standard_normal((cols, depth), dtype=np.float32)


def run_json(capsys, *arguments) -> dict:
    assert main(["bench", "--peers", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_names():
    assert peers.parse("all") == list(peers.NAMES)
    assert peers.parse("ggml,numpy") == ["ggml", "numpy"]
    with pytest.raises(ValueError, match="a peer is one of"):
        peers.parse("numpy,mkl")
    assert [kind.name for kind in _command.parse_kinds("q4_0,int8")] == ["q4_0", "int8"]
    assert _command.parse_kinds("all") == list(KINDS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "mkl"], "a peer is one of"),
        (["--peers", "--schemes", "int4-g64"], "a scheme is one of"),
        (["--peers", "--compute", "float32"], "--compute"),
        (["--peers", "--shapes", "16x144", "--schemes", "int4-g32"], "in multiples of 32, got 144"),
        (["--full"], "--full goes with --peers"),
        (["--roofline", "x.png"], "--roofline goes with --peers"),
        (["--arrays"], "--arrays goes with --peers"),
    ],
)
def test_wrong_command_lines(capsys, arguments, message):
    if "--roofline" in arguments:
        pytest.importorskip("matplotlib")
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_importing_the_command_imports_no_peer():
    script = "import sys, nibblas.cli.peers._command, nibblas.cli.peers as peers\n" + "\n".join(
        f"import nibblas.cli.peers._{name}" for name in peers.NAMES
    )
    script += "\nprint(*{'torch', 'onnxruntime', 'openvino', 'ai_edge_litert'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_every_case_of_numpy(capsys):
    report = run_json(capsys, "numpy", *SMALL)
    expected = []
    for kind in KINDS:
        labels = ["nibblas", "NumPy float32"]
        if kind != "integers":
            labels.insert(1, "nibblas float32")
        for rows, cold in ((1, True), (1, False), (9, False)):
            expected += [(kind, rows, cold, label) for label in labels]
    cases = report["cases"]
    assert [(c["kind"], c["rows"], c["cold"], c["contender"]) for c in cases] == expected
    assert report["target"] == nibblas.target()
    assert report["failures"] == []
    assert report["peers"] == [{"peer": "numpy", "version": np.__version__, "missing": None}]
    for case in cases:
        operations = 2 * case["rows"] * 48 * 256
        assert case["samples"] >= 5
        assert case["gops"] == pytest.approx(operations / case["seconds"] / 1e9)
        assert case["gbps"] == pytest.approx(case["nbytes"] / case["seconds"] / 1e9)
        assert case["limit_gops"] <= case["peak_gops"] * (1 + 1e-9)
        assert case["limit_share"] == pytest.approx(case["gops"] / case["limit_gops"])
        if case["kind"] == "integers":
            assert case["error"] == 0
        elif case["contender"] == "nibblas":
            assert 1e-3 < case["error"] < 2e-2
        else:
            assert case["error"] < 2e-6
        assert ("ratio" in case) == (case["peer"] != "nibblas")
        if "ratio" in case:
            assert 0 < case["ratio_low"] <= case["ratio"]


def test_cold_and_warm_can_be_chosen(capsys):
    for option, cold in (("--cold", True), ("--warm", False)):
        report = run_json(capsys, "numpy", *SMALL, "--schemes", "int8", option)
        assert {case["cold"] for case in report["cases"]} == {cold}
        assert {case["rows"] for case in report["cases"]} == {1, 9}
    assert main(["bench", *SMALL, "--warm", "--schemes", "int8"]) == 0  # what it always was


def test_defaults_and_full():
    def settings(*arguments):
        made = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_compare, "run", lambda given, step: made.append(given) or 1 / 0)
            assert main(["bench", "--peers", *arguments]) == 1
        return made[0]

    some, full = settings(), settings("--full")
    assert [str(shape) for shape in some.shapes] == ["4096x4096"]
    assert list(map(str, full.shapes)) == [
        "384x1536",
        "1024x1024",
        "4096x4096",
        "11008x4096",
        "4096x11008",
    ]
    assert full.rows == [1, 4, 8, 32, 128, 512]
    assert some.peers == full.peers == list(peers.NAMES)
    assert some.states(8) == [True, False]
    assert some.states(9) == [False]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_weights_in_all_forms_are_one(kind, rng):
    weight = Weight(kind, dense_weight(rng), 1)
    if kind.integers:
        assert np.array_equal(weight.dense, weight.codes)
    else:
        assert np.array_equal(weight.dense, weight.packed.dequantize())
    if kind.blocks:
        assert nibblas.io.gguf.dequantize(weight.blocks, kind.blocks) == pytest.approx(weight.dense)
        return
    assert weight.scales.min() > 0
    scales = weight.scales.repeat(256 // weight.scales.shape[1], axis=1)
    if not kind.integers:
        assert np.array_equal(weight.codes * scales, weight.dense)
    assert abs(weight.codes).max() == (7 if kind.scheme == "int4" else 127)
    if kind.scheme == "int4":
        for unsigned, zero in ((True, 8), (False, 0)):
            packed = weight.nibbles(unsigned)
            codes = np.stack((packed & 15, packed >> 4), axis=2).reshape(48, 256).astype(int)
            assert np.array_equal((codes - zero) & 15, weight.codes & 15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", peers.NAMES)
def test_products_of_what_is_installed(name, rng):
    found, notes = _compare.installed([name])
    if name not in found:
        pytest.skip(notes[0]["missing"])
    assert notes[0]["version"]
    count = 0
    for kind in KINDS.values():
        weight = Weight(kind, dense_weight(rng, 64), 1)
        for op in found[name].ops(weight, 1):
            model = op.build()
            assert 64 * 256 / 2 <= model.nbytes <= weight.dense.nbytes
            dense = weight.dense if op.dense is None else op.dense
            assert _measure.relative_rms(dense, weight.dense.astype(np.float64)) < 4e-3  # bfloat16
            for rows in (3, 1):
                x = _compare._input(rng, rows, 256, kind)
                bound = model.bind(x)
                bound.call()
                y = bound.output()
                assert y.shape == (rows, 64)
                # 8-bit activations err by 1 %; sums of 16 bits, where they saturate, by some more.
                expected = x.astype(np.float64) @ dense.T
                whole = bound.whole()
                assert np.array_equal(whole, y)
                bound.whole()
                assert np.array_equal(whole, y)
                assert not np.shares_memory(whole, bound.output())
                assert _measure.relative_rms(y, expected) < 6e-2, (kind.name, op.label)
            count += 1
    assert count >= 3


@pytest.mark.filterwarnings("ignore")
def test_a_whole_run_with_what_is_installed(capsys):
    report = run_json(capsys, "all", *SMALL, "--rows", "2", "--warm")
    assert report["failures"] == []
    missing = {note["peer"] for note in report["peers"] if note["missing"]}
    assert {case["peer"] for case in report["cases"]} == {"nibblas", *peers.NAMES} - missing


def test_a_missing_peer_is_reported(capsys, monkeypatch):
    monkeypatch.delenv("NIBBLAS_GGML", raising=False)
    monkeypatch.setattr(_ggml, "_library", lambda: _ggml._Library(_ggml._folder()))
    find = peers.importlib.util.find_spec
    gone = ("torch", "llama_cpp")
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: None if name in gone else find(name)
    )
    arguments = ["--peers", "numpy,torch,ggml", *SMALL, "--schemes", "q4_0"]
    assert main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "torch is not installed" in printed
    assert "llama-cpp-python is not installed" in printed
    assert "NumPy float32" in printed


def test_a_folder_without_ggml_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(_ggml, "_library", lambda: _ggml._Library(_ggml._folder()))
    monkeypatch.setenv("NIBBLAS_GGML", str(tmp_path))
    found, notes = _compare.installed(["ggml"])
    assert found == {}
    assert notes[0]["missing"].startswith("FileNotFoundError: there is no libggml.so in")


def test_text(capsys):
    assert main(["bench", "--peers", "numpy", *SMALL, "--threads", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in ("2 threads", "wall time", "48x256, GGUF Q4_K", "cold", "of limit", "at least"):
        assert word in printed.out
    assert max(map(len, printed.out.splitlines())) <= 100


def test_plots(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    speed, roof = tmp_path / "speed.svg", tmp_path / "roof.png"
    command = ["bench", "--peers", "numpy", *SMALL, "--plot", str(speed), "--roofline", str(roof)]
    assert main(command) == 0
    drawn = speed.read_text()
    for word in (">NumPy float32<", ">nibblas<", ">limit, weights cold<", ">48x256 q6_k<"):
        assert word in drawn
    assert roof.read_bytes().startswith(b"\x89PNG")
    assert main([*command[:-1], str(tmp_path / "missing" / "x.png")]) == 1
    assert "--roofline: there is no folder" in capsys.readouterr().err
