"""Whether something grows: slopes of what was sampled over time, and what a slope may be at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MIB = 1024**2
_SECS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Limit:
    """
    A slope above `per_hour` is a leak, once `grown` has been added in all.

    A few minutes' noise, divided by a few minutes, can look like any slope: `grown` is what noise does not reach.
    """

    unit: str
    per_hour: float
    grown: float


# Memory: a leak of half a kilobyte with each of a hundred requests a second is 170 MiB an hour.
LIMITS: Mapping[str, Limit] = {
    "memory": Limit("MiB", 40, 12),
    "descriptors": Limit("", 30, 8),
    "threads": Limit("", 20, 5),
    "files": Limit("", 60, 12),
    "processes": Limit("", 10, 3),
}


@dataclass(frozen=True)
class Series:
    """One measure of one kind of process: `values` at `secs` after the begin."""

    measure: str
    of: str
    secs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Trend:
    series: Series
    first: float
    last: float
    per_hour: float

    @property
    def is_leak(self) -> bool:
        limit = LIMITS[self.series.measure]
        return self.per_hour > limit.per_hour and self.last - self.first > limit.grown

    @property
    def sentence(self) -> str:
        limit = LIMITS[self.series.measure]
        unit = f" {limit.unit}" if limit.unit else ""
        return (
            f"{self.series.measure} of {self.series.of} grew from {self.first:.0f} to {self.last:.0f}{unit}, "
            f"{self.per_hour:.0f}{unit} an hour; at most {limit.per_hour:.0f}{unit} an hour are allowed"
        )


def trend(series: Series, warm_up_secs: float) -> Trend:
    """
    Of what came after the warm-up: Theil's and Sen's slope, the median of the slopes between all pairs of samples.

    A single high sample, a request with a large body say, does not move it. `first` and `last` are medians of the
    first and the last fifth.
    """
    kept = [(at, value) for at, value in zip(series.secs, series.values, strict=True) if at >= warm_up_secs]
    if len(kept) < 5:
        raise ValueError(f"{len(kept)} samples after the warm-up are too few for a slope. Let it run for longer.")
    secs, values = (np.asarray(column, dtype=np.float64) for column in zip(*kept, strict=True))
    fifth = max(1, len(kept) // 5)
    first, last = float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
    return Trend(series, first, last, _median_slope(secs, values) * _SECS_PER_HOUR)


def table(trends: Sequence[Trend]) -> str:
    """In Markdown."""
    lines = [
        "| what | of | after the warm-up | at the end | an hour | limit | |",
        "| --- | --- | --: | --: | --: | --: | --- |",
    ]
    for one in trends:
        limit = LIMITS[one.series.measure]
        unit = f" {limit.unit}" if limit.unit else ""
        lines.append(
            f"| {one.series.measure} | {one.series.of} | {one.first:.1f}{unit} | {one.last:.1f}{unit} "
            f"| {one.per_hour:+.1f}{unit} | {limit.per_hour:.0f}{unit} | {'**leak**' if one.is_leak else 'ok'} |"
        )
    return "\n".join(lines)


def _median_slope(secs: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    earlier, later = np.triu_indices(len(secs), 1)
    return float(np.median((values[later] - values[earlier]) / (secs[later] - secs[earlier])))
