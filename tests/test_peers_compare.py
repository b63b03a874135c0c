# SPDX-License-Identifier: Apache-2.0
"""How nibblas bench --peers compares: with made-up libraries, and its judgements alone."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from nibblas.cli import _measure, peers
from nibblas.cli._bench import Shape
from nibblas.cli._measure import Contender
from nibblas.cli.peers import _command, _compare, _nibblas
from nibblas.cli.peers._base import KINDS, Bound, Op


@pytest.fixture(autouse=True)
def _few_copies(monkeypatch):
    monkeypatch.setattr(_measure, "COLD_BYTES", 100_000)


class Fake:
    """A library of NumPy's products, with something wrong."""

    def __init__(self, weight, fault=None, seconds=0.0):
        self.dense, self.nbytes = weight.dense, weight.dense.nbytes
        self.fault, self.seconds = fault, seconds
        if fault == "build":
            raise RuntimeError("no such layout")

    def bind(self, x):
        out = np.empty((len(x), len(self.dense)), np.float32)

        def call():
            if self.fault == "call":
                raise RuntimeError("no such kernel")
            time.sleep(self.seconds)
            np.matmul(x, self.dense.T, out=out)

        def output():
            return out[:, 1:] if self.fault == "shape" else out

        def whole():
            call()
            return output() + 1 if self.fault == "whole" else output()

        return Bound(call, output, whole)


def with_fakes(monkeypatch, *ops, error=None, arrays=False):
    """Measure NumPy and a made-up library with these products: (label, arguments)."""

    def make(weight, threads):
        for label, arguments in ops:
            yield Op(label, lambda arguments=arguments: Fake(weight, **arguments))
        if error:
            raise error

    fake = SimpleNamespace(REQUIRES=(), version=lambda: "1", ops=make)
    load = peers.load
    monkeypatch.setattr(peers, "load", lambda name: fake if name == "litert" else load(name))
    settings = _compare.Settings(
        [Shape("", 48, 256)],
        [2],
        [KINDS["int8"]],
        ["litert", "numpy"],
        cold=False,
        seconds=0.001,
        arrays=arrays,
    )
    return _compare.run(settings)


def test_failures_stop_nobody(monkeypatch):
    report = with_fakes(
        monkeypatch,
        ("good", {}),
        ("unbuilt", {"fault": "build"}),
        ("broken", {"fault": "call"}),
        ("narrow", {"fault": "shape"}),
        error=OSError("the library is gone"),
    )
    labels = [case["contender"] for case in report["cases"]]
    assert labels == ["nibblas", "nibblas float32", "good", "NumPy float32"]
    failures = {entry["contender"]: entry["message"] for entry in report["failures"]}
    assert failures == {
        "unbuilt": "RuntimeError: no such layout",
        "litert": "OSError: the library is gone",
        "broken": "RuntimeError: no such kernel",
        "narrow": "ValueError: the output's shape is (2, 47)",
    }
    text = _command.as_text({**report, "version": "1", "cpu": "", "seconds": 1.0, "load": 0.0})
    assert "broken failed (48x256 int8, 2 rows):" in text
    assert max(map(len, text.splitlines())) <= 100


def test_calls_with_arrays_are_checked_and_timed(monkeypatch):
    calls = []
    whole = Fake.bind

    def counted(self, x):
        bound = whole(self, x)
        return bound._replace(whole=lambda: (calls.append(1), bound.whole())[1])

    monkeypatch.setattr(Fake, "bind", counted)
    report = with_fakes(monkeypatch, ("good", {}), ("odd", {"fault": "whole"}), arrays=True)
    assert report["arrays"]
    assert [entry["message"] for entry in report["failures"]] == [
        "RuntimeError: another output from arrays"
    ]
    samples = next(c["samples"] for c in report["cases"] if c["contender"] == "good")
    assert len(calls) > samples >= 5
    text = _command.as_text({**report, "version": "1", "cpu": "", "seconds": 1.0, "load": 0.0})
    assert "to take x as an array" in text


def test_our_own_failure_is_an_error(monkeypatch):
    monkeypatch.setattr(
        _nibblas, "ops", lambda weight, threads: [Op("ours", lambda: Fake(weight, fault="call"))]
    )
    with pytest.raises(RuntimeError, match="no such kernel"):
        with_fakes(monkeypatch, ("good", {}))


def test_the_hopelessly_slow_are_timed_once(monkeypatch):
    monkeypatch.setattr(_compare, "LONG", 0.01)
    report = with_fakes(monkeypatch, ("slow", {"seconds": 0.05}), ("fast", {}))
    cases = {case["contender"]: case for case in report["cases"]}
    assert cases["slow"]["samples"] == 1
    assert cases["slow"]["ratio"] > 10
    assert cases["slow"]["ratio_low"] is None
    assert cases["fast"]["samples"] >= 5
    assert _command.ratio(cases["slow"])[1].strip("()") == "-"


def entrant(label, error, samples):
    contender = Contender(label, 1, [], samples=samples)
    return SimpleNamespace(error=error, contender=contender, peer="")


def test_a_peer_is_judged_at_matching_accuracy():
    fast = entrant("int8", 8e-3, [1.0] * 6)
    exact = entrant("float32", 1e-6, [3.0] * 6)
    own = [fast, exact]
    coarse = _compare.judge(entrant("peer", 7.3e-3, [2.0] * 5 + [0.5]), own)
    assert coarse == {"against": "int8", "matching": True, "ratio": 2, "ratio_low": 0.5}
    assert _command.first(coarse) is False
    finer = _compare.judge(entrant("peer", 7.2e-3, [6.0] * 6), own)  # 8e-3 / 1.1 is above
    assert finer == {"against": "float32", "matching": True, "ratio": 2, "ratio_low": 2}
    assert _command.first(finer) is True
    finest = _compare.judge(entrant("peer", 1e-7, [6.0] * 6), own)
    assert finest == {"against": "int8", "matching": False, "ratio": 6, "ratio_low": 6}
    assert _command.first(finest) is None
    assert _command.ratio(finest) == ("(6.00)", "(6.00)")
    once = _compare.judge(entrant("peer", 1, [50.0]), own)
    assert once["ratio"] == 50
    assert _command.first(once) is True


def test_lower_bound():
    assert _measure.lower_bound([3.0, 1.0, 2.0, 5.0]) is None  # 1/16 is more than 5 %
    assert _measure.lower_bound([3.0, 1.0, 2.0, 5.0, 4.0]) == 1
    values = list(range(20))
    assert _measure.lower_bound(values) == 5  # 2.1 % for five below, 5.8 % for six
    assert _measure.lower_bound(values, 0.99) == 4
    # It does hold: of many samples of a median of 0, at most 5 % have a bound above it.
    draws = np.random.default_rng(0).standard_exponential((2000, 15)) - math.log(2)
    wrong = sum(_measure.lower_bound(list(draw)) > 0 for draw in draws)
    assert 0 < wrong < 2000 * 0.05


def test_rest_and_warming(monkeypatch):
    order = []
    slept = []
    monkeypatch.setattr(_measure.time, "sleep", slept.append)
    now = [0.0]
    cost = {"long": 1.0, "short": 1e-3}

    def call(name):
        order.append(name)
        now[0] += cost[name]

    contenders = [Contender(name, 1, [lambda name=name: call(name)]) for name in cost]
    _measure.run_rounds(
        contenders, 0, lambda: now[0], True, lambda: order.append("|"), rest=0.25, warm_below=0.5
    )
    rounds = "".join(word[0] for word in order).split("|")[1:]
    assert rounds[0] == "l" + "s" * 5  # 4 ms of short calls after one that is not timed
    assert slept == [0.25] * 10


def test_the_clock_is_fair_to_threads_of_their_own():
    assert _compare.clock_name(1, 1, peers.NAMES) == "process CPU"
    assert _compare.clock_name(1, None, ["ggml"]) == "process CPU"
    assert _compare.clock_name(1, None, ["numpy"]) == "wall"  # its BLAS could not be held
    assert _compare.clock_name(2, 2, peers.NAMES) == "wall"
