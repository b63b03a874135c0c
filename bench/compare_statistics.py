# SPDX-License-Identifier: Apache-2.0
"""What compare.py concludes from its samples: Student's t, Holm's correction, verdicts.

An observation is the median log ratio of one pair of processes, not of one round: where a process
has its memory and its code moves its times by some per cent for as long as it lives, and more
rounds only make that look certain. Pairs of processes are independent of each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A ratio of times, its interval (of this case alone), and how likely chance does as much."""

    ratio: float
    low: float
    high: float
    p: float


def t_within(t: float, freedom: int) -> float:
    """The probability that Student's t with so many degrees of freedom lies in -t .. t.

    The integral is a finite series for whole degrees: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if freedom < 1:
        raise ValueError(f"freedom must be at least 1, got {freedom}")
    angle = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    value = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, value)


def t_quantile(within: float, freedom: int) -> float:
    """The t for which `t_within` is that probability, by bisection."""
    if not 0 <= within < 1:
        raise ValueError(f"a probability in 0 .. 1 is expected, got {within}")
    low, high = 0.0, 1.0
    while t_within(high, freedom) < within:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        if t_within(middle, freedom) < within:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def estimate(logs: Sequence[float]) -> Estimate:
    """From one log ratio for each pair of processes; a single one has no interval."""
    mean = statistics.fmean(logs)
    ratio = math.exp(mean)
    if len(logs) < 2:
        return Estimate(ratio, 0.0, math.inf, 1.0)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    if error == 0:
        return Estimate(ratio, ratio, ratio, 0.0 if mean else 1.0)
    freedom = len(logs) - 1
    # exp() would overflow for the widest intervals of two observations.
    half = min(t_quantile(CONFIDENCE, freedom) * error, 700 - abs(mean))
    p = 1 - t_within(mean / error, freedom)
    return Estimate(ratio, math.exp(mean - half), math.exp(mean + half), p)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted so that with a limit of 5 % a run of equal cases names any in at most 5 % of runs.

    Holm's step-down: the smallest p times the number of cases, the next times one less, and so on,
    none smaller than the one before.
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def verdict(found: Estimate, adjusted_p: float, least: float) -> str:
    """ "slower" or "faster" if that is no chance and at least the share `least`, else "equal"."""
    if adjusted_p >= 1 - CONFIDENCE or abs(math.log(found.ratio)) < math.log1p(least):
        return "equal"
    return "slower" if found.ratio > 1 else "faster"


def vague(found: Estimate, least: float) -> bool:
    """Whether the interval is wider than all that counts as equal, so that "equal" says little."""
    return found.high > (1 + least) ** 2 * found.low
