# SPDX-License-Identifier: Apache-2.0
"""The pictures of ``nibblas bench --peers``: speed against rows, and a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nibblas.cli._plot import load_pyplot
from nibblas.cli.peers._base import KINDS

COLORS = {
    "nibblas": "C3",
    "nibblas float32": "C1",
    "numpy": "0.55",
    "onnxruntime": "C0",
    "torch": "C4",
    "openvino": "C2",
    "litert": "C9",
    "ggml": "C5",
}
"""One for each library; what has several products gets several markers."""

MARKERS = "os^Dv"


def speeds(report: dict[str, Any], path: str) -> None:
    """GOP/s against rows: a panel for each weight, a line for each product, the limit dashed.

    Warm weights are lines, cold ones are hollow markers on dotted lines.
    """
    pyplot = load_pyplot()
    shapes, kinds = report["shapes"], report["kinds"]
    columns = min(3, len(kinds)) if len(shapes) == 1 else len(kinds)
    lines = -(-len(kinds) * len(shapes) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        squeeze=False,
        figsize=(3.5 * columns, 2.9 * lines + 1),
        layout="constrained",
    )
    panels = [(shape, kind) for shape in shapes for kind in kinds]
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes.flat, panels, strict=False):
        cases = [c for c in report["cases"] if [c["shape"], c["kind"]] == list(panel)]
        handles |= _speed_panel(axis, cases, report["rows"])
        cols, depth = panel[0]
        axis.set_title(f"{cols}x{depth} {KINDS[panel[1]].name}", fontsize="medium", loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    # The limits last, whichever panel has brought them.
    ordered = sorted(handles, key=lambda label: label.startswith("limit"))
    handles = {label: handles[label] for label in ordered}
    _finish(figure, axes, handles, "rows", report, path, ncols=min(3, columns))


def _speed_panel(axis: Any, cases: Sequence[dict[str, Any]], rows: Sequence[int]) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for cold in (False, True):
        chosen = [case for case in cases if case["cold"] is cold]
        limits = {case["rows"]: case["limit_gops"] for case in chosen}
        if limits:
            name = f"limit, weights {'cold' if cold else 'warm'}"
            (handles[name],) = axis.plot(
                limits.keys(), limits.values(), color="black", lw=1, ls=":" if cold else "--"
            )
        for label, color, marker in _styles(chosen):
            points = {c["rows"]: c["gops"] for c in chosen if c["contender"] == label}
            (line,) = axis.plot(
                points.keys(),
                points.values(),
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1.0 if cold else 1.4,
                linestyle=":" if cold else "-",
                markerfacecolor="white" if cold else color,
                zorder=3 if label.startswith("nibblas") else 2,
            )
            handles.setdefault(label, line)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(rows, [str(count) for count in rows])
    axis.minorticks_off()
    _tidy(axis)
    return handles


def _styles(cases: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(product, color, marker)."""
    seen: dict[str, list[str]] = {}
    for case in cases:
        label = case["contender"]
        family = label if label in COLORS else case["peer"]
        products = seen.setdefault(family, [])
        if label not in products:
            products.append(label)
    return [
        (label, COLORS.get(family, "C7"), MARKERS[i % len(MARKERS)])
        for family, products in seen.items()
        for i, label in enumerate(products)
    ]


def roofline(report: dict[str, Any], path: str) -> None:
    """GOP/s against operations per byte of weights: ours filled, each case's best peer hollow.

    A panel for each shape; the roofs are the bandwidth of reading and the peak of dot products.
    Weights are cold where that was measured.
    """
    pyplot = load_pyplot()
    shapes = report["shapes"]
    columns = min(3, len(shapes))
    lines = -(-len(shapes) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        squeeze=False,
        figsize=(max(6.0, 4.2 * columns), 3.8 * lines + 1),
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for axis, shape in zip(axes.flat, shapes, strict=False):
        cases = [case for case in report["cases"] if case["shape"] == shape]
        handles |= _roof_panel(axis, cases, report["kinds"])
        axis.set_title(f"{shape[0]}x{shape[1]}", fontsize="medium", loc="left")
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    _finish(figure, axes, handles, "operations per byte of weights", report, path, ncols=4)


def _roof_panel(axis: Any, cases: Sequence[dict[str, Any]], kinds: Sequence[str]) -> dict[str, Any]:
    cold = {(case["kind"], case["rows"]) for case in cases if case["cold"]}
    chosen = [case for case in cases if case["cold"] or (case["kind"], case["rows"]) not in cold]
    handles: dict[str, Any] = {}
    for i, kind in enumerate(kinds):
        color = f"C{i}"
        ours = [c for c in chosen if c["kind"] == kind and c["contender"] == "nibblas"]
        points = [(_intensity(case), case["gops"]) for case in ours]
        best = []
        for case in ours:
            rivals = [
                c
                for c in chosen
                if (c["kind"], c["rows"]) == (kind, case["rows"])
                and c.get("matching")
                and c["against"] == "nibblas"
            ]
            if rivals:
                peer = max(rivals, key=lambda rival: rival["gops"])
                best.append((_intensity(peer), peer["gops"]))
        (handles[kind],) = axis.plot(*_columns(points), color=color, marker="o", ms=4, lw=1.2)
        axis.plot(*_columns(best), color=color, marker="s", ms=4, ls="", mfc="white")
    (handles["best peer (hollow)"],) = axis.plot(
        [], [], color="0.4", marker="s", ls="", mfc="white"
    )
    reads = [c["read_gbps"] for c in cases if c["cold"]] or [c["read_gbps"] for c in cases]
    peak = max(case["peak_gops"] for case in cases)
    bandwidth = sorted(reads)[len(reads) // 2]
    ridge = peak / bandwidth
    of_ours = [_intensity(case) for case in chosen if case["contender"] == "nibblas"]
    places = sorted({*of_ours, ridge})
    (handles["limit"],) = axis.plot(
        places, [min(peak, bandwidth * place) for place in places], color="black", lw=1, ls="--"
    )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    _tidy(axis)
    return handles


def _intensity(case: dict[str, Any]) -> float:
    cols, depth = case["shape"]
    return float(2 * case["rows"] * cols * depth / case["nbytes"])


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _tidy(axis: Any) -> None:
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.grid(True, color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _finish(
    figure: Any,
    axes: Any,
    handles: dict[str, Any],
    xlabel: str,
    report: dict[str, Any],
    path: str,
    ncols: int,
) -> None:
    """Labels, legend, title; then the file."""
    pyplot = load_pyplot()
    for axis in axes.flat:
        axis.set_xlabel(xlabel, fontsize="small")
    for axis in axes[:, 0]:
        axis.set_ylabel("GOP/s", fontsize="small")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=ncols,
        frameon=False,
        fontsize="small",
    )
    threads = f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"
    figure.suptitle(
        f"nibblas {report['version']}: {report['target']}, {threads}\n{report['cpu']}",
        fontsize="medium",
    )
    # Equal figures make equal files: no date, no random names of clip paths.
    with pyplot.rc_context({"svg.hashsalt": "nibblas", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)
    pyplot.close(figure)
