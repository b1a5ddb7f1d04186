"""
The disk cache: which unpacked archives are there, who holds them, and what goes when room is needed.

    FOLDER/models/NAME/      meta.json and model/, the unpacked archive; moved here when it is whole. Later perhaps
                             compiled, what an engine has made of it
    FOLDER/tmp/              what is being fetched or deleted; emptied at the start
    FOLDER/.lock             held by the one server that uses the folder

All state is changed on one event loop; what blocks runs in threads. Only what nobody holds is ever deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import KeysView
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from polyhost.artifacts.cleaner import Cleaner
from polyhost.artifacts.compiled import Compiled, read_expected, write_compiled
from polyhost.artifacts.entries import MODEL, Artifact, Found, newest_whole
from polyhost.artifacts.eviction import plan_eviction
from polyhost.artifacts.integrity import Changed
from polyhost.artifacts.looks import Looks
from polyhost.artifacts.transfers import Fetched, Listed
from polyhost.errors import StartFailed
from polyhost.service_errors import DiskFull, ValidationError
from polyhost.tasks import SingleFlight

logger = logging.getLogger("polyhost.endpoint")

# How long a stop waits for what is being deleted.
_CLOSE_SECS = 0.3
_SHARE_OF_FREE = 0.8
# What is kept in memory of a compiled model whose load waits for room: many may wait.
_MOST_WAITING_BYTES = 64 * 1024
_CHANGED = "%s%s: its files on disk are not those that were unpacked (%s); it is fetched again"


@dataclass(eq=False, slots=True)
class Entry:
    artifact: Artifact
    folder: Path
    disk_bytes: int
    meta_sha256: str
    compiled: Compiled | None = None
    # What is compiled, as the last look has read it: for the load for whose sake the look was.
    content: bytes | None = None
    holds: int = 0
    # The look at its files: whether they are unchanged.
    checking: SingleFlight[bool] = field(default_factory=SingleFlight)
    # To be deleted when nobody holds it; no longer found.
    is_doomed: bool = False


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
        self._looks = Looks(ThreadPoolExecutor(thread_name_prefix="look"))
        self._cleaner = Cleaner(self._tmp)
        self._lock: int | None = None

    def __repr__(self) -> str:
        held = len(self._by_path) - len(self._unheld)
        return f"<Disk [{len(self._by_path)} models, {held} held | {self.used_bytes} of {self.budget_bytes} bytes]>"

    @property
    def used_bytes(self) -> int:
        """With what is reserved for archives on their way, and what could not be removed."""
        return self._used_bytes + self._reserved_bytes + self._cleaner.left_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget_bytes or 0

    def names(self) -> KeysView[tuple[str, str]]:
        return self._by_name.keys()

    # Start and end

    async def open(self) -> None:
        """Raises StartFailed."""
        found, free_bytes, left_bytes = await asyncio.to_thread(self._open)
        self._cleaner.count_left(left_bytes)
        for one in found:
            self._insert(_entry_of(one))
        if self._budget_bytes is None:
            self._budget_bytes = self.used_bytes + int(free_bytes * _SHARE_OF_FREE)
        await self.make_room(0)
        logger.info("disk cache %s: %s", self._folder, self)

    def _open(self) -> tuple[list[Found], int, int]:
        """The whole entries, the free bytes, and the bytes of files that could not be removed."""
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._folder / ".lock")
            left_bytes = self._cleaner.empty()
            # As they were last used, which `close` has written; after a crash as they were fetched.
            entries = sorted(self._models.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
            found, damaged_bytes = newest_whole(entries)
            return found, shutil.disk_usage(self._folder).free, left_bytes + damaged_bytes
        except OSError as error:
            raise StartFailed(f"The disk cache {self._folder} cannot be used: {error.strerror}.") from error

    async def close(self) -> None:
        if self._lock is None:
            return
        self._cleaner.sweep()
        await self._cleaner.finished(_CLOSE_SECS)
        held = (entry for entry in self._by_path.values() if entry.holds)
        await asyncio.to_thread(self._close, [entry.folder for entry in (*self._unheld, *held)])

    def _close(self, least_recently_used: list[Path]) -> None:
        for number, folder in enumerate(least_recently_used):  # all before what is fetched later
            with contextlib.suppress(OSError):
                os.utime(folder, ns=(number, number))
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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

    async def is_unchanged(self, entry: Entry) -> bool:
        """Whether its files are still as they were unpacked. If they are not, the entry is no longer found."""
        return await entry.checking.join(lambda: self._begin_check(entry)) and not entry.is_doomed

    def _begin_check(self, entry: Entry) -> asyncio.Task[bool]:
        may_clean = not entry.holds
        artifact = self.hold(entry)  # at once: before the task runs, others may want the room
        return asyncio.create_task(self._check(entry, artifact, may_clean=may_clean))

    async def _check(self, entry: Entry, artifact: Artifact, *, may_clean: bool) -> bool:
        """Releases the artifact, which the caller holds."""
        content = None
        try:
            look = self._looks.at(entry.folder, entry.meta_sha256, entry.compiled, may_clean=may_clean)
            entry.meta_sha256, content = await look
        except Changed as error:
            logger.warning(_CHANGED, artifact.source, artifact.key, error)
            self.doom(entry)
        finally:
            self.release(artifact)
        entry.content = content
        return not entry.is_doomed

    def compiled(self, artifact: Artifact) -> CompiledFile:
        """Where to keep what is compiled of an artifact that is held."""
        return CompiledFile(self, self._by_path[artifact.path])

    def has(self, entry: Entry) -> bool:
        return self._by_path.get(entry.artifact.path) is entry

    def note_compiled(self, entry: Entry, compiled: Compiled) -> None:
        grown_bytes = compiled.disk_bytes - (entry.compiled.disk_bytes if entry.compiled else 0)
        entry.compiled = compiled
        entry.disk_bytes += grown_bytes
        self._used_bytes += grown_bytes

    def release(self, artifact: Artifact) -> None:
        entry = self._by_path[artifact.path]
        assert entry.holds, f"{artifact.key} is released more often than it was got"
        entry.holds -= 1
        entry.content = None
        if not entry.holds:
            if entry.is_doomed:
                self._delete(entry)
            else:
                self._unheld[entry] = None
            self._tell_change()

    def doom(self, entry: Entry) -> None:
        """It is no longer found from now on, and deleted once nobody holds it."""
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
        name = _new_name(source, key)
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
                    missing_bytes=self._missing_bytes(need_bytes, self.budget_bytes - self.used_bytes),
                )
            await self._changed.wait()
        self._reserved_bytes += need_bytes
        try:
            await self._evict(victims)
        except BaseException:
            self.give_back(need_bytes)
            raise

    def _missing_bytes(self, need_bytes: int, free_bytes: int) -> int:
        return need_bytes - free_bytes - sum(entry.disk_bytes for entry in self._unheld)

    def bytes_of(self, artifact: Artifact) -> int:
        """What the disk gets back when its holder releases it; 0 while others hold it too."""
        entry = self._by_path[artifact.path]
        return entry.disk_bytes if entry.holds == 1 else 0

    async def clear(self, need_bytes: int, full: DiskFull) -> None:
        """Room on a file system that is full though the budget is not. Raises DiskFull where that cannot be."""
        while True:  # how much a deletion gives depends on the file system
            free_bytes = (await asyncio.to_thread(shutil.disk_usage, self._folder)).free
            victims = plan_eviction(need_bytes, free_bytes, self._unheld)
            if victims is None:
                raise DiskFull(full.message, missing_bytes=self._missing_bytes(need_bytes, free_bytes)) from full
            if not victims:
                return
            await self._evict(victims)

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
        return self._insert(Entry(artifact, to, fetched.disk_bytes, fetched.meta_sha256))

    async def make_room(self, need_bytes: int) -> None:
        """Evict what nobody holds until so much of the budget is free, as far as that goes."""
        free_bytes = self.budget_bytes - self.used_bytes
        victims = plan_eviction(need_bytes, free_bytes, self._unheld)
        await self._evict(list(self._unheld) if victims is None else victims)

    async def _evict(self, victims: list[Entry]) -> None:
        for victim in victims:
            self.doom(victim)
        # The room must be there, not only promised: all deletions that have begun, ours and those before.
        await self._cleaner.finished()

    def _delete(self, entry: Entry) -> None:
        self._unheld.pop(entry, None)
        del self._by_path[entry.artifact.path]
        self._used_bytes -= entry.disk_bytes
        self._cleaner.remove(entry.folder)

    def remove_leftovers(self, *places: Path) -> None:
        self._cleaner.remove(*places)

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class CompiledFile:
    """Where an engine keeps what it has compiled of one archive (engine.protocol.CompiledPlace)."""

    def __init__(self, disk: Disk, entry: Entry) -> None:
        self._disk = disk
        self._entry = entry

    @property
    def is_there(self) -> bool:
        return self._entry.compiled is not None

    def take(self) -> bytes | None:
        """What the look at the archive has read. It is not kept any longer."""
        content, self._entry.content = self._entry.content, None
        return content

    def give_back(self, content: bytes) -> None:
        """For the next try of the same load, as long as the archive is held for it. What is large is read again."""
        if len(content) <= _MOST_WAITING_BYTES:
            self._entry.content = content

    def read(self) -> bytes | None:
        """Blocking. What was written, or was there at the start; None for nothing."""
        return read_expected(self._entry.folder, self._entry.compiled)

    async def write(self, content: bytes) -> None:
        """Where the disk does not take it, the next load compiles again."""
        if not self._disk.has(self._entry):  # the model was unloaded meanwhile, and its archive deleted
            return
        artifact = self._disk.hold(self._entry)
        try:
            self._disk.note_compiled(self._entry, await asyncio.to_thread(write_compiled, self._entry.folder, content))
        except OSError as error:
            logger.info("%s cannot be written: %s", self._entry.folder / "compiled", error.strerror)
        finally:
            self._disk.release(artifact)


def _entry_of(found: Found) -> Entry:
    meta = found.meta
    artifact = Artifact(
        source=meta.source, key=meta.key, version=meta.version, path=found.folder / MODEL,
        archive_bytes=meta.archive_bytes, unpacked_bytes=meta.unpacked_bytes, fetch_secs=0.0,
    )  # fmt: skip
    disk_bytes = meta.disk_bytes + (found.compiled.disk_bytes if found.compiled else 0)
    return Entry(artifact, found.folder, disk_bytes, found.meta_sha256, found.compiled)


def _new_name(source: str, key: str) -> str:
    """Keys have up to 1,024 characters, file names 255 bytes; versions of one key may be there side by side."""
    digest = hashlib.sha256(f"{source}\0{key}".encode()).hexdigest()[:24]
    return f"{digest}-{secrets.token_hex(4)}"


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
