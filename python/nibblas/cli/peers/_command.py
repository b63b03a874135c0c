# SPDX-License-Identifier: Apache-2.0
"""``nibblas bench --peers``: the command line, and the report for people."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from nibblas.cli import _bench, _text, bench, peers
from nibblas.cli.peers import _compare, _draw
from nibblas.cli.peers._base import KINDS, Kind

DEFAULT_SHAPES, DEFAULT_ROWS = "4096x4096", "1,8,128"
FULL_SHAPES = "384x1536,1024x1024,4096x4096,11008x4096,4096x11008"
FULL_ROWS = "1,4,8,32,128,512"

CLOCKS = {
    "process CPU": "CPU time of the process, since some libraries work on a thread of their own",
    "wall": "wall time",
}

ARRAYS = {
    False: "its x and its output in place; --arrays hands them over",
    True: "to take x as an array and to return its output as one",
}


def parse_kinds(text: str) -> list[Kind]:
    """Names of comparisons separated by commas, or "all"."""
    if text == "all":
        return list(KINDS.values())
    names = text.split(",")
    for name in names:
        if name not in KINDS:
            raise ValueError(f"with --peers a scheme is one of {', '.join(KINDS)}, got {name!r}")
    return [KINDS[name] for name in names]


def run(arguments: argparse.Namespace) -> int:
    """Measure, then print and draw."""
    if arguments.compute != "int8":
        raise ValueError("--compute: with --peers both kinds of arithmetic are measured")
    full = arguments.full
    settings = _compare.Settings(
        shapes=_bench.parse_shapes(arguments.shapes or (FULL_SHAPES if full else DEFAULT_SHAPES)),
        rows=_bench.parse_rows(arguments.rows or (FULL_ROWS if full else DEFAULT_ROWS)),
        kinds=parse_kinds(arguments.schemes or "all"),
        peers=peers.parse(arguments.peers),
        threads=arguments.threads,
        cold=True if arguments.cold else False if arguments.warm else None,
        seconds=arguments.seconds,
        arrays=arguments.arrays,
    )
    report = bench.measured(
        arguments.target,
        _compare.step_count(settings),
        lambda step: _compare.run(settings, step),
    )
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    if arguments.plot:
        _draw.speeds(report, arguments.plot)
    if arguments.roofline:
        _draw.roofline(report, arguments.roofline)
    return 0


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    plural = "s" if report["threads"] != 1 else ""
    lines = [
        f"nibblas {report['version']} on {report['cpu']}: target {report['target']}, "
        f"{report['threads']} thread{plural}",
        "",
        *(library(note) for note in report["peers"]),
    ]
    for shape, kind in of_each(report["cases"], "shape", "kind"):
        cases = [c for c in report["cases"] if c["shape"] == shape and c["kind"] == kind]
        heading = f"{shape[0]}x{shape[1]}, {KINDS[kind].what}"
        lines += ["", heading, "", _text.table(HEADERS, _lines(cases), left=3)]
    for failure in report["failures"]:
        cols, depth = failure["shape"]
        rows = f", {failure['rows']} rows" if failure["rows"] else ""
        lines += [
            "",
            f"{failure['contender']} failed ({cols}x{depth} {failure['kind']}{rows}):",
            f"  {failure['message']}",
        ]
    lines += [
        "",
        f"Times are {CLOCKS[report['clock']]}.",
        f"Each call has {ARRAYS[report['arrays']]}.",
        *bench.notes(report)[:1],
        f"All took {report['seconds']:.0f} s.",
        *bench.notes(report)[2:],
        "Ratio: a peer's time over ours, the median of the rounds; at least: its lower 95 % bound.",
        f"A peer that errs less than 1/{_compare.ACCURACY} of ours does more (ratio in brackets).",
    ]
    return "\n".join(lines)


def library(note: dict[str, Any]) -> str:
    """A line on a peer: its version or what is missing."""
    return f"{note['peer']:12} {note['version'] or note['missing']}"


HEADERS = ("rows", "weights", "product", "time", "GOP/s", "of limit", "error", "ratio", "at least")


def _lines(cases: Iterable[dict[str, Any]]) -> list[list[str]]:
    lines, last = [], None
    for case in cases:
        key = (str(case["rows"]), "cold" if case["cold"] else "warm")
        lines.append(
            [
                *(key if key != last else ("", "")),
                case["contender"],
                _text.duration(case["seconds"]),
                _text.digits(case["gops"]),
                bench.share(case["limit_share"]),
                f"{case['error']:.1e}",
                *ratio(case),
            ]
        )
        last = key
    return lines


def ratio(case: dict[str, Any]) -> tuple[str, str]:
    """The ratio of a peer, in brackets where accuracies differ, and its lower bound."""
    if "ratio" not in case:
        return "", ""
    value = _text.digits(case["ratio"])
    low = "-" if case["ratio_low"] is None else _text.digits(case["ratio_low"])
    return (value, low) if case["matching"] else (f"({value})", f"({low})")


def first(case: dict[str, Any]) -> bool | None:
    """Whether we are ahead of this peer beyond doubt; None if it does more, or is ours."""
    if not case.get("matching"):
        return None
    low = case["ratio_low"]
    # A peer so slow that it was timed once has no bound.
    return bool(case["ratio"] > 1 if low is None else low > 1)


def of_each(cases: Iterable[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    """The different values of these keys, in order."""
    found: list[tuple[Any, ...]] = []
    for case in cases:
        values = tuple(case[key] for key in keys)
        if values not in found:
            found.append(values)
    return found
