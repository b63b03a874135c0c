# SPDX-License-Identifier: Apache-2.0
"""Speed and accuracy of quantized products on this machine, against NumPy float32.

Without options: layer shapes of well-known models, about a minute, ending with an accuracy table.

  nibblas bench --shapes 4096x4096 --rows 1,512 --schemes int8,int4-g32,uint4-g64-min --cold

With --peers: the same weights in all libraries that are installed, see docs/performance.md.

  nibblas bench --peers
  nibblas bench --peers onnxruntime,ggml --schemes int4-g32,q4_0 --rows 1 --plot speed.svg

A scheme may be followed by -gSIZE (group size) or -channel, and by -zp or -min (offset). Columns:

  time      median of a call, taken in rounds with all others
  speed-up  over NumPy float32, the median of the rounds' ratios
  GOP/s     2 * rows * N * K / time
  of peak   as a share of the dot-product peak measured in the same rounds
  GB/s      bytes of the weights / time
  of read   as a share of the bandwidth of reading as many bytes
  error     relative RMS against the float64 product with the weights before quantizing
  size      bytes of the weights

The accuracy table is over matrices of its own, the same in every run. Its errors, relative RMS
against float64, are those of the dequantized weights; what quantized activations add to the
outputs; and of the outputs in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import nibblas
from nibblas.cli import _accuracy, _bench, _plot, _text, peers

BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""Settings that hold NumPy's BLAS to an older CPU's instructions or block sizes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas bench``."""
    rows, schemes = _commas(_bench.DEFAULT_ROWS), _commas(_bench.DEFAULT_SCHEMES)
    parser.add_argument(
        "--shapes",
        metavar="NxK,...",
        help="of the weights, such as 4096x4096,11008x4096; default: five layers of models",
    )
    parser.add_argument("--rows", metavar="M,...", help=f"rows of x; default: {rows}")
    parser.add_argument("--schemes", metavar="S,...", help=f"default: {schemes}")
    parser.add_argument(
        "--compute",
        default="int8",
        choices=("int8", "float32"),
        help="int8 quantizes activations on the fly (default), float32 uses them as they are",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of nibblas and of NumPy; default: 1, which other programs disturb least",
    )
    parser.add_argument("--target", metavar="NAME", help="instruction set; default: the best one")
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--cold", action="store_true", help="weights from memory, not from caches")
    state.add_argument("--warm", action="store_true", help="from caches; the default but for peers")
    parser.add_argument(
        "--seconds",
        type=float,
        default=_bench.DEFAULT_SECONDS,
        metavar="S",
        help=f"for each line of the table, about; default: {_bench.DEFAULT_SECONDS}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the speeds (needs matplotlib)")
    parser.add_argument(
        "--peers",
        nargs="?",
        const="all",
        metavar="P,...",
        help=f"other libraries: {', '.join(peers.NAMES)}; all if none is named",
    )
    parser.add_argument(
        "--full", action="store_true", help="with --peers: five shapes, six row counts, an hour"
    )
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="with --peers: each call takes x as a NumPy array and returns its output as one; "
        "else both are in place",
    )
    parser.add_argument("--roofline", metavar="FILE", help="with --peers: draw speed over bytes")


def run(arguments: argparse.Namespace) -> int:
    """Measure, then print and draw."""
    if arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    for option in ("plot", "roofline"):
        if getattr(arguments, option):
            # Better failing now than in a minute.
            _plot.check(getattr(arguments, option), f"--{option}")
    if arguments.peers:
        from nibblas.cli.peers import _command

        return _command.run(arguments)
    for option in ("full", "roofline", "arrays"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} goes with --peers")
    settings = _bench.Settings(
        shapes=_bench.parse_shapes(arguments.shapes or "default"),
        rows=_bench.parse_rows(arguments.rows or _commas(_bench.DEFAULT_ROWS)),
        schemes=_bench.parse_schemes(arguments.schemes or _commas(_bench.DEFAULT_SCHEMES)),
        compute=arguments.compute,
        threads=arguments.threads,
        cold=arguments.cold,
        seconds=arguments.seconds,
    )
    report = measured(
        arguments.target,
        _bench.step_count(settings),
        lambda step: _bench.run(settings, step),
    )
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    if arguments.plot:
        _plot.plot(report, arguments.plot)
    return 0


def measured(
    target: str | None, steps: int, run: Callable[[Callable[[str], None]], dict[str, Any]]
) -> dict[str, Any]:
    """What `run` reports of this machine, and with what it was measured."""
    started = time.perf_counter()
    load = machine_load()
    with contextlib.ExitStack() as stack:
        if target:
            stack.enter_context(nibblas.use_target(target))
        progress = stack.enter_context(_text.Progress(steps))
        report = run(progress.step)
    return {
        "version": nibblas.__version__,
        "cpu": nibblas.cpu_info().get("brand", ""),
        "seconds": time.perf_counter() - started,
        "load": load,
        **report,
    }


def _commas(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def machine_load() -> float:
    """Programs that wanted to run in the last minute, for each CPU."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    plural = "s" if report["threads"] != 1 else ""
    lines = [
        f"nibblas {report['version']} on {report['cpu']}: target {report['target']}, "
        f"{report['threads']} thread{plural}, compute={report['compute']}, "
        f"weights {'cold' if report['cold'] else 'warm'}",
        "",
        _times(report["cases"]),
        "",
        *notes(report),
        "",
        "Speed-up over NumPy float32, the geometric mean of the shapes:",
        "",
        _speedups(report),
        "",
        "Accuracy: relative RMS errors of the weights, of the outputs by quantized activations",
        "alone, and of the outputs in all. Results are the same bits on every CPU and with every",
        "number of threads, so these figures are too.",
        "",
        _accuracy_table(report["accuracy"]),
    ]
    return "\n".join(lines)


def _times(cases: Sequence[dict[str, Any]]) -> str:
    headers = ("rows", "scheme", "time", "speed-up", "GOP/s", "of peak", "GB/s", "of read")
    headings: dict[int, str] = {}
    lines: list[tuple[str, ...]] = []
    shape, rows = None, None
    for case in cases:
        if case["shape"] != shape:
            shape, rows = case["shape"], None
            headings[len(lines)] = f"{shape[0]}x{shape[1]}  {case['shape_name']}".rstrip()
        baseline = case["error_dequantized"] is None
        lines.append(
            (
                "" if case["rows"] == rows else str(case["rows"]),
                case["contender"],
                _text.duration(case["seconds"]),
                f"{_text.digits(case['speedup'])}x",
                _text.digits(case["gops"]),
                "-" if baseline else share(case["peak_share"]),
                _text.digits(case["gbps"]),
                share(case["read_share"]),
                f"{case['error_exact']:.1e}",
                _text.size(case["nbytes"]),
            )
        )
        rows = case["rows"]
    return sections((*headers, "error", "size"), lines, headings, left=2)


def share(share: float) -> str:
    """Per cent, and nothing measured is 0 %."""
    return "<1%" if 0 < share < 0.005 else _text.percent(share)


def sections(
    headers: Sequence[str],
    lines: Sequence[Sequence[str]],
    headings: dict[int, str],
    left: int = 1,
) -> str:
    """A table with headings before some lines, by the number of the line."""
    top, rule, *body = _text.table(headers, lines, left=left).split("\n")
    text = [top, rule]
    for number, line in enumerate(body):
        if number in headings:
            text += ([""] if number else []) + [headings[number]]
        text.append(line)
    return "\n".join(text)


def notes(report: dict[str, Any]) -> list[str]:
    """Limits, clock, and what may have disturbed the measurement."""
    cases = report["cases"]
    plural = "s" if report["threads"] != 1 else ""
    peaks = [case["peak_gops"] for case in cases]
    reads = [case["read_gbps"] for case in cases]
    lines = [
        f"Limits on {report['threads']} thread{plural}: {_between(peaks)} GOP/s in dot products, "
        f"{_between(reads)} GB/s reading the sizes above.",
        f"Times are {report['clock']} time; all took {report['seconds']:.0f} s.",
    ]
    if report["numpy_threads"] is None:
        lines.append(
            "NumPy used as many threads as its BLAS likes: with threadpoolctl installed it is held "
            "to the same number."
        )
    if report["load"] > 0.5:
        lines.append(
            f"The machine was busy before (a load of {report['load']:.1f} for each CPU): "
            "all times may be too long."
        )
    for variable in BLAS_VARIABLES:
        if variable in os.environ:
            lines.append(f"{variable} is set, which may slow NumPy down.")
    return lines


def _between(values: Sequence[float]) -> str:
    low, high = _text.digits(min(values)), _text.digits(max(values))
    return low if low == high else f"{low} to {high}"


def _speedups(report: dict[str, Any]) -> str:
    row_counts = report["rows"]
    headers = ("scheme", *(f"{rows} row{'s' if rows != 1 else ''}" for rows in row_counts))
    lines: dict[str, list[str]] = {}
    for entry in report["speedups"]:
        line = lines.setdefault(entry["contender"], [])
        line.append(f"{_text.digits(entry['speedup'])}x")
    return _text.table(headers, [(label, *line) for label, line in lines.items()])


def _accuracy_table(entries: Sequence[dict[str, Any]]) -> str:
    headers = ("scheme", "bits/weight", "weights", "activations", "outputs")
    headings: dict[int, str] = {}
    lines: list[tuple[str, ...]] = []
    matrix = None
    for entry in entries:
        if entry["matrix"] != matrix:
            matrix = entry["matrix"]
            what = next(m.what for m in _accuracy.MATRICES if m.name == matrix)
            headings[len(lines)] = f"{matrix}: {what}"
        lines.append(
            (
                entry["contender"],
                f"{entry['bits_per_weight']:.2f}",
                f"{entry['error_weights']:.2e}",
                f"{entry['error_activations']:.2e}",
                f"{entry['error_outputs']:.2e}",
            )
        )
    return sections(headers, lines, headings)
