"""
What all models of a source are like, from those that were measured.

A model that was not measured is taken to be like the measured one whose archive is nearest in size: of its kind, as
quick, as slow to load. Its memory is a straight line of its archive's size, one line for each kind.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Less than a page no model takes.
_LEAST_BYTES = 4096


@dataclass(frozen=True)
class Measured:
    """
    One model of the sample.

    `store_secs` and `disk_secs`: its first call, its archive fetched from the source or on disk. `calls_secs`: calls
    of the loaded model; none where it refused every request. `is_first`: the first of its kind in its process, which
    pays for what the others find there; `is_first_from_disk`: likewise in the second server.
    """

    key: str
    kind: str
    archive_bytes: int
    grown_bytes: int
    is_first: bool
    store_secs: float
    disk_secs: float
    calls_secs: tuple[float, ...] = ()
    is_first_from_disk: bool = False


@dataclass(frozen=True)
class Line:
    """Memory of a model of one kind: `base_bytes + per_byte * archive_bytes`. `is_rough`: too few were measured."""

    kind: str
    count: int
    base_bytes: float
    per_byte: float
    is_rough: bool

    def memory_bytes(self, archive_bytes: int) -> int:
        return max(_LEAST_BYTES, round(self.base_bytes + self.per_byte * archive_bytes))


@dataclass(frozen=True)
class Fleet:
    """`sizes` and `measured_as` by key: the memory of each model, and the measured one that it is like."""

    archives: Mapping[str, int]
    lines: Mapping[str, Line]
    sizes: Mapping[str, int]
    measured_as: Mapping[str, Measured]

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def largest_bytes(self) -> int:
        return max(self.sizes.values())

    def per_gib(self, kind: str | None = None) -> int:
        """How many models fit into a GiB, as they come."""
        sizes = [size for key, size in self.sizes.items() if kind in (None, self.measured_as[key].kind)]
        return int(1024**3 // statistics.fmean(sizes))


def fleet_of(archives: Mapping[str, int], sample: Sequence[Measured]) -> Fleet:
    """`archives`: sizes by key, bytes. `sample` is not empty."""
    sample = [usual_times(one, sample) for one in sample]
    kinds = sorted({one.kind for one in sample})
    lines = {kind: line_of(kind, [one for one in sample if one.kind == kind]) for kind in kinds}
    measured_as = nearest(archives, sample)
    sizes = {key: lines[measured_as[key].kind].memory_bytes(size) for key, size in archives.items()}
    return Fleet(archives, lines, sizes, measured_as)


def line_of(kind: str, sample: Sequence[Measured]) -> Line:
    """By least squares; neither part is ever negative. What first models of a process pay is left out if it can be."""
    usual = [one for one in sample if not one.is_first]
    is_rough = len(usual) < 2
    points = [(one.archive_bytes, one.grown_bytes) for one in (sample if is_rough else usual)]
    base, per_byte = least_squares(points)
    return Line(kind, len(sample), base, per_byte, is_rough)


def usual_times(one: Measured, sample: Sequence[Measured]) -> Measured:
    """A first one was slowed by what happens once: it gets the median of the others of its kind, if there are any."""
    stores = [other.store_secs for other in sample if other.kind == one.kind and not other.is_first]
    disks = [other.disk_secs for other in sample if other.kind == one.kind and not other.is_first_from_disk]
    return dataclasses.replace(
        one,
        store_secs=statistics.median(stores) if one.is_first and stores else one.store_secs,
        disk_secs=statistics.median(disks) if one.is_first_from_disk and disks else one.disk_secs,
    )


def least_squares(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of y over x, both at least 0."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(set(xs)) < 2:
        return max(0.0, statistics.fmean(ys)), 0.0
    slope, base = statistics.linear_regression(xs, ys)
    if slope < 0:
        return max(0.0, statistics.fmean(ys)), 0.0
    if base < 0:  # the best line through the origin
        return 0.0, sum(x * y for x, y in points) / sum(x * x for x in xs)
    return base, slope


def nearest(archives: Mapping[str, int], sample: Sequence[Measured]) -> dict[str, Measured]:
    """For each key the measured model whose archive is nearest in size; itself, if it was measured."""
    own = {one.key: one for one in sample}
    ordered = sorted(sample, key=lambda one: one.archive_bytes)
    bounds = [(left.archive_bytes + right.archive_bytes) / 2 for left, right in itertools.pairwise(ordered)]
    return {key: own.get(key) or ordered[bisect.bisect_left(bounds, size)] for key, size in archives.items()}


def stratified(archives: Mapping[str, int], count: int) -> list[str]:
    """`count` keys (all, if there are no more) at even ranks of size, the smallest and the largest among them."""
    ordered = sorted(archives, key=lambda key: (archives[key], key))
    if len(ordered) <= count:
        return ordered
    if count == 1:
        return [ordered[len(ordered) // 2]]
    return [ordered[round(number * (len(ordered) - 1) / (count - 1))] for number in range(count)]
