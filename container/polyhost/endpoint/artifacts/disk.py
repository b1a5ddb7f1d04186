"""
The disk cache: which unpacked archives are there, who holds them, and what goes when room is needed.

    FOLDER/models/NAME/      meta.json and model/, the unpacked archive; moved here when it is whole
    FOLDER/tmp/              what is being fetched or deleted; emptied at the start
    FOLDER/.lock             held by the one server that uses the folder

All state is changed on one event loop; what blocks runs in threads. Only what nobody holds is ever deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, KeysView
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyhost.endpoint.artifacts.transfers import Fetched, Listed
from polyhost.endpoint.errors import DiskFull, ValidationError
from polyhost.errors import StartFailed
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost.endpoint")

MODEL = "model"
_META = "meta.json"
_BLOCK_BYTES = 4096
_OWN_FILES = 3  # the entry's folder, its model's folder, meta.json
_SHARE_OF_FREE = 0.8


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One version of one archive, unpacked."""

    source: str
    key: str
    version: str
    path: Path
    archive_bytes: int
    unpacked_bytes: int
    # 0.0 when it was on disk already.
    fetch_secs: float


@dataclass(frozen=True)
class Meta:
    """What an entry is and what must be there of it."""

    source: str
    key: str
    version: str
    archive_bytes: int
    # Sizes by path, relative to the model's folder.
    files: dict[str, int]

    @property
    def unpacked_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def disk_bytes(self) -> int:
        """Blocks counted whole, folders too."""
        folders = {os.path.dirname(path) for path in self.files}
        blocks = sum(-(-size // _BLOCK_BYTES) for size in self.files.values())
        return (blocks + len(folders) + _OWN_FILES) * _BLOCK_BYTES

    def write(self, entry: Path) -> None:
        (entry / _META).write_text(json.dumps(asdict(self)))


def describe(entry: Path, source: str, key: str, listed: Listed) -> Meta:
    return Meta(source, key, listed.version, listed.size_bytes, dict(_sizes(entry / MODEL)))


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """By its path below `folder`, the bytes of each file."""
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(folder / below) as found:
            for each in found:
                if each.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{each.name}/")
                elif each.is_file(follow_symlinks=False):
                    yield below + each.name, each.stat(follow_symlinks=False).st_size


def _has(folder: Path, name: str, size: int) -> bool:
    found = (folder / name).lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def whole(entry: Path) -> Meta | None:
    """
    What is there, if all that the archive brought still is: None for a copy that a crash left damaged or cut.

    Files that came later, as handlers leave them in their folder, do no harm.
    """
    try:
        meta = Meta(**json.loads((entry / _META).read_bytes()))
        return (
            meta if meta.files and all(_has(entry / MODEL, name, size) for name, size in meta.files.items()) else None
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@dataclass(eq=False, slots=True)
class Entry:
    artifact: Artifact
    folder: Path
    disk_bytes: int
    holds: int = 0
    # To be deleted when nobody holds it; no longer found.
    is_doomed: bool = False


def plan_eviction(need_bytes: int, free_bytes: int, unheld: Iterable[Entry]) -> list[Entry] | None:
    """
    What to delete so that `need_bytes` are free; `unheld`: least recently used first.

    None when deleting all of it would not do.
    """
    victims: list[Entry] = []
    entries = iter(unheld)
    while free_bytes < need_bytes:
        entry = next(entries, None)
        if entry is None:
            return None
        victims.append(entry)
        free_bytes += entry.disk_bytes
    return victims


class Disk:
    def __init__(self, folder: Path, budget_bytes: int | None) -> None:
        """`budget_bytes`: None is a share of what is free on the file system at the start, and what is there."""
        self._folder = folder
        self._models = folder / "models"
        self._tmp = folder / "tmp"
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._reserved_bytes = 0
        self._by_name: dict[tuple[str, str], Entry] = {}
        self._by_path: dict[Path, Entry] = {}
        # Least recently used first.
        self._unheld: dict[Entry, None] = {}
        self._changed = asyncio.Event()
        self._deletions: set[asyncio.Task[None]] = set()
        self._lock: int | None = None

    def __repr__(self) -> str:
        held = len(self._by_path) - len(self._unheld)
        return f"<Disk [{len(self._by_path)} models, {held} held | {self.used_bytes} of {self.budget_bytes} bytes]>"

    @property
    def used_bytes(self) -> int:
        """With what is reserved for archives on their way."""
        return self._used_bytes + self._reserved_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget_bytes or 0

    def names(self) -> KeysView[tuple[str, str]]:
        return self._by_name.keys()

    # Start and end

    async def open(self) -> None:
        """Raises StartFailed."""
        found, free_bytes = await asyncio.to_thread(self._open)
        for folder, meta in found:
            self._add(folder, meta)
        if self._budget_bytes is None:
            self._budget_bytes = self._used_bytes + int(free_bytes * _SHARE_OF_FREE)
        await self.make_room(0)
        logger.info("disk cache %s: %s", self._folder, self)

    def _open(self) -> tuple[list[tuple[Path, Meta]], int]:
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._folder / ".lock")
            remove_tree(self._tmp)
            self._tmp.mkdir(exist_ok=True)
            # As they were last used, which `close` has written; after a crash as they were fetched.
            entries = sorted(self._models.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
            return list(_newest_whole(entries)), shutil.disk_usage(self._folder).free
        except OSError as error:
            raise StartFailed(f"The disk cache {self._folder} cannot be used: {error.strerror}.") from error

    async def close(self) -> None:
        if self._lock is None:
            return
        await asyncio.gather(*self._deletions)
        held = (entry for entry in self._by_path.values() if entry.holds)
        await asyncio.to_thread(self._close, [entry.folder for entry in (*self._unheld, *held)])

    def _close(self, least_recently_used: list[Path]) -> None:
        remove_tree(self._tmp)
        for number, folder in enumerate(least_recently_used):  # all before what is fetched later
            with contextlib.suppress(OSError):
                os.utime(folder, ns=(number, number))
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _add(self, folder: Path, meta: Meta) -> Entry:
        artifact = Artifact(
            source=meta.source, key=meta.key, version=meta.version, path=folder / MODEL,
            archive_bytes=meta.archive_bytes, unpacked_bytes=meta.unpacked_bytes, fetch_secs=0.0,
        )  # fmt: skip
        return self._insert(Entry(artifact, folder, meta.disk_bytes))

    def _insert(self, entry: Entry) -> Entry:
        name = (entry.artifact.source, entry.artifact.key)
        if name in self._by_name:  # an older version
            self.doom(self._by_name[name])
        self._by_name[name] = entry
        self._by_path[entry.artifact.path] = entry
        self._unheld[entry] = None
        self._used_bytes += entry.disk_bytes
        return entry

    # Who holds what

    def find(self, source: str, key: str) -> Entry | None:
        return self._by_name.get((source, key))

    def hold(self, entry: Entry) -> Artifact:
        entry.holds += 1
        self._unheld.pop(entry, None)
        return entry.artifact

    def release(self, artifact: Artifact) -> None:
        entry = self._by_path[artifact.path]
        assert entry.holds, f"{artifact.key} is released more often than it was got"
        entry.holds -= 1
        if not entry.holds:
            if entry.is_doomed:
                self._delete(entry)
            else:
                self._unheld[entry] = None
            self._tell_change()

    def doom(self, entry: Entry) -> None:
        """Nobody finds it any more; it is deleted when nobody holds it."""
        if entry.is_doomed:
            return
        entry.is_doomed = True
        del self._by_name[entry.artifact.source, entry.artifact.key]
        if not entry.holds:
            self._delete(entry)

    def discard(self, artifact: Artifact) -> None:
        self.doom(self._by_path[artifact.path])
        self.release(artifact)

    # Room

    def new_places(self, source: str, key: str) -> tuple[Path, Path]:
        """Where to fetch an archive to, and where it belongs once it is whole."""
        # Keys have up to 1,024 characters, file names 255 bytes; versions of one key may be there side by side.
        digest = hashlib.sha256(f"{source}\0{key}".encode()).hexdigest()[:24]
        name = f"{digest}-{secrets.token_hex(4)}"
        return self._tmp / name, self._models / name

    async def reserve(self, need_bytes: int, what: str) -> None:
        """
        Room for an archive on its way; `give_back` it. Evicts, and waits for others on their way.

        Raises DiskFull while all the rest is held.
        """
        while True:
            victims = plan_eviction(need_bytes, self.budget_bytes - self.used_bytes, self._unheld)
            if victims is not None:
                break
            if not self._reserved_bytes:
                raise DiskFull(
                    f"{what} needs {need_bytes} bytes of the disk cache, whose {self.budget_bytes} bytes are full of "
                    "models in use. Ask again later, or give the cache more room.",
                )
            await self._changed.wait()
        self._reserved_bytes += need_bytes
        try:
            await self._evict(victims)
        except BaseException:
            self.give_back(need_bytes)
            raise

    def give_back(self, reserved_bytes: int) -> None:
        self._reserved_bytes -= reserved_bytes
        self._tell_change()

    def admit(self, fetched: Fetched, source: str, key: str, listed: Listed, to: Path) -> Entry | None:
        """What was fetched to `to`; None if there is no room: then the caller removes it. Raises ValidationError."""
        if fetched.disk_bytes > self.budget_bytes:
            raise too_large(f"{key} takes {fetched.disk_bytes} bytes unpacked", self.budget_bytes)
        victims = plan_eviction(fetched.disk_bytes, self.budget_bytes - self.used_bytes, self._unheld)
        if victims is None:
            return None
        for victim in victims:
            self.doom(victim)
        artifact = Artifact(
            source=source, key=key, version=listed.version, path=to / MODEL, archive_bytes=listed.size_bytes,
            unpacked_bytes=fetched.unpacked_bytes, fetch_secs=0.0,
        )  # fmt: skip
        return self._insert(Entry(artifact, to, fetched.disk_bytes))

    async def make_room(self, need_bytes: int) -> None:
        """Evict what nobody holds until so much of the budget is free, as far as that goes."""
        free_bytes = self.budget_bytes - self.used_bytes
        victims = plan_eviction(need_bytes, free_bytes, self._unheld)
        await self._evict(list(self._unheld) if victims is None else victims)

    async def evict(self, least_bytes: int) -> None:
        """Delete what nobody holds, least recently used first, until it was so much, as far as that goes."""
        victims = plan_eviction(least_bytes, 0, self._unheld)
        await self._evict(list(self._unheld) if victims is None else victims)

    async def _evict(self, victims: list[Entry]) -> None:
        for victim in victims:
            self.doom(victim)
        # The room must be there, not only promised: all deletions that have begun, ours and those before.
        if self._deletions:
            await asyncio.wait(set(self._deletions))

    def _delete(self, entry: Entry) -> None:
        self._unheld.pop(entry, None)
        del self._by_path[entry.artifact.path]
        self._used_bytes -= entry.disk_bytes
        self._in_thread(self._remove, entry.folder)

    def _remove(self, folder: Path) -> None:
        """Out of the models' folder first, so that no half of it is ever found there."""
        gone = self._tmp / f"{folder.name}.gone"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
            remove_tree(gone)

    def remove_leftovers(self, *places: Path) -> None:
        for place in places:
            self._in_thread(self._remove, place)

    def _in_thread(self, action: Callable[[Path], None], path: Path) -> None:
        task: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(action, path))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def too_large(what: str, budget_bytes: int) -> ValidationError:
    return ValidationError(f"{what}: the whole disk cache is {budget_bytes} bytes. Give it more room, or pack less.")


def _locked(path: Path) -> int:
    """Raises StartFailed."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StartFailed(
            f"The disk cache {path.parent} is in use by another server: give each server a folder of its own.",
        ) from error
    return lock


def _newest_whole(entries: list[Path]) -> Iterator[tuple[Path, Meta]]:
    """Of each archive the version that came last; the rest, and what is not whole, is deleted."""
    newest: dict[tuple[str, str], tuple[Path, Meta]] = {}
    for entry in entries:
        meta = whole(entry)
        if meta is None:
            logger.warning("%s is not whole; it is deleted", entry)
            remove_tree(entry)
            continue
        older = newest.pop((meta.source, meta.key), None)
        if older is not None:
            remove_tree(older[0])
        newest[meta.source, meta.key] = (entry, meta)
    yield from newest.values()
