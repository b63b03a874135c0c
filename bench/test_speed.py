# SPDX-License-Identifier: Apache-2.0
"""The speed table works, at a size that takes no time, and its verdicts are right."""

from __future__ import annotations

import json

import pytest
import speed

import nibblas

REPORTS = {
    target: {
        "target": target,
        "available_targets": ["avx512vnni", "avx2", "scalar"],
        "cpu": "",
        "blas": ["openblas Haswell"],
        "results": [
            {
                "shape": [4096, 4096],
                "rows": rows,
                "cold": rows == 1,
                "scheme": scheme,
                "seconds": 1e-3,
                "numpy_seconds": 5e-3,
                "speedup": 5.0,
                "speedup_quartiles": [4.9, 5.1],
                "peak_share": 0.6,
                "read_share": 0.1,
            }
            for rows, scheme in ((128, "int4-g32"), (128, "int8"), (1, "int4-g32"))
        ],
    }
    for target in ("avx512vnni", "avx2")
}


@pytest.fixture
def canned(monkeypatch):
    """Reports as if measured; the second child has both held to AVX2."""
    reports = json.loads(json.dumps(REPORTS))
    holds = []

    def in_child(arguments, hold):
        holds.append(dict(hold))
        return reports[hold.get("NIBBLAS_TARGET", "avx512vnni")]

    monkeypatch.setattr(speed, "in_child", in_child)
    yield reports
    assert holds[:2] == [{}, speed.HELD_TO_AVX2]


def test_goals_that_are_met(canned, capsys):
    assert speed.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("pass") == 5
    assert "MISS" not in printed


def test_a_goal_that_is_missed(canned, capsys):
    canned["avx2"]["results"][1]["speedup"] = 1.19
    assert speed.main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISS") == 1
    assert speed.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["passed"] for r in found[1]["results"]] == [True, False, None]
    assert [r["goal"] for r in found[0]["results"]] == [4, 5, 4]


def test_without_goals_nothing_is_checked(canned, capsys):
    for report in canned.values():
        report["target"] = "scalar8"
    canned["avx512vnni"]["available_targets"] = ["scalar8", "avx2"]
    assert speed.main(["--check"]) == 1
    assert "no goal for target scalar8" in capsys.readouterr().err


def test_children_choose_their_kernels_anew(monkeypatch):
    for name in ("NIBBLAS_TARGET", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        monkeypatch.setenv(name, "x")
    free = speed.environment({})
    assert not {"NIBBLAS_TARGET", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & free.keys()
    assert free["OPENBLAS_NUM_THREADS"] == "1"
    held = speed.environment(speed.HELD_TO_AVX2)
    assert (held["NIBBLAS_TARGET"], held["OPENBLAS_CORETYPE"]) == ("avx2", "Haswell")


def test_a_small_run(capfd):
    assert speed.main(["--shape", "512x1024", "--seconds", "0", "--json"]) == 0
    reports = json.loads(capfd.readouterr().out)
    best = nibblas.available_targets()[0]
    targets = [report["target"] for report in reports]
    assert targets == ([best, "avx2"] if best.startswith("avx512") else [best])
    for report in reports:
        found = [(r["rows"], r["cold"], r["scheme"]) for r in report["results"]]
        assert found == [(128, False, "int4-g32"), (128, False, "int8"), (1, True, "int4-g32")]
        assert all(r["speedup"] > 0 and r["rounds"] >= 5 for r in report["results"])
