"""Durations by size: few enough classes for a dashboard and for CloudWatch, fine enough for percentiles."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Thirteen to a decade, each up to a quarter wider than the one before, from 10 µs to 100 s. One more class holds
# everything longer. They are fewer than 100, because CloudWatch takes no more values of a metric at once.
_STEPS = ("1", "1.2", "1.5", "1.8", "2.1", "2.5", "3", "3.5", "4.2", "5", "6", "7", "8.5")
BOUNDS_SECS = (*(float(f"{step}e{decade}") for decade in range(-5, 2) for step in _STEPS), 100.0)


class Observed(NamedTuple):
    """
    What was observed, as numbers that stand for many: the mean of each class and how many it had.

    So the sum, and with it the average, is exact; a percentile is right within its class.
    """

    values: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    lowest: float = math.inf
    highest: float = 0.0

    @property
    def times(self) -> int:
        return sum(self.counts)

    @property
    def total(self) -> float:
        return sum(value * count for value, count in zip(self.values, self.counts, strict=True))

    def percentile(self, share: float) -> float:
        """What `share` (0 to 1) of all do not exceed; 0.0 where nothing was observed."""
        due = math.ceil(share * self.times)
        for value, count in zip(self.values, self.counts, strict=True):
            due -= count
            if due <= 0:
                return value
        return 0.0


class Histogram:
    """Since it was made, and since it was last taken."""

    __slots__ = ("_highest", "_lowest", "_taken_counts", "_taken_sums", "counts", "sums")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_SECS) + 1)
        self.sums = [0.0] * (len(BOUNDS_SECS) + 1)
        self._taken_counts = self.counts.copy()
        self._taken_sums = self.sums.copy()
        self._lowest = math.inf
        self._highest = 0.0

    def add(self, secs: float) -> None:
        index = bisect_left(BOUNDS_SECS, secs)
        self.counts[index] += 1
        self.sums[index] += secs
        # Not min() and max(): several times the cost, three times a request.
        if secs < self._lowest:  # noqa: PLR1730
            self._lowest = secs
        if secs > self._highest:  # noqa: PLR1730
            self._highest = secs

    @classmethod
    def of(cls, counts: list[int], sums: list[float]) -> Histogram:
        """A histogram of another process's values. The lowest and the highest are known within their classes."""
        histogram = cls()
        histogram.counts, histogram.sums = counts, sums
        observed = observed_in(counts, sums)
        histogram._lowest, histogram._highest = observed.lowest, observed.highest
        return histogram

    def absorb(self, other: Histogram) -> None:
        self.counts = [own + added for own, added in zip(self.counts, other.counts, strict=True)]
        self.sums = [own + added for own, added in zip(self.sums, other.sums, strict=True)]
        self._lowest = min(self._lowest, other._lowest)
        self._highest = max(self._highest, other._highest)

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def total_secs(self) -> float:
        return sum(self.sums)

    def count_to(self, bound_secs: float) -> int:
        """How many did not exceed `bound_secs`, one of BOUNDS_SECS."""
        return sum(self.counts[: bisect_left(BOUNDS_SECS, bound_secs) + 1])

    def take(self) -> Observed:
        """What was observed since the last time."""
        observed = self._since_taken()
        self._taken_counts, self._taken_sums = self.counts.copy(), self.sums.copy()
        self._lowest, self._highest = math.inf, 0.0
        return observed

    def _since_taken(self) -> Observed:
        counts = [now - then for now, then in zip(self.counts, self._taken_counts, strict=True)]
        sums = [now - then for now, then in zip(self.sums, self._taken_sums, strict=True)]
        return observed_in(counts, sums)._replace(lowest=self._lowest, highest=self._highest)


def observed_in(counts: Sequence[int], sums: Sequence[float]) -> Observed:
    classes = [(total / count, count) for count, total in zip(counts, sums, strict=True) if count]
    if not classes:
        return Observed()
    values, occurrences = zip(*classes, strict=True)
    return Observed(values, occurrences, values[0], values[-1])


def observed_together(histograms: Iterable[Histogram]) -> Observed:
    """What several histograms have observed since they were made."""
    filled = [(histogram.counts, histogram.sums) for histogram in histograms if any(histogram.counts)]
    if not filled:
        return Observed()
    counts, sums = zip(*filled, strict=True)
    return observed_in(
        [sum(column) for column in zip(*counts, strict=True)], [sum(column) for column in zip(*sums, strict=True)]
    )
