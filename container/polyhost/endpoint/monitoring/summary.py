"""
What one metric was in some time, as CloudWatch keeps it: values, and how often each occurred. Pure.

Sums, averages, counts, the least and the greatest are exact. A percentile is right within its value's class.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from polyhost.endpoint.measures.emf import Datum

# More values than a histogram has classes come of a minute that was read again and again while it was not over.
_MOST_VALUES = 100
STATISTICS = ("SampleCount", "Average", "Sum", "Minimum", "Maximum")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,10})?|100)", re.ASCII)


class Summary(NamedTuple):
    """`values` rise."""

    values: tuple[float, ...]
    counts: tuple[int, ...]
    lowest: float
    highest: float

    @property
    def times(self) -> int:
        return sum(self.counts)

    @property
    def total(self) -> float:
        return math.fsum(value * count for value, count in zip(self.values, self.counts, strict=True))

    def percentile(self, percent: float) -> float:
        """What that share of all do not exceed."""
        if percent >= 100:
            return self.highest
        due = max(1, math.ceil(percent / 100 * self.times))
        for value, count in zip(self.values, self.counts, strict=True):
            due -= count
            if due <= 0:
                return value
        return self.highest

    def statistic(self, name: str) -> float:
        """One of STATISTICS, or a percentile such as `p99`."""
        match name:
            case "SampleCount":
                return float(self.times)
            case "Average":
                return self.total / self.times
            case "Sum":
                return self.total
            case "Minimum":
                return self.lowest
            case "Maximum":
                return self.highest
            case _:
                return self.percentile(float(name.removeprefix("p")))


def is_percentile(name: str) -> bool:
    return _PERCENTILE.fullmatch(name) is not None


def summary_of(datum: Datum) -> Summary:
    value = datum.value
    if isinstance(value, dict):
        return Summary(tuple(value["Values"]), tuple(value["Counts"]), value["Min"], value["Max"])
    return Summary((value,), (1,), value, value)


def together(summaries: Iterable[Summary]) -> Summary:
    """The summary of all values of `summaries`, of which there is at least one."""
    summaries = list(summaries)
    if len(summaries) == 1:
        return summaries[0]
    counts: dict[float, int] = {}
    for summary in summaries:
        for value, count in zip(summary.values, summary.counts, strict=True):
            counts[value] = counts.get(value, 0) + count
    return Summary(
        tuple(sorted(counts)),
        tuple(counts[value] for value in sorted(counts)),
        min(summary.lowest for summary in summaries),
        max(summary.highest for summary in summaries),
    )


def condensed(summary: Summary) -> Summary:
    """With as few values as are kept: neighbours become their mean."""
    excess = len(summary.values) - _MOST_VALUES
    if excess <= 0:
        return summary
    step = math.ceil(len(summary.values) / _MOST_VALUES)
    values, counts = [], []
    for start in range(0, len(summary.values), step):
        some = slice(start, start + step)
        count = sum(summary.counts[some])
        total = math.fsum(v * c for v, c in zip(summary.values[some], summary.counts[some], strict=True))
        values.append(total / count)
        counts.append(count)
    return Summary(tuple(values), tuple(counts), summary.lowest, summary.highest)


def written(summary: Summary) -> str:
    return json.dumps(summary, separators=(",", ":"))


def read(text: str) -> Summary:
    values, counts, lowest, highest = json.loads(text)
    return Summary(tuple(values), tuple(counts), lowest, highest)
