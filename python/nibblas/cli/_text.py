# SPDX-License-Identifier: Apache-2.0
"""Plain text for terminals: tables, numbers with units, a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TextIO


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as they need to be, the first `left` of them flush left, others right."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def duration(seconds: float) -> str:
    """Three digits and a unit: "12.3 us"."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds)} s"


def size(nbytes: float) -> str:
    """Bytes with a decimal unit: "9.4 MB"."""
    for factor, unit in ((1, "B"), (1e3, "kB"), (1e6, "MB")):
        if nbytes / factor < 999.5:
            return f"{nbytes / factor:.{0 if factor == 1 else 1}f} {unit}"
    return f"{nbytes / 1e9:.2f} GB"


def digits(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def percent(share: float) -> str:
    """A share as whole per cent."""
    return f"{100 * share:.0f}%"


class Progress:
    """A bar on one line of standard error; nothing at all if that is no terminal.

    >>> with Progress(2) as progress:
    ...     progress.step("first")
    ...     progress.step("second")
    """

    WIDTH = 24

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total
        self._done = 0.0
        self._last = 0.0
        self._enabled = self._stream.isatty()

    def step(self, label: str, amount: float = 1) -> None:
        """Show `label` as what comes next, then count `amount` more as begun."""
        if self._enabled and (time.monotonic() - self._last > 0.1 or not self._done):
            self._last = time.monotonic()
            share = min(self._done / self._total, 1.0) if self._total else 1.0
            bar = ("#" * round(share * self.WIDTH)).ljust(self.WIDTH, ".")
            self._stream.write(f"\r\x1b[K[{bar}] {percent(share):>4}  {label[:48]}")
            self._stream.flush()
        self._done += amount

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
