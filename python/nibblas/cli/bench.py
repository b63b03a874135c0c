# SPDX-License-Identifier: Apache-2.0
"""Speed and accuracy of quantized products on this machine, against NumPy float32.

Without options: layer shapes of well-known models, about a minute, ending with an accuracy table.

  nibblas bench --shapes 4096x4096 --rows 1,512 --schemes int8,int4-g32,uint4-g64-min --cold

A scheme may be followed by -gSIZE (group size) or -channel, and by -zp or -min (offset). Columns:

  time        median of a call, taken in rounds with all others
  GOP/s       2 * rows * N * K / time
  GB/s        bytes of the weights / time
  of peak     GOP/s as a share of the dot-product peak measured in the same rounds
  of read     GB/s as a share of the read bandwidth measured over as many bytes
  speed-up    over NumPy float32 in the same rounds
  err exact   relative RMS error against the float64 product with the weights before quantizing
  err deq     the same against the dequantized weights: what quantized activations add
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from typing import Any

import nibblas
from nibblas.cli import _bench, _text

BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
"""Settings that hold NumPy's BLAS to an older CPU's instructions or block sizes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas bench``."""
    parser.add_argument("--shapes", default="default", help="N x K, such as 4096x4096,11008x4096")
    parser.add_argument("--rows", default=",".join(map(str, _bench.DEFAULT_ROWS)))
    parser.add_argument("--schemes", default=",".join(_bench.DEFAULT_SCHEMES))
    parser.add_argument("--compute", default="int8", choices=("int8", "float32"))
    parser.add_argument("--threads", type=int, metavar="N", help="of both; default: all there are")
    parser.add_argument("--target", help="instruction set; default: the best one")
    parser.add_argument("--cold", action="store_true", help="weights from memory, not from caches")
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="per contender and case; default: 0.4"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the speed-ups (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, then print and draw."""
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.plot:
        _pyplot()  # better missing now than in a minute
    settings = _bench.Settings(
        shapes=_bench.parse_shapes(arguments.shapes),
        rows=_bench.parse_rows(arguments.rows),
        schemes=_bench.parse_schemes(arguments.schemes),
        compute=arguments.compute,
        threads=arguments.threads or nibblas.get_num_threads(),
        cold=arguments.cold,
        seconds=arguments.seconds,
    )
    started = time.perf_counter()
    load = _load()
    with contextlib.ExitStack() as stack:
        if arguments.target:
            stack.enter_context(nibblas.use_target(arguments.target))
        progress = stack.enter_context(_text.Progress(_bench.step_count(settings)))
        report = _bench.run(settings, progress.step)
    report = {
        "version": nibblas.__version__,
        "cpu": nibblas.cpu_info().get("brand", ""),
        "seconds": time.perf_counter() - started,
        "load": load,
        **report,
    }
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    if arguments.plot:
        plot(report, arguments.plot)
    return 0


def _load() -> float:
    """Programs that wanted to run in the last minute, for each CPU."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    plural = "s" if report["threads"] != 1 else ""
    lines = [
        f"nibblas {report['version']}, {report['cpu']}, target {report['target']}, "
        f"{report['threads']} thread{plural}, compute={report['compute']}, "
        f"weights {'cold' if report['cold'] else 'warm'}",
        "",
        _times(report["cases"]),
        "",
        *_notes(report),
        "Accuracy: relative RMS error of weights and of outputs, over all cases. nibblas computes",
        "the same bits on every CPU and with every number of threads.",
        "",
        _accuracy(report["accuracy"]),
        "",
        f"{report['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def _times(cases: list[dict[str, Any]]) -> str:
    headers = (
        *("shape", "rows", "what", "time", "GOP/s", "GB/s", "of peak", "of read", "speed-up"),
        *("err exact", "err deq", "size"),
    )
    rows = []
    last = None
    for case in cases:
        place = ("x".join(map(str, case["shape"])), str(case["rows"]))
        baseline = case["error_dequantized"] is None
        rows.append(
            (
                *(place if place != last else ("", "")),
                case["contender"],
                _text.duration(case["seconds"]),
                _text.digits(case["gops"]),
                _text.digits(case["gbps"]),
                "-" if baseline else _text.percent(case["peak_share"]),
                _text.percent(case["read_share"]),
                "-" if baseline else f"{_text.digits(case['speedup'])}x",
                f"{case['error_exact']:.1e}",
                "-" if baseline else f"{case['error_dequantized']:.1e}",
                _text.size(case["nbytes"]),
            )
        )
        last = place
    return _text.table(headers, rows, left=3)


def _notes(report: dict[str, Any]) -> list[str]:
    names = {tuple(case["shape"]): case["shape_name"] for case in report["cases"]}
    notes = [f"{cols}x{depth}: {name}" for (cols, depth), name in names.items() if name]
    peak = max(case["peak_gops"] for case in report["cases"])
    if report["threads"] > 1:
        notes.append(
            f"Limits are one thread's times {report['threads']}: dot products {peak:.0f} GOP/s."
        )
    else:
        notes.append(f"Measured limit of dot products: {peak:.0f} GOP/s.")
    if report["numpy_threads"] is None:
        notes.append(
            "NumPy used as many threads as its BLAS likes: with threadpoolctl installed it is held "
            "to the same number."
        )
    if report["load"] > 0.5:
        notes.append(
            f"The machine was busy before (a load of {report['load']:.1f} for each CPU): "
            "all times may be too long."
        )
    for variable in BLAS_VARIABLES:
        if variable in os.environ:
            notes.append(f"{variable} is set, which may slow NumPy down.")
    return [*notes, ""]


def _accuracy(summary: list[dict[str, Any]]) -> str:
    headers = ("scheme", "bits/weight", "weights", "outputs, exact", "outputs, dequantized")
    rows = [
        (
            entry["contender"],
            f"{entry['bits_per_weight']:.2f}",
            f"{entry['error_weights']:.2e}",
            f"{entry['error_exact']:.2e}",
            f"{entry['error_dequantized']:.2e}",
        )
        for entry in summary
    ]
    return _text.table(headers, rows)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install nibblas[plot]") from None
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def plot(report: dict[str, Any], path: str) -> None:
    """Bars of the speed-up over NumPy float32, a panel for each row count."""
    pyplot = _pyplot()
    cases = [case for case in report["cases"] if case["error_dequantized"] is not None]
    labels = list(dict.fromkeys(case["contender"] for case in cases))
    shapes = list(dict.fromkeys(tuple(case["shape"]) for case in cases))
    figure, axes = pyplot.subplots(
        len(report["rows"]),
        1,
        squeeze=False,
        figsize=(max(6.0, 1.6 * len(shapes)), 2.2 * len(report["rows"]) + 0.8),
        layout="constrained",
    )
    width = 0.8 / max(len(labels), 1)
    for axis, rows in zip(axes[:, 0], report["rows"], strict=True):
        for i, label in enumerate(labels):
            speedups = {
                tuple(case["shape"]): case["speedup"]
                for case in cases
                if case["rows"] == rows and case["contender"] == label
            }
            places = [j + (i - (len(labels) - 1) / 2) * width for j in range(len(shapes))]
            axis.bar(places, [speedups[shape] for shape in shapes], width, label=label)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(shapes)), ["x".join(map(str, shape)) for shape in shapes])
        axis.set_ylabel("speed-up")
        axis.set_title(f"{rows} row{'s' if rows != 1 else ''}", fontsize="medium")
    axes[0, 0].legend(ncols=max(len(labels), 1), fontsize="small")
    threads = f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"
    figure.suptitle(f"nibblas over {_bench.BASELINE}: {report['target']}, {threads}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
