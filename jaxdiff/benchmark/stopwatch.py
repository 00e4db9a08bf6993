"""Timings: calls in turn, their medians and spread, and the lines in which a report tells them.

Two programs are compared by turns (a, b, a, b, ...) and by the median of the ratios of neighbours, so that a machine that
slows down for a while slows both. Every call is waited for on the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Seconds: the `median` and the quartiles `low` and `high` of so many `repeats`."""

    median: float
    low: float
    high: float
    repeats: int

    def over(self, each: int) -> Timing:
        """For one of the `each` equal pieces of work that were timed together."""
        return Timing(self.median / each, self.low / each, self.high / each, self.repeats)

    def figures(self) -> dict[str, Any]:
        """For machines."""
        return {"seconds": self.median, "quartiles": [self.low, self.high], "repeats": self.repeats}

    def __str__(self) -> str:
        return f"{self.median:.4g} s ({self.low:.4g} to {self.high:.4g})"


class Ratio(NamedTuple):
    """`value`, the median of a/b over neighbouring calls, and the seconds of each."""

    value: float
    a: Timing
    b: Timing

    def over(self, each: int) -> Ratio:
        """For one of the `each` equal pieces of work that were timed together."""
        return Ratio(self.value, self.a.over(each), self.b.over(each))

    def said(self, a: str, b: str) -> str:
        """For people, the two by their names."""
        return f"{self.value:.3f} x  {a}: {self.a}; {b}: {self.b}; {self.a.repeats} pairs"

    def figures(self) -> dict[str, Any]:
        """For machines."""
        return {"ratio": self.value, "pairs": self.a.repeats, "seconds": [self.a.median, self.b.median],
                "quartiles": [[part.low, part.high] for part in (self.a, self.b)]}


class Line(NamedTuple):
    """What was measured: its `name`, a `text` for people (whose first word is the figure) and the `figures` for machines."""

    name: str
    text: str
    figures: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name:10} {self.text}" if self.name else self.text


def seconds(fn: Callable[[], Any]) -> float:
    """The time of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def in_turn(calls: Sequence[Callable[[], Any]], budget: float, least: int = 5) -> list[list[float]]:
    """Seconds of each repeat of each call, one after another until `budget` seconds are over, at least `least` of each.

    Every call is made once before, unmeasured.
    """
    for call in calls:
        jax.block_until_ready(call())
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + budget
    while len(times[0]) < least or time.perf_counter() < end:
        for call, found in zip(calls, times, strict=True):
            found.append(seconds(call))
    return times


def timing(times: Sequence[float]) -> Timing:
    """Median and quartiles of `times`, at least two.

    >>> timing([4.0, 1.0, 3.0, 2.0, 5.0])
    Timing(median=3.0, low=2.0, high=4.0, repeats=5)
    """
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, len(times))


def ratio(a: Callable[[], Any], b: Callable[[], Any], budget: float) -> Ratio:
    """a beside b, by turns for `budget` seconds, at least five pairs."""
    a_times, b_times = in_turn([a, b], budget)
    pairs = [x / y for x, y in zip(a_times, b_times, strict=True)]
    return Ratio(statistics.median(pairs), timing(a_times), timing(b_times))


def enough(fn: Callable[[], Any], least: float) -> int:
    """How many calls of `fn`, made once before, last `least` seconds: so many are timed together."""
    return max(1, int(least / max(min(seconds(fn) for _ in range(2)), 1e-4)))

