# SPDX-License-Identifier: Apache-2.0
"""The picture of ``nibblas bench --plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nibblas.cli import _bench, _text


def check(path: str, option: str = "--plot") -> None:
    """Raise now what would be raised after the measurements."""
    pyplot = load_pyplot()
    kind = Path(path).suffix[1:].lower() or "png"
    kinds = sorted(pyplot.figure().canvas.get_supported_filetypes())
    pyplot.close("all")
    if kind not in kinds:
        raise ValueError(f"{option} draws {', '.join(kinds)}, got {path!r}")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {str(Path(path).parent)!r}")


def plot(report: dict[str, Any], path: str) -> None:
    """Bars of the speed-up over NumPy float32, a panel for each number of rows."""
    pyplot = load_pyplot()
    cases = [case for case in report["cases"] if case["error_dequantized"] is not None]
    labels = list(dict.fromkeys(case["contender"] for case in cases))
    shapes = list(dict.fromkeys(tuple(case["shape"]) for case in cases))
    speedups = {
        (case["rows"], case["contender"], tuple(case["shape"])): case["speedup"] for case in cases
    }
    figure, axes = pyplot.subplots(
        len(report["rows"]),
        1,
        squeeze=False,
        figsize=(max(6.5, 0.45 * (len(labels) + 1) * len(shapes)), 2.1 * len(report["rows"]) + 1.2),
        layout="constrained",
    )
    width = 0.84 / len(labels)
    for axis, rows in zip(axes[:, 0], report["rows"], strict=True):
        for i, label in enumerate(labels):
            places = [j + (i - (len(labels) - 1) / 2) * width for j in range(len(shapes))]
            values = [speedups[rows, label, shape] for shape in shapes]
            bars = axis.bar(
                places,
                values,
                width * 0.94,
                label=label if rows == report["rows"][0] else None,
                color=f"C{i}",
            )
            axis.bar_label(bars, [_text.digits(v) for v in values], fontsize=7, padding=1)
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(shapes)), [f"{cols}x{depth}" for cols, depth in shapes])
        axis.tick_params(axis="x", length=0)
        axis.margins(x=0.02, y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.grid(True, color="0.9")
        axis.set_axisbelow(True)
        axis.set_title(f"{rows} row{'s' if rows != 1 else ''}", fontsize="medium", loc="left")
    figure.supylabel(f"times as fast as {_bench.BASELINE}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=len(labels), frameon=False, fontsize="small")
    threads = f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"
    figure.suptitle(
        f"nibblas {report['version']}: {report['target']}, {threads}, "
        f"compute={report['compute']}, weights {'cold' if report['cold'] else 'warm'}\n"
        f"{report['cpu']}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install nibblas[plot]") from None
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
