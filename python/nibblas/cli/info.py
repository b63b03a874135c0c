# SPDX-License-Identifier: Apache-2.0
"""What nibblas found on this machine: CPU, targets and why, threads and why, versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

import numpy as np

import nibblas
from nibblas import _nibblas
from nibblas.cli import _text

THREADS_VARIABLE = "NIBBLAS_NUM_THREADS"
TARGET_VARIABLE = "NIBBLAS_TARGET"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nibblas info``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what `collect` finds."""
    info = collect()
    print(json.dumps(info, indent=2) if arguments.json else as_text(info))
    return 0


def collect() -> dict[str, Any]:
    """Everything the command tells, as plain values."""
    cpu = nibblas.cpu_info()
    return {
        "version": nibblas.__version__,
        "build": _nibblas.build_info(),
        "layout_version": _nibblas.LAYOUT_VERSION,
        "contract_version": _nibblas.CONTRACT_VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu,
        "target": nibblas.target(),
        "target_from": TARGET_VARIABLE if os.environ.get(TARGET_VARIABLE) else "the best available",
        "available_targets": nibblas.available_targets(),
        "num_threads": nibblas.get_num_threads(),
        "num_threads_from": _threads_from(cpu),
    }


def _threads_from(cpu: dict[str, Any]) -> str:
    if os.environ.get(THREADS_VARIABLE):
        return THREADS_VARIABLE
    affinity, logical, quota = (cpu.get(key) for key in ("affinity", "logical", "quota"))
    source = f"{affinity} of {logical} CPUs allowed"
    return f"{source}, time for {quota:g} granted" if quota is not None else source


def as_text(info: dict[str, Any]) -> str:
    """The same for people."""
    cpu, build = info["cpu"], info["build"]
    lines = [
        ("nibblas", f"{info['version']} ({build.get('compiler', '?')}, {build['build_type']})"),
        ("Python", f"{info['python']}, NumPy {info['numpy']}, {info['platform']}"),
        ("CPU", cpu.get("brand") or cpu.get("vendor") or platform.machine()),
        ("caches", _caches(cpu.get("caches", {}))),
        ("features", " ".join(cpu.get("features", ())) or "none that nibblas uses"),
        ("threads", f"{info['num_threads']} ({info['num_threads_from']})"),
        ("target", f"{info['target']} ({info['target_from']})"),
    ]
    text = "\n".join(f"{name:<10}{value}" for name, value in lines)
    return f"{text}\n\n{_targets(cpu.get('targets', ()), info['target'])}"


def _caches(caches: dict[str, int]) -> str:
    known = [f"{name.upper()} {n / 1024:g} KiB" for name, n in caches.items() if n]
    return ", ".join(known) or "unknown"


def _targets(targets: list[dict[str, Any]], chosen: str) -> str:
    rows = []
    for target in targets:
        state = "in use" if target["name"] == chosen else "available"
        if not target["available"]:
            state = f"no: {target['reason']}"
        rows.append((target["name"], target["description"], state))
    return _text.table(("target", "what it is", "here"), rows, left=3)
