# SPDX-License-Identifier: Apache-2.0
"""The speed table: one thread, 4096x4096, against NumPy's float32 product in the same run.

    python bench/speed.py [--check] [--json]

128 rows with warm weights, one row with cold ones (calls go around over copies of 256 MB and more,
of both weights). First with the best target and NumPy's best kernel, then with both held to AVX2,
each in a process of its own: OpenBLAS chooses its kernels once, when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import shapes

import nibblas
from nibblas.cli import _bench, _measure, _text
from nibblas.cli.bench import BLAS_VARIABLES, share

GOALS = {
    # target: {(rows, scheme): speed-up over NumPy float32}
    "avx512vnni": {(128, "int4-g32"): 4.0, (128, "int8"): 5.0, (1, "int4-g32"): 4.0},
    "avx2": {(128, "int4-g32"): 1.5, (128, "int8"): 1.2},
}

ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

HELD_TO_AVX2 = {
    "NIBBLAS_TARGET": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}

CHECKED_COLS = 64


def environment(hold: Mapping[str, str]) -> dict[str, str]:
    """This process's, with NumPy on one thread and free of settings that choose kernels."""
    kept = {k: v for k, v in os.environ.items() if k not in (*BLAS_VARIABLES, "NIBBLAS_TARGET")}
    return {**kept, **dict.fromkeys(ONE_THREAD, "1"), **hold}


def in_child(arguments: argparse.Namespace, hold: Mapping[str, str]) -> dict[str, Any]:
    """What `measure` finds in a new process with that environment."""
    command = [sys.executable, __file__, "--child"]
    command += ["--shape", arguments.shape, "--seconds", str(arguments.seconds)]
    child = subprocess.run(command, env=environment(hold), stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(child.stdout)
    return report


def measure(shape: _bench.Shape, seconds: float) -> dict[str, Any]:
    """All results of this process's target."""
    held = os.environ.get("OPENBLAS_CORETYPE")
    blas = blas_kernels()
    if held and any(name.startswith("openblas") and held not in name for name in blas):
        raise RuntimeError(f"NumPy uses {', '.join(blas)}, although OPENBLAS_CORETYPE={held}")
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((shape.cols, shape.depth), np.float32)
    results = []
    for cold, (rows, labels) in ((False, shapes.SPEED_WARM), (True, shapes.SPEED_COLD)):
        x = rng.standard_normal((rows, shape.depth), np.float32)
        products = [_bench.numpy_product(x, _bench.dense_weight_copies(dense, cold))]
        for choice in _bench.parse_schemes(",".join(labels)):
            copies = _bench.packed_copies(choice.quantize(dense), cold)
            products.append(_bench.packed_product(x, choice.label, copies, "int8", threads=1))
        results += case(shape, x, products, cold, seconds)
    return {
        "version": nibblas.__version__,
        "numpy_version": np.__version__,
        "target": nibblas.target(),
        "available_targets": nibblas.available_targets(),
        "cpu": nibblas.cpu_info().get("brand", ""),
        "blas": blas,
        "results": results,
    }


def blas_kernels() -> list[str]:
    """Such as "openblas SkylakeX"; empty where threadpoolctl is not installed."""
    try:
        import threadpoolctl
    except ImportError:
        return []
    found = threadpoolctl.threadpool_info()
    return [
        f"{library['internal_api']} {library.get('architecture', '')}".strip()
        for library in found
        if library["user_api"] == "blas"
    ]


def case(
    shape: _bench.Shape,
    x: np.ndarray,
    products: list[_bench.Product],
    cold: bool,
    seconds: float,
) -> list[dict[str, Any]]:
    """Results of all but the first product, which is the baseline."""
    peaks: list[float] = []
    contenders = [product.contender for product in products]
    _measure.run_rounds(
        contenders,
        seconds,
        _measure.CLOCKS["thread CPU"],
        warm=not cold,
        between=lambda: peaks.append(_measure.peak_gops(1)),
    )
    peak = statistics.median(peaks)
    results = []
    for product in products[1:]:
        check(x, product)
        contender = product.contender
        speedups = contender.speedups(contenders[0])
        gops = 2.0 * len(x) * shape.cols * shape.depth / contender.seconds / 1e9
        gbps = contender.nbytes / contender.seconds / 1e9
        read = _measure.read_gbps(_measure.COLD_BYTES if cold else contender.nbytes, 1)
        results.append(
            {
                "shape": [shape.cols, shape.depth],
                "rows": len(x),
                "cold": cold,
                "scheme": contender.label,
                "rounds": len(speedups),
                "seconds": contender.seconds,
                "numpy_seconds": contenders[0].seconds,
                "speedup": statistics.median(speedups),
                "speedup_quartiles": _measure.quartiles(speedups),
                "gops": gops,
                "peak_share": gops / peak,
                "gbps": gbps,
                "read_share": gbps / read,
            }
        )
    return results


def check(x: np.ndarray, product: _bench.Product) -> None:
    """Raise if what was timed was wrong: 8-bit activations err by about 0.5 to 1 %."""
    assert product.weight is not None
    some = np.arange(min(CHECKED_COLS, product.weight.shape[0]))
    expected = x.astype(np.float64) @ product.weight.take(some).T.astype(np.float64)
    error = _measure.relative_rms(product.out[:, : len(some)], expected)
    if not error < 2e-2:
        raise RuntimeError(f"{product.contender.label}: the outputs' relative error is {error:.1e}")


def judge(report: dict[str, Any]) -> None:
    """Add each result's goal, None where there is none, and whether it is met."""
    goals = GOALS.get(report["target"], {})
    for result in report["results"]:
        goal = goals.get((result["rows"], result["scheme"]))
        result["goal"] = goal
        result["passed"] = None if goal is None else result["speedup"] >= goal


def as_text(reports: list[dict[str, Any]]) -> str:
    headers = ("target", "NumPy's BLAS", "rows", "weights", "scheme", "NumPy", "nibblas")
    headers += ("of peak", "of read", "speed-up", "quartiles", "goal", "")
    lines = []
    for report in reports:
        for result in report["results"]:
            low, high = map(_text.digits, result["speedup_quartiles"])
            goal, passed = result["goal"], result["passed"]
            lines.append(
                (
                    report["target"],
                    ", ".join(report["blas"]) or "unknown",
                    str(result["rows"]),
                    "cold" if result["cold"] else "warm",
                    result["scheme"],
                    _text.duration(result["numpy_seconds"]),
                    _text.duration(result["seconds"]),
                    share(result["peak_share"]),
                    share(result["read_share"]),
                    f"{_text.digits(result['speedup'])}x",
                    f"{low}..{high}",
                    "-" if goal is None else f">= {goal:g}x",
                    "" if passed is None else "pass" if passed else "MISS",
                )
            )
    cols, depth = reports[0]["results"][0]["shape"]
    return (
        f"{cols}x{depth}, 1 thread, {reports[0]['cpu']}; medians of rounds, NumPy float32 in the "
        f"same rounds\n\n{_text.table(headers, lines, left=5)}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default=shapes.SPEED_SHAPE, metavar="NxK")
    parser.add_argument("--seconds", type=float, default=2.0, help="per contender; default: 2")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    shape = _bench.parse_shapes(arguments.shape)[0]
    if arguments.child:
        print(json.dumps(measure(shape, arguments.seconds)))
        return 0
    reports = [in_child(arguments, {})]
    if reports[0]["target"] != "avx2" and "avx2" in reports[0]["available_targets"]:
        reports.append(in_child(arguments, HELD_TO_AVX2))
    for report in reports:
        judge(report)
    print(json.dumps(reports, indent=2) if arguments.json else as_text(reports))
    if not arguments.check:
        return 0
    verdicts = {result["passed"] for report in reports for result in report["results"]}
    if verdicts == {None}:
        print(f"speed.py: there is no goal for target {reports[0]['target']}", file=sys.stderr)
    return 0 if True in verdicts and False not in verdicts else 1


if __name__ == "__main__":
    raise SystemExit(main())
