# SPDX-License-Identifier: Apache-2.0
"""Write the tables and plots of docs/performance.md.

    python bench/peers/report.py FOLDER --ggml GGML --ggml-avx2 GGML_AVX2

Every weight is measured in a process of its own, `nibblas bench --peers --json`, whose result is
kept in FOLDER: a run that was interrupted goes on where it stopped, and --render only writes. The
column avx512vnni (or what this CPU has) is measured as everything is, the column avx2 with all
libraries held to AVX2 (hold_avx2.py). Both folders of ggml come from build_ggml.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import hold_avx2  # noqa: E402

import nibblas  # noqa: E402
from nibblas.cli import _text  # noqa: E402
from nibblas.cli.bench import BLAS_VARIABLES, share  # noqa: E402
from nibblas.cli.peers import _command, _draw  # noqa: E402
from nibblas.cli.peers._base import KINDS  # noqa: E402

DOCS = HERE.parents[1] / "docs"
PAGE = "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SHOWN = [4096, 4096]
"""The shape whose products are all shown, and drawn; of the others the closest peer."""

ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


ARRAYS = "arrays"
"""Folder in a column's: results of calls that take x as an array and return one (--arrays)."""

SMALL_SHAPES = "384x1536,1024x1024"
"""Where it matters how x is handed over."""


def measure(arguments: argparse.Namespace, column: str, extra: dict[str, str]) -> None:
    """Fill the column's folder."""
    folder = arguments.folder / column
    measure_shapes(arguments, folder, column, arguments.shapes, extra)
    measure_shapes(arguments, folder / ARRAYS, column, arguments.array_shapes, extra, "--arrays")


def measure_shapes(
    arguments: argparse.Namespace,
    folder: Path,
    column: str,
    shapes: str,
    extra: dict[str, str],
    *options: str,
) -> None:
    """Fill a folder: a file for each shape and weight."""
    folder.mkdir(parents=True, exist_ok=True)
    cleared = (*BLAS_VARIABLES, "NIBBLAS_TARGET")
    environment = {key: value for key, value in os.environ.items() if key not in cleared}
    if arguments.threads == 1:
        environment |= dict.fromkeys(ONE_THREAD, "1")
    environment |= {"NIBBLAS_TARGET": column, **extra}
    for shape in filter(None, shapes.split(",")):
        for kind in _command.parse_kinds(arguments.schemes):
            result = folder / f"{shape}-{kind.name}.json"
            if result.exists():
                continue
            command = [sys.executable, "-m", "nibblas", "bench", "--peers", arguments.peers]
            command += ["--shapes", shape, "--schemes", kind.name, "--rows", arguments.rows]
            command += ["--seconds", str(arguments.seconds), "--threads", str(arguments.threads)]
            started = time.monotonic()
            done = subprocess.run(
                [*command, "--json", *options], env=environment, stdout=subprocess.PIPE, check=True
            )
            found = json.loads(done.stdout)
            if found["target"] != column:
                raise RuntimeError(f"measured target {found['target']} instead of {column}")
            result.write_bytes(done.stdout)
            seconds = time.monotonic() - started
            label = " ".join([column, shape, kind.name, *options])
            print(f"{label}: {seconds:.0f} s", file=sys.stderr, flush=True)


def merged(folder: Path) -> dict[str, Any] | None:
    """All results of a column as one report; None if there are none."""
    order = list(KINDS)
    parts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    if not parts:
        return None
    parts.sort(key=lambda part: (_size(part["shapes"][0]), order.index(part["kinds"][0])))
    report: dict[str, Any] = dict(parts[0])
    for key in ("shapes", "kinds", "rows", "peers", "failures", "cases"):
        joined = [item for part in parts for item in part[key]]
        if key in ("shapes", "peers"):
            joined = [item for i, item in enumerate(joined) if item not in joined[:i]]
        elif key in ("kinds", "rows"):
            joined = list(dict.fromkeys(joined))
        report[key] = joined
    report["kinds"].sort(key=order.index)
    report["seconds"] = sum(part["seconds"] for part in parts)
    return report


def _size(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0] * shape[1], shape[0]


def table(headers: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown."""
    rows = [list(headers), *map(list, lines)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    rows.insert(1, rule)
    text = []
    for row in rows:
        cells = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def states(report: dict[str, Any]) -> list[tuple[int, bool]]:
    """The columns of all tables: rows, and whether weights are cold."""
    found = {(case["rows"], case["cold"]) for case in report["cases"]}
    return sorted(found, key=lambda state: (not state[1], state[0]))


def headings(report: dict[str, Any]) -> list[str]:
    return [f"{rows}{' cold' if cold else ''}" for rows, cold in states(report)]


def cell(case: dict[str, Any] | None) -> str:
    """The ratio and its lower bound; in brackets where the peer is more accurate."""
    if case is None:
        return ""
    ratio, low = (text.strip("()") for text in _command.ratio(case))
    text = ratio if low == "-" else f"{ratio} ≥ {low}"
    return text if case["matching"] else f"({text})"


def products(report: dict[str, Any], kind: str) -> str:
    """All products with one weight of the shape shown: our share of the limit, peers' ratios."""
    cases = [c for c in report["cases"] if c["shape"] == SHOWN and c["kind"] == kind]
    lines = []
    for (label,) in _command.of_each(cases, "contender"):
        own = [case for case in cases if case["contender"] == label]
        by_state = {(case["rows"], case["cold"]): case for case in own}
        error = max(case["error"] for case in own)
        cells = []
        for state in states(report):
            case = by_state.get(state)
            if case and "ratio" not in case:
                time = _text.duration(case["seconds"])
                cells.append(f"{time}, {share(case['limit_share'])}")
            else:
                cells.append(cell(case))
        lines.append([label, f"{error:.1e}", *cells])
    return table(["product", "error", *headings(report)], lines)


def closest(report: dict[str, Any], ours: str) -> str:
    """For each weight the peer whose lower bound is the lowest, of those compared with `ours`."""
    lines = []
    for kind, shape in _command.of_each(report["cases"], "kind", "shape"):
        cells = []
        for rows, cold in states(report):
            rivals = [
                case
                for case in report["cases"]
                if (case["kind"], case["shape"], case["rows"], case["cold"])
                == (kind, shape, rows, cold)
                and _command.first(case) is not None
                and case["against"] == ours
            ]
            if not rivals:
                cells.append("")
                continue
            rival = min(rivals, key=lambda case: case["ratio_low"] or case["ratio"])
            cells.append(f"{cell(rival)} {SHORT[rival['peer']]}")
        if any(cells):
            lines.append((kind, f"{shape[0]}x{shape[1]}", *cells))
    if not lines:
        return "None."
    lines.sort(key=lambda line: list(KINDS).index(line[0]))
    return table(["weights", "shape", *headings(report)], lines, left=2)


SHORT = {
    "numpy": "NP",
    "onnxruntime": "ORT",
    "torch": "PT",
    "openvino": "OV",
    "litert": "LRT",
    "ggml": "ggml",
}


def summary(report: dict[str, Any]) -> str:
    """How often we are ahead."""
    judged = [_command.first(case) for case in report["cases"]]
    counted = [verdict for verdict in judged if verdict is not None]
    peaks = sorted(case["peak_gops"] for case in report["cases"])
    reads = sorted(case["read_gbps"] for case in report["cases"] if case["cold"])
    read = f", {_text.digits(reads[len(reads) // 2])} GB/s from memory" if reads else ""
    return (
        f"The lower bound is above 1 in {sum(counted)} of {len(counted)} comparisons at matching "
        f"accuracy. Limits: {_text.digits(peaks[len(peaks) // 2])} GOP/s{read}."
    )


def section(report: dict[str, Any], arrays: dict[str, Any] | None, column: str) -> str:
    """A column's part of the page, with what calls with arrays took."""
    libraries = ", ".join(
        f"{note['peer']} {note['version']}" for note in report["peers"] if note["version"]
    )
    plural = "s" if report["threads"] != 1 else ""
    text = [
        f"### {column}",
        f"{report['cpu']}, {report['threads']} thread{plural}; {_command.CLOCKS[report['clock']]}. "
        f"nibblas {report['version']}; {libraries}.",
        summary(report),
        f"![Speed against rows, {column}](performance-{column}-speed.svg)",
        f"![Roofline, {column}](performance-{column}-roofline.svg)",
        "The closest peer with int8 activations, its time over ours and the lower bound of that:",
        closest(report, "nibblas"),
    ]
    if arrays:
        text += [
            "The same where each call takes x as a NumPy array and returns its output as one "
            "(`--arrays`):",
            closest(arrays, "nibblas"),
        ]
    text += [
        'The closest peer that computes in floats, over our `compute="float32"`:',
        closest(report, "nibblas float32"),
    ]
    for kind in report["kinds"]:
        if any(c["shape"] == SHOWN and c["kind"] == kind for c in report["cases"]):
            name = f"{SHOWN[0]}x{SHOWN[1]}, {KINDS[kind].what}"
            text += [f"#### {column}: {name}", products(report, kind)]
    failed = sorted({f"{f['contender']} ({f['kind']})" for f in report["failures"]})
    if failed:
        text.append(f"Failed here: {', '.join(failed)}.")
    return "\n\n".join(text)


def render(folder: Path, docs: Path, columns: Sequence[str]) -> None:
    """The page between its marks, and the plots."""
    sections = []
    for column in columns:
        report = merged(folder / column)
        if report is None:
            continue
        sections.append(section(report, merged(folder / column / ARRAYS), column))
        shown = [case for case in report["cases"] if case["shape"] == SHOWN]
        if shown:
            one = {**report, "shapes": [SHOWN], "cases": shown}
            _draw.speeds(one, str(docs / f"performance-{column}-speed.svg"))
        _draw.roofline(report, str(docs / f"performance-{column}-roofline.svg"))
    page = docs / PAGE
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    body = "\n\n".join(sections)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    best = nibblas.available_targets()[0]
    parser.add_argument("folder", type=Path, help="for results")
    parser.add_argument("--ggml", metavar="FOLDER", help="of build_ggml.py")
    parser.add_argument("--ggml-avx2", metavar="FOLDER", help="of build_ggml.py --avx2")
    parser.add_argument("--columns", default=f"{best},avx2" if best != "avx2" else best)
    parser.add_argument("--shapes", default=_command.FULL_SHAPES)
    parser.add_argument("--array-shapes", default=SMALL_SHAPES, help="with --arrays")
    parser.add_argument("--rows", default=_command.FULL_ROWS)
    parser.add_argument("--schemes", default="all")
    parser.add_argument("--peers", default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the page's folder")
    arguments = parser.parse_args(argv)
    columns = arguments.columns.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        for column in [] if arguments.render else columns:
            extra: dict[str, str] = {}
            ggml = arguments.ggml_avx2 if column == "avx2" else arguments.ggml
            if column == "avx2":
                extra, _ = hold_avx2.environment(Path(scratch))
            if ggml:
                extra["NIBBLAS_GGML"] = str(Path(ggml).resolve())
            measure(arguments, column, extra)
    render(arguments.folder, arguments.docs, columns)


if __name__ == "__main__":
    main()
