# SPDX-License-Identifier: Apache-2.0
"""Is one commit faster or slower than another? Both in turns, with a test of significance.

    python bench/compare.py [BASE [CHANGED]] [--check] [--json]

BASE and CHANGED are revisions of git, "." (the working tree), or folders with a built package.
Without them the working tree is compared with where its branch left main; on main with HEAD, or
with HEAD~ if nothing has changed since HEAD. Each commit is built once, into --cache.

Several times over, each side gets a new process with its own nibblas. In rounds both run every
case, one at a time, each first in every other round. A ratio is the median over the rounds of a
pair of processes; Student's t over the pairs says what is chance (see compare_statistics.py).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import compare_builds
import compare_statistics
import shapes
import speed
from compare_builds import Side

import nibblas
from nibblas.cli import _bench, _measure, _text

WORKER = Path(__file__).with_name("compare_worker.py")
MAX_REPEATS = 10_000
LEAST_ROUNDS = 4
FAILURES = {"slower", "gone", "broken"}

Case = dict[str, Any]


class Result(NamedTuple):
    """What was measured of a case, base first where there are two."""

    case: Case
    logs: list[float]  # a pair of processes each: the median over its rounds of log(changed / base)
    rounds: list[int]
    seconds: tuple[list[float], list[float]]
    digests: tuple[set[str], set[str]]
    errors: list[str]  # why it could not be run, "" where it could

    def add(self, base: Sequence[float], changed: Sequence[float]) -> None:
        """What a pair of processes took, round by round."""
        logs = [math.log(b / a) for a, b in zip(base, changed, strict=True)]
        self.logs.append(statistics.median(logs))
        self.rounds.append(len(logs))
        for seconds, samples in zip(self.seconds, (base, changed), strict=True):
            seconds.append(statistics.median(samples))


def in_turn(turn: int) -> tuple[int, int]:
    """Both sides, the base first if `turn` is even."""
    return (0, 1) if turn % 2 == 0 else (1, 0)


class Worker:
    """A process that imports one side's nibblas."""

    def __init__(self, side: Side) -> None:
        self.side = side
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(side.site), *([before] if before else [])])
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=speed.environment({"PYTHONPATH": path}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Wait until it has imported nibblas, the right one."""
        self.about = self.ask(do="about")
        side = self.side
        if not Path(self.about["file"]).parent.samefile(side.site / "nibblas"):
            raise RuntimeError(f"{side.word} imports {self.about['file']}, not from {side.site}")

    def ask(self, **request: object) -> Any:
        """The answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"{self.side.word}: the process ended with {code} at {request}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def workers(sides: Sequence[Side], turn: int) -> Iterator[list[Worker]]:
    """A process for each side, in the order of the sides; who starts first alternates."""
    with contextlib.ExitStack() as stack:
        found: dict[int, Worker] = {}
        for i in in_turn(turn):
            found[i] = Worker(sides[i])
            stack.callback(found[i].close)
            found[i].start()
        yield [found[0], found[1]]


def all_cases(arguments: argparse.Namespace) -> list[Case]:
    """What there is for one target and number of threads, for each of them."""
    shape = _bench.parse_shapes(arguments.shape)[0]
    schemes = _bench.parse_schemes(arguments.schemes)
    few = (min(shapes.COMPARE_WEIGHT_COLS, shape.cols), shape.depth)
    found: list[Case] = []

    def add(name: str, kind: str, size: Sequence[int], cold: bool = False, **more: Any) -> None:
        cold_bytes = arguments.cold_bytes if cold else 0
        found.append({"name": name, "kind": kind, "shape": size, "cold_bytes": cold_bytes, **more})

    for choice in schemes:
        scheme = choice[1:]
        for rows in (*shapes.COMPARE_COLD_ROWS, *shapes.COMPARE_WARM_ROWS):
            cold = rows in shapes.COMPARE_COLD_ROWS
            name = f"linear {choice.label} rows {rows} {'cold' if cold else 'warm'}"
            more: dict[str, Any] = {"scheme": scheme, "rows": rows, "compute": "int8"}
            add(name, "linear", shape[1:], cold, **more)
    choice = schemes[0]
    for rows in shapes.COMPARE_FLOAT_ROWS:
        more = {"scheme": choice[1:], "rows": rows, "compute": "float32"}
        add(f"linear {choice.label} float32 rows {rows} warm", "linear", shape[1:], **more)
    for choice in schemes:
        add(f"quantize {choice.label}", "quantize", few, scheme=choice[1:])
        add(f"dequantize {choice.label}", "dequantize", few, scheme=choice[1:])
    for group in (None, 32):
        name = f"quantize_activations {f'g{group}' if group else 'row'}"
        rows = shapes.COMPARE_ACTIVATION_ROWS
        add(name, "quantize_activations", shape[1:], rows=rows, group=group)
    small = _bench.parse_shapes(shapes.COMPARE_CALL_SHAPE)[0]
    for compute in ("int8", "float32"):
        more = {"scheme": schemes[0][1:], "rows": 1, "compute": compute}
        add(f"call linear {schemes[0].label} {compute}", "linear", small[1:], **more)

    combined = []
    for target in arguments.targets:
        for threads in arguments.threads:
            words = [target] if len(arguments.targets) > 1 else []
            words += [f"threads {threads}"] if len(arguments.threads) > 1 else []
            for case in found:
                name = " ".join([case["name"], *words])
                combined.append({**case, "name": name, "target": target, "threads": threads})
    wanted = arguments.cases.split(",")
    return [case for case in combined if any(word in case["name"] for word in wanted)]


def measure(
    sides: Sequence[Side],
    cases: Sequence[Case],
    launches: int,
    seconds: float,
    step: Callable[[str], None] = lambda label: None,
) -> tuple[list[Result], list[dict[str, Any]]]:
    """All cases' results for about `seconds` each, and what the sides say of themselves."""
    results = [Result(case, [], [], ([], []), (set(), set()), ["", ""]) for case in cases]
    for launch in range(launches):
        step(f"processes {launch + 1} of {launches}")
        with workers(sides, launch) as pair:
            can_run = prepare(pair, results, launch)
            # The same number of calls for both, whichever is faster.
            repeats = {}
            for i in can_run:
                once = max(worker.ask(do="sample", case=i, repeats=1) for worker in pair)
                wanted = round(_measure.SAMPLE_SECONDS / max(once, 1e-7))
                repeats[i] = max(1, min(MAX_REPEATS, wanted))
            samples = run_rounds(pair, repeats, seconds * len(can_run) / launches)
            for i in can_run:
                results[i].add(*samples[i])
                for digests, worker in zip(results[i].digests, pair, strict=True):
                    digests.add(worker.ask(do="digest", case=i))
            about = [worker.about for worker in pair]
    return results, about


def prepare(pair: Sequence[Worker], results: Sequence[Result], launch: int) -> list[int]:
    """Make all cases on both sides; those that both can run.

    Where in memory weights lie makes some per cent when they are cold, and who asks later gets
    another place. So both ask in turns, copy by copy.
    """
    for i, result in enumerate(results):
        for side in in_turn(launch + i):
            result.errors[side] = pair[side].ask(do="prepare", case=result.case)
    turn, growing = 0, True
    while growing:
        growing = sum(pair[side].ask(do="grow") for side in in_turn(launch + turn)) > 0
        turn += 1
    return [i for i, result in enumerate(results) if not any(result.errors)]


def run_rounds(
    pair: Sequence[Worker], repeats: dict[int, int], seconds: float
) -> dict[int, tuple[list[float], list[float]]]:
    """Each case's samples of both sides, round by round. An even number: each is first as often."""
    samples: dict[int, tuple[list[float], list[float]]] = {i: ([], []) for i in repeats}
    start = time.perf_counter()
    turn = 0
    while turn < LEAST_ROUNDS or turn % 2 or time.perf_counter() - start < seconds:
        for i, count in repeats.items():
            for side in in_turn(turn + i):
                taken = pair[side].ask(do="sample", case=i, repeats=count)
                samples[i][side].append(max(taken, 1e-12))  # a clock that did not move
        turn += 1
    return samples


def judge(results: Sequence[Result], least: float) -> list[dict[str, Any]]:
    """Estimates and verdicts, as they are printed."""
    measured = [result for result in results if result.logs]
    estimates = [compare_statistics.estimate(result.logs) for result in measured]
    adjusted = compare_statistics.holm([found.p for found in estimates])
    found_of = {
        result.case["name"]: (found, p)
        for result, found, p in zip(measured, estimates, adjusted, strict=True)
    }
    judged = []
    for result in results:
        entry: dict[str, Any] = {"case": result.case["name"], "errors": result.errors}
        if result.case["name"] not in found_of:
            base, changed = map(bool, result.errors)
            entry["verdict"] = "broken" if base and changed else "new" if base else "gone"
            judged.append({**entry, "same_bits": None})
            continue
        found, p = found_of[result.case["name"]]
        entry |= {
            "ratio": found.ratio,
            "interval": [found.low, found.high],
            "p": found.p,
            "adjusted_p": p,
            "verdict": compare_statistics.verdict(found, p, least),
            "vague": compare_statistics.vague(found, least),
            "same_bits": len(result.digests[0] | result.digests[1]) == 1,
            "base_seconds": statistics.median(result.seconds[0]),
            "changed_seconds": statistics.median(result.seconds[1]),
            "rounds": result.rounds,
            "log_ratios": result.logs,
        }
        judged.append(entry)
    return judged


def failures(judged: Sequence[dict[str, Any]]) -> list[str]:
    """The cases for which --check exits with 1."""
    return [
        entry["case"]
        for entry in judged
        if entry["verdict"] in FAILURES or entry["same_bits"] is False
    ]


def as_text(report: dict[str, Any]) -> str:
    """The table and what is to be said of it."""
    lines = []
    for entry in report["cases"]:
        numbers = ["-"] * 3
        if "ratio" in entry:
            numbers = [
                _text.duration(entry["base_seconds"]),
                f"{entry['ratio']:.3f}",
                "{:.3f}..{:.3f}".format(*entry["interval"]),
            ]
        bits = {True: "same", False: "OTHER", None: "-"}[entry["same_bits"]]
        lines.append((entry["case"], *numbers, entry["verdict"], bits))
    headers = ("case", "base", "changed / base", "95% interval", "verdict", "bits")
    text = [describe(report), "", _text.table(headers, lines), ""]
    verdicts = [entry["verdict"] for entry in report["cases"]]
    counts = [f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)]
    text.append(f"{', '.join(counts)}; under {report['least']:.1%} everything is equal")
    if other := [e["case"] for e in report["cases"] if e["same_bits"] is False]:
        text.append(f"outputs have other bits: {'; '.join(other)}")
    if some := [e["case"] for e in report["cases"] if e["verdict"] == "equal" and e["vague"]]:
        text.append(f"wide intervals, take more --seconds or --launches: {'; '.join(some)}")
    for side, name in enumerate(("base", "changed side")):
        errors = collections.Counter(entry["errors"][side] for entry in report["cases"])
        for error, count in errors.items():
            if error:
                text.append(f"the {name} cannot run {count} cases: {error}")
    compilers = [side["compiler"] for side in report["sides"]]
    if compilers[0] != compilers[1]:
        text.append(f"compilers differ: {compilers[0]}, {compilers[1]}")
    return "\n".join(text)


def describe(report: dict[str, Any]) -> str:
    """Who is compared, where."""
    text = []
    for name, side in zip(("base", "changed"), report["sides"], strict=True):
        commit = side["commit"][:12] or "no commit"
        text.append(f"{name}: {side['word']} ({commit}, target {side['target']})")
    text.append(f"{report['launches']} pairs of processes, {report['sides'][0]['cpu']}")
    return "\n".join(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("base", nargs="?", help="see above")
    add("changed", nargs="?", default=compare_builds.WORKING_TREE, help='default: "."')
    add("--cases", default="", metavar="TEXT,...", help="only those with one of these in the name")
    add("--list", action="store_true", help="print the names of the cases and do nothing else")
    add("--shape", default=shapes.COMPARE_SHAPE, metavar="NxK")
    add("--schemes", default=shapes.COMPARE_SCHEMES, metavar="NAME,...")
    add("--targets", metavar="NAME,...", help='or "all"; default: what each side chooses')
    add("--threads", default="1", metavar="N,...", help="more than 1: wall time; default: 1")
    add("--seconds", type=float, default=3.0, help="for each case; default: 3")
    add("--launches", type=int, default=10, help="pairs of processes, 2 or more; default: 10")
    add("--least", type=float, default=2.0, metavar="PERCENT", help="smaller is equal; default: 2")
    add("--cold-bytes", type=int, default=_measure.COLD_BYTES, help=argparse.SUPPRESS)
    add("--cache", type=Path, default=compare_builds.ROOT / "build" / "compare")
    add("--json", action="store_true", help="print JSON")
    add("--check", action="store_true", help="exit with 1 if a case is slower or has other bits")
    arguments = parser.parse_args(argv)
    if arguments.targets == "all":
        arguments.targets = nibblas.available_targets()
    else:
        arguments.targets = arguments.targets.split(",") if arguments.targets else [None]
    arguments.threads = _bench.parse_rows(arguments.threads)
    if arguments.launches < 2:
        parser.error("--launches must be at least 2: one pair of processes has no spread")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    cases = all_cases(arguments)
    if arguments.list:
        print("\n".join(case["name"] for case in cases))
        return 0
    if not cases:
        raise ValueError(f"no case has {arguments.cases!r} in its name, see --list")
    words = (arguments.base or compare_builds.default_base(), arguments.changed)
    sides = [compare_builds.find(word, arguments.cache.resolve()) for word in words]
    with _text.Progress(arguments.launches) as progress:
        results, about = measure(sides, cases, arguments.launches, arguments.seconds, progress.step)
    least = arguments.least / 100
    report = {
        "sides": [
            {"word": side.word, "commit": side.commit, **said}
            for side, said in zip(sides, about, strict=True)
        ],
        "launches": arguments.launches,
        "least": least,
        "cases": judge(results, least),
    }
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 1 if arguments.check and failures(report["cases"]) else 0


if __name__ == "__main__":
    try:
        status = main()
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        status = 2
    raise SystemExit(status)
