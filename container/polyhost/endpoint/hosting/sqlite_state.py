"""
The state of one server: the file in which the control plane's resources survive it, `state.sqlite3`.

What a transaction wrote is on the disk when it has ended. One server at a time has the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from polyhost.endpoint.hosting.state import Resource, StateFailed
from polyhost.errors import StartFailed

FILE = "state.sqlite3"

# The file's version is the number of these that have run. Append only: files of every earlier version are out there.
_MIGRATIONS = (
    """
    CREATE TABLE resources (
        kind TEXT NOT NULL,
        -- The name in lower case: names that differ only in case are the same.
        key TEXT NOT NULL,
        name TEXT NOT NULL,
        created REAL NOT NULL,
        modified REAL NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE tags (
        arn TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (arn, key)
    ) WITHOUT ROWID;
    """,
)


T = TypeVar("T")


class SqliteState:
    """A `State`. Raises StartFailed."""

    poll_secs = 0.0
    refusal = ""
    version: object = None

    def __init__(self, folder: Path, file: str = FILE) -> None:
        self._file = folder / file
        try:
            _make_private(folder, self._file)
            # Statements outside a transaction are their own: ours begin and end where `transaction` says.
            self._connection = sqlite3.connect(self._file, isolation_level=None, timeout=0)
        except (OSError, sqlite3.Error) as error:
            raise StartFailed(f"the state cannot be kept in {self._file}: {error}.") from error
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def transact(self, work: Callable[[], T]) -> T:
        try:
            return self._transact(work)
        except sqlite3.Error as error:
            raise StateFailed(str(error)) from error

    def _transact(self, work: Callable[[], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk may have ended it already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return result

    # Resources

    def get(self, kind: str, name: str) -> Resource | None:
        row = self._connection.execute(
            "SELECT kind, name, created, modified, document FROM resources WHERE kind = ? AND key = ?",
            (kind, name.lower()),
        ).fetchone()
        return _resource(row) if row else None

    def all(self, kind: str) -> Sequence[Resource]:
        """By name."""
        rows = self._connection.execute(
            "SELECT kind, name, created, modified, document FROM resources WHERE kind = ? ORDER BY key", (kind,)
        )
        return [_resource(row) for row in rows]

    def put(self, resource: Resource) -> None:
        self._connection.execute(
            "REPLACE INTO resources (kind, key, name, created, modified, document) VALUES (?, ?, ?, ?, ?, ?)",
            (
                resource.kind,
                resource.name.lower(),
                resource.name,
                resource.created,
                resource.modified,
                json.dumps(resource.document),
            ),
        )

    def delete(self, kind: str, name: str) -> None:
        self._connection.execute("DELETE FROM resources WHERE kind = ? AND key = ?", (kind, name.lower()))

    # Tags

    def tags(self, arn: str) -> dict[str, str]:
        return dict(self._connection.execute("SELECT key, value FROM tags WHERE arn = ? ORDER BY key", (arn,)))

    def set_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        self._connection.execute("DELETE FROM tags WHERE arn = ?", (arn,))
        rows = [(arn, key, value) for key, value in tags.items()]
        self._connection.executemany("INSERT INTO tags (arn, key, value) VALUES (?, ?, ?)", rows)

    # Opening

    def _prepare(self) -> None:
        try:
            # Exclusive before WAL: so there is no shared memory file, and a second server is refused.
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._transact(self._migrate)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StartFailed(
                    f"{self._file} is in use by another server: give each its own --state-dir."
                ) from error
            raise StartFailed(f"the state cannot be kept in {self._file}: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise StartFailed(
                f"{self._file} is not readable as Polyhost's state ({error}): restore it from a backup, "
                "or move it away to begin with none."
            ) from error

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise StartFailed(
                f"{self._file} was written by a newer Polyhost (its version is {version}, this one reads up to "
                f"{len(_MIGRATIONS)}): use that one, or another --state-dir."
            )
        for script in _MIGRATIONS[version:]:
            # Not executescript, which would commit first.
            for statement in script.split(";"):
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")


def _make_private(folder: Path, file: Path) -> None:
    """Environment variables of models may be secrets."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _resource(row: tuple[Any, ...]) -> Resource:
    kind, name, created, modified, document = row
    return Resource(kind, name, created, modified, json.loads(document))
