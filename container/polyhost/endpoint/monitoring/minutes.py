"""
The minutes of all metrics: the file `metrics.sqlite3`, in which they survive the server.

Synchronous; it belongs to one thread. What cannot be written is lost, and the log says so once: metrics are no reason
to refuse anybody anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from polyhost.endpoint.measures.emf import Minute
from polyhost.endpoint.monitoring.summary import Summary, condensed, read, summary_of, together, written

logger = logging.getLogger("polyhost.metrics")

FILE = "metrics.sqlite3"
MINUTE_SECS = 60
# As CloudWatch keeps metrics of one minute.
KEPT_SECS = 15 * 24 * 3600
# About 100 MB of file.
_MOST_POINTS = 500_000
_MOST_IN_MEMORY = 50_000
_TABLES = """
    CREATE TABLE IF NOT EXISTS series (
        id INTEGER PRIMARY KEY,
        endpoint TEXT NOT NULL,
        variant TEXT NOT NULL,
        metric TEXT NOT NULL,
        unit TEXT NOT NULL,
        latest INTEGER NOT NULL,
        UNIQUE (endpoint, variant, metric)
    );
    CREATE TABLE IF NOT EXISTS points (
        series INTEGER NOT NULL,
        minute INTEGER NOT NULL,
        summary TEXT NOT NULL,
        PRIMARY KEY (series, minute)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS points_by_minute ON points (minute);
"""


class Series(NamedTuple):
    """`latest`: when its last minute began, seconds since 1970."""

    endpoint: str
    variant: str
    metric: str
    latest: int


class Minutes:
    def __init__(self, folder: Path) -> None:
        self._most = _MOST_POINTS
        self._is_failing = False
        try:
            self._connection = _opened(folder / FILE)
        except (OSError, sqlite3.Error) as error:
            logger.warning("%s cannot be used (%s): metrics are kept in memory.", folder / FILE, error)
            self._most = _MOST_IN_MEMORY
            self._connection = _prepared(sqlite3.connect(":memory:", isolation_level=None))

    def close(self) -> None:
        self._connection.close()

    def add(self, minutes: Iterable[Minute]) -> None:
        """Raises nothing."""
        try:
            with self._transaction():
                for minute in minutes:
                    self._add(minute)
                    self._forget(int(minute.began_secs))
            self._is_failing = False
        except sqlite3.Error as error:
            if not self._is_failing:
                logger.warning("metrics are not kept: %s", error)
            self._is_failing = True

    def series(self) -> list[Series]:
        """In the order of their names."""
        rows = self._connection.execute(
            "SELECT endpoint, variant, metric, latest FROM series ORDER BY endpoint, variant, metric"
        )
        return [Series(*row) for row in rows]

    def points(
        self, endpoint: str, variant: str, metric: str, begin: int, end: int
    ) -> tuple[str, list[tuple[int, Summary]]]:
        """The metric's unit, "" where there is no such metric, and its minutes of that time, the oldest first."""
        found = self._connection.execute(
            "SELECT id, unit FROM series WHERE (endpoint, variant, metric) = (?, ?, ?)", (endpoint, variant, metric)
        ).fetchone()
        if found is None:
            return "", []
        rows = self._connection.execute(
            "SELECT minute, summary FROM points WHERE series = ? AND minute >= ? AND minute < ? ORDER BY minute",
            (found[0], begin, end),
        )
        return found[1], [(minute, read(text)) for minute, text in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _add(self, minute: Minute) -> None:
        began = int(minute.began_secs) // MINUTE_SECS * MINUTE_SECS
        for metric, datum in minute.metrics.items():
            (series,) = self._connection.execute(
                "INSERT INTO series (endpoint, variant, metric, unit, latest) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET latest = excluded.latest, unit = excluded.unit RETURNING id",
                (minute.endpoint, minute.variant, metric, datum.unit, began),
            ).fetchone()
            summary = summary_of(datum)
            before = self._connection.execute(
                "SELECT summary FROM points WHERE series = ? AND minute = ?", (series, began)
            ).fetchone()
            if before is not None:
                summary = condensed(together([read(before[0]), summary]))
            self._connection.execute("REPLACE INTO points VALUES (?, ?, ?)", (series, began, written(summary)))

    def _forget(self, now: int) -> None:
        """What is too old, and the oldest of too much."""
        execute = self._connection.execute
        execute("DELETE FROM points WHERE minute < ?", (now - KEPT_SECS,))
        (count,) = execute("SELECT count(*) FROM points").fetchone()
        if count > self._most:
            execute(
                "DELETE FROM points WHERE (series, minute) IN"
                " (SELECT series, minute FROM points ORDER BY minute LIMIT ?)",
                (count - self._most,),
            )
        execute("DELETE FROM series WHERE latest < ?", (now - KEPT_SECS,))


def _opened(file: Path) -> sqlite3.Connection:
    os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        # Written through when it is convenient: a server that is killed loses nothing, a machine that is may.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return _prepared(connection)
    except BaseException:
        connection.close()
        raise


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.executescript(_TABLES)
    return connection
