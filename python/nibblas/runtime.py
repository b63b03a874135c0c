# SPDX-License-Identifier: Apache-2.0
"""Targets (the instruction sets kernels are compiled for) and threads of this process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from nibblas import _nibblas
from nibblas._arrays import thread_count
from nibblas.weights import PackedWeight, TransposedWeight


def target() -> str:
    """Name of the target in use: the best one this CPU runs, unless chosen otherwise.

    The environment variable NIBBLAS_TARGET chooses when the library is loaded, `use_target` later.
    """
    return _nibblas.target()


def available_targets() -> list[str]:
    """Names of the targets that this CPU runs, the best first."""
    return list(_nibblas.available_targets())


class use_target:
    """Use a target from now on, in the whole process; in a ``with`` block, until its end.

    Results do not change, only speed: every target computes the same bits. A call under way in
    another thread finishes with the target it began with.

    Parameters
    ----------
    name : str
        One of `available_targets`.

    Raises
    ------
    ValueError
        There is no such target here; the message lists those there are.

    Examples
    --------
    >>> with nibblas.use_target("scalar"):    # here only
    ...     nibblas.target()
    'scalar'
    >>> best = nibblas.available_targets()[0]
    >>> nibblas.use_target(best).name == best    # from now on
    True
    """

    __slots__ = ("former", "name")

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the target's name must be a string, got {type(name).__name__}")
        self.name = name
        self.former: str | None = None
        with contextlib.suppress(ValueError):  # a faulty NIBBLAS_TARGET, which this puts right
            self.former = _nibblas.target()
        _nibblas.set_target(name)

    def __enter__(self) -> use_target:
        _nibblas.set_target(self.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.former is not None:
            _nibblas.set_target(self.former)

    def __repr__(self) -> str:
        return f"use_target({self.name!r})"


def get_num_threads() -> int:
    """Threads that a call may use, the calling one included.

    At first NIBBLAS_NUM_THREADS, or the CPUs that this process may use: those of its affinity, or
    fewer if a control group limits their time.
    """
    return _nibblas.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, the calling one included; at least 1.

    Never changes a result. Small calls use fewer.
    """
    if n is None:
        raise TypeError("num_threads must be an int, got None")
    _nibblas.set_num_threads(thread_count(n))


def cpu_info() -> dict[str, Any]:
    """What was found out about this CPU: features, caches, CPUs allowed, targets and why not."""
    return dict(_nibblas.cpu_info())


def explain(
    x_shape: Sequence[int] | int,
    w: PackedWeight,
    compute: str = "int8",
    *,
    num_threads: int | None = None,
) -> dict[str, Any]:
    """How `linear` would compute ``x @ w.T``: target, kernel, tile, threads and the reason.

    Parameters
    ----------
    x_shape : sequence of int, or int
        Shape (..., K) of x.
    w : PackedWeight
        (N, K).
    compute : str
        As for `linear`.
    num_threads : int, optional
        As for `linear`.
    """
    if isinstance(w, TransposedWeight):
        w = w.T
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w must be a PackedWeight, got {type(w).__name__}")
    try:
        shape = tuple(size.__index__() for size in _as_sequence(x_shape))
    except (AttributeError, TypeError):
        raise TypeError(f"x_shape must be a shape, such as (8, {w.shape[1]})") from None
    if not shape or min(shape) < 0:
        raise ValueError(f"x_shape must be (..., K), got {shape}")
    if shape[-1] != w.shape[1]:
        raise ValueError(f"weight has {w.shape[1]} input features, x has {shape[-1]}")
    rows = math.prod(shape[:-1])
    return dict(_nibblas.explain(rows, w._native, compute, thread_count(num_threads)))


def _as_sequence(x_shape: Sequence[int] | int) -> Sequence[int]:
    return (x_shape,) if hasattr(x_shape, "__index__") else x_shape  # type: ignore[return-value]
