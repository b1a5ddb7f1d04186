"""What Locust wrote: the users' side of a load test."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PERCENTILES = ("50%", "95%", "99%")


@dataclass(frozen=True)
class Moment:
    """One second of the test; percentiles, ms, are of the last ten seconds, None where there were no answers."""

    moment_secs: float
    users: int
    requests_per_sec: float
    failures_per_sec: float
    percentiles_ms: tuple[float | None, ...]


@dataclass(frozen=True)
class Client:
    """`percentiles_ms` of the whole test. `errors`: how often, by what was answered."""

    requests: int
    failures: int
    requests_per_sec: float
    percentiles_ms: tuple[float, ...]
    errors: Mapping[str, int]
    history: Sequence[Moment]


def read(folder: Path) -> Client:
    """Of `--csv FOLDER/locust --csv-full-history`. Raises OSError, ValueError, LookupError."""
    with (folder / "locust_stats.csv").open(newline="") as file:
        (total,) = [row for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    with (folder / "locust_failures.csv").open(newline="") as file:
        errors = {row["Error"]: int(row["Occurrences"]) for row in csv.DictReader(file)}
    with (folder / "locust_stats_history.csv").open(newline="") as file:
        history = [_moment(row) for row in csv.DictReader(file) if row["Name"] == "Aggregated"]
    return Client(
        int(total["Request Count"]),
        int(total["Failure Count"]),
        float(total["Requests/s"]),
        tuple(float(total[name]) for name in PERCENTILES),
        errors,
        history,
    )


def _moment(row: dict[str, str]) -> Moment:
    return Moment(
        float(row["Timestamp"]),
        int(row["User Count"]),
        float(row["Requests/s"]),
        float(row["Failures/s"]),
        tuple(None if row[name] == "N/A" else float(row[name]) for name in PERCENTILES),
    )
