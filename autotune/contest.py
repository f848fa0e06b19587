"""Who is faster: rounds in which candidates take turns, ratios with their confidence interval, and when one beats the
incumbent. The same rules hold whatever gives the times: a CPU, a GPU, or a static model (whose interval has no width).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Played = TypeVar("Played")
SLOW = 1.25
"""A candidate this much slower than the default in the first rounds is not timed further."""
FIRST, MORE, FINAL = 3, 9, 25
"""Rounds of a first look, of a trial, and of a final."""
WORTH = 0.99
"""A winner must take less than this share of the incumbent's time."""
PREDICTED_WORTH = 0.9
"""The same of predictions. They may be a tenth off: on an H100 half of a step's kernels are within 3 to 6% of the
static model, and a form of attention forward that it gave 6% less time took 18% more."""
LEAST = 3
"""Rounds that are run however long they take."""


@dataclass(frozen=True)
class Ratio:
    """Time of one over another, from interleaved timings: `low` and `high` are its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        return (self.high - self.low) / 2

    @property
    def beats(self) -> bool:
        """Whether the one wins against the other: by more than is worth a change, and beyond noise."""
        return self.value < WORTH and self.high < 1.0


def beats_by_prediction(ours: float, theirs: float) -> bool:
    """Whether one prediction is less than another by more than predictions are wrong."""
    return ours < PREDICTED_WORTH * theirs


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios; its interval by the order statistics of the median (no distribution is
    assumed, so that a round disturbed by another program shifts ranks and not means)."""
    logs = sorted(math.log(a / b) for a, b in zip(ours, theirs, strict=True))
    n = len(logs)
    if n < 6:
        return Ratio(math.exp(statistics.median(logs)), math.exp(logs[0]), math.exp(logs[-1]))
    reach = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach) - 1)
    return Ratio(math.exp(statistics.median(logs)), math.exp(logs[low]), math.exp(logs[high]))


def turns(players: Sequence[Callable[[], Played]], rounds: int, seconds: float) -> list[list[Played]]:
    """What each player gives, its time, one a round, every other round in reverse order: at least LEAST rounds, at most
    `rounds` or about `seconds`. Rounds of all players are of the same length, so that what slows the machine down slows
    all."""
    out: list[list[Played]] = [[] for _ in players]
    order = range(len(players))
    end = time.perf_counter() + seconds
    for i in range(rounds):
        if i >= LEAST and time.perf_counter() > end:
            break
        for j in order if i % 2 else reversed(order):
            out[j].append(players[j]())
    return out


def winner(times: Sequence[Sequence[float]]) -> int:
    """Which of the players wins over the first, the incumbent; 0 unless one beats it."""
    ratios = [ratio(t, times[0]) for t in times]
    best = min(range(1, len(ratios)), key=lambda i: ratios[i].value, default=0)
    return best if best and ratios[best].beats else 0
