# SPDX-License-Identifier: Apache-2.0
"""bench/compare.py: its statistics, its verdicts, its builds' names, and a small run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nibblas

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import compare  # noqa: E402
import compare_builds  # noqa: E402
from compare_statistics import (  # noqa: E402
    Estimate,
    estimate,
    holm,
    t_quantile,
    t_within,
    vague,
    verdict,
)

INSTALLED = str(Path(nibblas.__file__).parents[1])
SMALL = ("--shape", "48x256", "--cold-bytes", "100000", "--seconds", "0", "--launches", "2")
# A test must not fail in the one run of twenty that is allowed to be wrong.
COARSE = ("--least", "60")

# Two-sided 95 and 99.9 % points of Student's t, from the tables of every textbook.
QUANTILES = {
    1: (12.706, 636.62),
    2: (4.3027, 31.599),
    3: (3.1824, 12.924),
    4: (2.7764, 8.6103),
    9: (2.2622, 4.7809),
    10: (2.2281, 4.5869),
    29: (2.0452, 3.6594),
    120: (1.9799, 3.3735),
}


@pytest.mark.parametrize("freedom", QUANTILES)
def test_quantiles_are_those_of_the_tables(freedom):
    for within, expected in zip((0.95, 0.999), QUANTILES[freedom], strict=True):
        assert t_quantile(within, freedom) == pytest.approx(expected, rel=5e-5)


def test_the_distribution_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 5, 8, 9, 40, 41):
        for t in (0.0, 0.3, 1.0, 2.5, -2.5, 7.0, 40.0):
            expected = 1 - 2 * stats.t.sf(abs(t), freedom)
            assert t_within(t, freedom) == pytest.approx(expected, abs=1e-14)


def test_the_distribution_at_its_ends():
    assert t_within(0, 5) == 0
    assert t_quantile(0, 5) < 1e-12
    assert t_within(math.inf, 4) == t_within(math.inf, 5) == 1
    with pytest.raises(ValueError, match="at least 1, got 0"):
        t_within(1, 0)
    with pytest.raises(ValueError, match=r"got 1\.0"):
        t_quantile(1.0, 3)


def test_an_estimate_by_hand():
    # Mean 2, standard deviation 1, error 1 / sqrt(3); the 95 % point of 2 degrees is 4.3027.
    found = estimate([0.01, 0.02, 0.03])
    assert found.ratio == pytest.approx(math.exp(0.02))
    half = 4.3027 * 0.01 / math.sqrt(3)
    assert found.low == pytest.approx(math.exp(0.02 - half), rel=1e-6)
    assert found.high == pytest.approx(math.exp(0.02 + half), rel=1e-6)
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_estimates_from_next_to_nothing():
    assert estimate([0.5]) == Estimate(math.exp(0.5), 0.0, math.inf, 1.0)
    assert estimate([0.0, 0.0]) == Estimate(1, 1, 1, 1)
    assert estimate([0.1, 0.1]).p == 0
    wide = estimate([-300.0, 400.0])  # the interval would overflow
    assert 0 < wide.low < 1 < wide.high < math.inf
    assert wide.p > 0.5


def test_holm():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    # 3 x 0.01, 2 x 0.02, 0.03 but not below the one before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1, 1]


def test_verdicts():
    slow = Estimate(1.1, 1.05, 1.15, 1e-6)
    assert verdict(slow, 1e-5, 0.02) == "slower"
    assert verdict(slow, 0.051, 0.02) == "equal"
    assert verdict(slow, 1e-5, 0.2) == "equal"
    assert verdict(Estimate(1 / 1.1, 0.87, 0.95, 1e-6), 1e-5, 0.02) == "faster"
    assert verdict(Estimate(1.019, 1.018, 1.02, 1e-9), 1e-8, 0.02) == "equal"
    assert not vague(Estimate(1.01, 0.995, 1.025, 0.1), 0.02)
    assert vague(Estimate(1.01, 0.985, 1.035, 0.1), 0.02)


def simulated(rng, changes, pairs=10, rounds=20):
    """Results of cases that are `changes` times as slow, with what a machine adds.

    1 % of each round and 1 % of each process, as was seen; one round in ten is disturbed. The
    machine's drift is common to both sides.
    """
    results = []
    for number, change in enumerate(changes):
        case = {"name": f"case {number}"}
        result = compare.Result(case, [], [], ([], []), ({"x"}, {"x"}), ["", ""])
        for _ in range(pairs):
            drift = rng.uniform(0.8, 1.2, rounds)
            base, changed = (
                drift
                * factor
                * np.exp(rng.normal(0, 0.01, rounds) + rng.normal(0, 0.01))
                * np.where(rng.random(rounds) < 0.1, 1.5, 1)
                for factor in (1.0, change)
            )
            result.add(base.tolist(), changed.tolist())
        results.append(result)
    return results


def verdicts_of(results, least=0.02):
    return [entry["verdict"] for entry in compare.judge(results, least)]


def test_no_change_is_equal(rng):
    """With 2,000 cases in runs of 40: by Holm's promise at most 1 run in 20 may name a case."""
    runs = [verdicts_of(simulated(rng, [1.0] * 40)) for _ in range(50)]
    assert sum(set(run) != {"equal"} for run in runs) <= 2


def test_a_change_is_found(rng):
    changes = [1.0] * 30 + [1.06, 1 / 1.06, 1.5]
    for _ in range(5):
        found = verdicts_of(simulated(rng, changes))
        assert found == ["equal"] * 30 + ["slower", "faster", "slower"]


def test_a_small_change_is_equal_however_certain(rng):
    results = simulated(rng, [1.01], pairs=200)
    (entry,) = compare.judge(results, 0.02)
    assert entry["adjusted_p"] < 0.001
    assert entry["verdict"] == "equal"
    assert verdicts_of(results, 0.005) == ["slower"]


def test_the_interval_holds_the_truth(rng):
    """95 of 100 times: with 400 cases 360 to 400 is more than five standard deviations wide."""
    entries = compare.judge(simulated(rng, [1.03] * 400), 0.02)
    hits = sum(entry["interval"][0] < 1.03 < entry["interval"][1] for entry in entries)
    assert 360 <= hits < 400


def test_cases_that_one_side_cannot_run():
    results = [
        compare.Result({"name": name}, [], [], ([], []), (set(), set()), errors)
        for name, errors in (
            ("a", ["ValueError: no scheme", ""]),
            ("b", ["", "TypeError: x"]),
            ("c", ["e", "e"]),
        )
    ]
    judged = compare.judge(results, 0.02)
    assert [entry["verdict"] for entry in judged] == ["new", "gone", "broken"]
    assert compare.failures(judged) == ["b", "c"]


def test_other_bits_fail(rng):
    same, other, unsteady = simulated(rng, [1.0] * 3)
    other.digests[1].clear()
    other.digests[1].add("y")
    unsteady.digests[0].add("z")
    judged = compare.judge([same, other, unsteady], 0.02)
    assert [entry["same_bits"] for entry in judged] == [True, False, False]
    assert compare.failures(judged) == ["case 1", "case 2"]


def test_a_run(capfd):
    """The installed package with itself: every case runs, in both, with the same bits."""
    command = [INSTALLED, INSTALLED, *SMALL, "--threads", "1,2", "--json"]
    assert compare.main(command) == 0
    report = json.loads(capfd.readouterr().out)
    names = [entry["case"] for entry in report["cases"]]
    assert len(set(names)) == len(names) == 2 * (4 * 5 + 2 + 4 * 2 + 2 + 2)
    for entry in report["cases"]:
        assert entry["errors"] == ["", ""]
        assert entry["same_bits"] is True
        assert min(entry["base_seconds"], entry["changed_seconds"]) > 0
        assert len(entry["log_ratios"]) == 2
        assert min(entry["rounds"]) >= compare.LEAST_ROUNDS
        low, high = entry["interval"]
        assert 0 < low <= entry["ratio"] <= high
    for side in report["sides"]:
        assert side["version"] == nibblas.__version__
        assert side["target"] == nibblas.available_targets()[0]
        assert side["commit"] == ""


def slowed(folder: Path, extra: str) -> str:
    """A folder with the installed package whose `linear` does something else first."""
    package = folder / "nibblas"
    package.mkdir(parents=True)
    for path in Path(nibblas.__file__).parent.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path.resolve())
    text = Path(nibblas.__file__).read_text(encoding="utf-8")
    (package / "__init__.py").write_text(text + extra, encoding="utf-8")
    return str(folder)


SLOW = """
_linear = linear
def linear(*arguments, **options):
    for _ in range(2):
        _linear(*arguments, **options)
    return _linear(*arguments, **options)
"""

WRONG = """
_linear = linear
def linear(*arguments, **options):
    y = _linear(*arguments, **options)
    y += 1
    return y
"""


def test_a_slower_package_is_found(tmp_path, capfd):
    """Three times the work, so that no neighbour can hide it."""
    changed = slowed(tmp_path, SLOW)
    options = ("--cases", "rows 128,dequantize int8", "--schemes", "int8", "--check", *COARSE)
    command = [INSTALLED, changed, *SMALL, *options, "--launches", "4", "--seconds", "0.1"]
    assert compare.main(command) == 1
    out = capfd.readouterr().out
    assert "1 slower, 1 equal" in out
    assert f"changed: {changed} (no commit" in out
    assert "OTHER" not in out
    assert compare.main([changed, INSTALLED, *command[2:]]) == 0
    assert "1 faster, 1 equal" in capfd.readouterr().out


def test_a_wrong_package_is_found(tmp_path, capfd):
    command = [INSTALLED, slowed(tmp_path, WRONG), *SMALL, "--cases", "call", "--check"]
    assert compare.main(command) == 1
    assert "outputs have other bits: call linear int4-g32 int8; call" in capfd.readouterr().out


def test_targets_and_what_a_side_cannot_run(capfd):
    command = [INSTALLED, INSTALLED, *SMALL, "--cases", "call", "--targets", "scalar,sse9", *COARSE]
    assert compare.main(command) == 0
    out = capfd.readouterr().out
    assert out.count(" broken ") == 2
    assert "2 equal, 2 broken" in out
    assert "the base cannot run 2 cases: ValueError: " in out
    assert compare.main([*command, "--check"]) == 1


def test_a_process_that_ends_is_an_error(tmp_path):
    crash = slowed(tmp_path, "\ndef linear(*a, **b):\n    import os\n    os._exit(7)\n")
    with pytest.raises(RuntimeError, match="ended with 7"):
        compare.main([INSTALLED, crash, *SMALL, "--cases", "call"])


def test_options(capsys):
    assert compare.main(["--list", "--schemes", "uint4-g64-min", "--cases", "rows 1 ,call"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "linear uint4-g64-min rows 1 cold",
        "linear uint4-g64-min float32 rows 1 warm",
        "call linear uint4-g64-min int8",
        "call linear uint4-g64-min float32",
    ]
    with pytest.raises(ValueError, match="no case has 'sgemm' in its name"):
        compare.main(["--cases", "sgemm"])
    with pytest.raises(SystemExit):
        compare.main(["--launches", "1"])
    assert "at least 2" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One of two commits on main, in which building writes down what it was built from."""
    root = tmp_path / "repository"
    (root / "python").mkdir(parents=True)

    def run(*arguments):
        settings = ("user.name=test", "user.email=test@example.org", "commit.gpgsign=false")
        options = [word for setting in settings for word in ("-c", setting)]
        command = ["git", "-C", str(root), *options, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    run("init", "-b", "main")
    for text in ("first", "second"):
        (root / "python" / "text").write_text(text)
        run("add", ".")
        run("commit", "-m", text)
    monkeypatch.setattr(compare_builds, "ROOT", root)
    builds = []

    def built(source, folder):
        builds.append((source / "python" / "text").read_text())
        for name in ("site", "build"):
            (folder / name).mkdir(parents=True)
        return folder / "site"

    monkeypatch.setattr(compare_builds, "built", built)
    return root, run, builds


def test_a_commit_is_built_once(repository, tmp_path):
    root, run, builds = repository
    before = compare_builds.find("HEAD~", tmp_path / "cache")
    assert builds == ["first"]
    assert compare_builds.find(before.commit[:10], tmp_path / "cache").site == before.site
    assert builds == ["first"]
    after = compare_builds.find(".", tmp_path / "cache")
    assert builds == ["first", "second"]
    assert after.site != before.site
    assert not (after.site.parent / "source").exists()
    (root / "page").write_text("nothing to build")
    run("add", ".")
    run("commit", "-m", "third")
    assert compare_builds.find("HEAD", tmp_path / "cache").site == after.site
    assert builds == ["first", "second"]
    with pytest.raises(ValueError, match="git rev-parse"):
        compare_builds.find("no-such-branch", tmp_path / "cache")


def test_a_changed_working_tree_is_built_anew(repository, tmp_path):
    root, _, builds = repository
    (root / "python" / "text").write_text("third")
    side = compare_builds.find(".", tmp_path / "cache")
    assert builds == ["third"]
    assert side.commit == ""


def test_settings_of_the_compiler_make_another_build(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-O2")
    first = compare_builds.find("HEAD", tmp_path / "cache").site
    monkeypatch.setenv("CXXFLAGS", "-O3")
    assert compare_builds.find("HEAD", tmp_path / "cache").site != first


def test_the_default_base(repository):
    root, run, _ = repository
    assert compare_builds.default_base() == "HEAD~"
    (root / "python" / "new").write_text("")
    assert compare_builds.default_base() == "HEAD"
    main = compare_builds.git("rev-parse", "main")
    run("checkout", "-b", "branch")
    assert compare_builds.default_base() == "HEAD"
    run("add", ".")
    run("commit", "-m", "third")
    assert compare_builds.default_base() == main


def test_a_build_that_fails_says_where_to_look(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text("message(FATAL_ERROR no)\n")
    with pytest.raises(ValueError, match=r"failed, see .*build\.log|cmake is not installed"):
        compare_builds.built(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "site").exists()
