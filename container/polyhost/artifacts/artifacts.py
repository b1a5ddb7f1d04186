"""
Archives of models, unpacked on disk: found there, or fetched, once for all who wait.

Whoever gets an artifact holds it until `release` or `discard`; what nobody holds may be deleted for others. The
catalogue says what the stores have, the disk what is here. All on one event loop, without blocking it: stores are
asked, archives fetched and unpacked by the fetcher, a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, KeysView, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from polyhost.artifacts.catalogue import Catalogue, Listing
from polyhost.artifacts.disk import CompiledFile, Disk, Entry, too_large
from polyhost.artifacts.entries import Artifact
from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.stored import StoredObject
from polyhost.artifacts.stores import check_key, split_archive_url, split_source
from polyhost.artifacts.transfers import ArtifactChanged, ArtifactForbidden, Fetched, Listed, Payload, Settings
from polyhost.service_errors import ArtifactMissing, DiskFull, EndpointError, StoreFailed
from polyhost.tasks import Tasks

__all__ = ["Artifact", "Artifacts", "Listed", "ObjectStore", "PayloadStore", "check_key", "split_archive_url"]

logger = logging.getLogger("polyhost.endpoint")

_CONNECT_SECS = 5.0
_READ_SECS = 20.0
# What SageMaker grants a model's download.
_FETCH_SECS = 360.0
_UNPACK_SECS = 300.0
# With a copy at hand nobody waits longer to learn whether it is the newest.
_CHECK_SECS = 5.0
_MAX_VERSIONS = 3
# For an archive that does not fit: its size is known at first, what it unpacks to at the second time.
_MAX_TRANSFERS = 3

_Name = tuple[str, str]


class ObjectStore(Protocol):
    """As the Fetcher's methods."""

    async def list_objects(self, source: str, prefix: str, most: int) -> dict[str, Listed]: ...

    async def copy_object(self, source: str, key: str, to: str) -> None: ...

    async def put_object(self, file: str, source: str, key: str, kms_key: str) -> None: ...


class PayloadStore(Protocol):
    """As the Fetcher's methods."""

    async def read_payload(self, source: str, key: str, most_bytes: int) -> Payload: ...

    async def write_payload(self, source: str, key: str, body: bytes, content_type: str, kms_key: str) -> None: ...


class Artifacts:
    def __init__(
        self,
        folder: Path,
        *,
        budget_bytes: int | None,
        environ: Mapping[str, str],
        refresh_secs: float,
        on_fetcher_restart: Callable[[], None] | None = None,
        connect_secs: float = _CONNECT_SECS,
        read_secs: float = _READ_SECS,
        fetch_secs: float = _FETCH_SECS,
        unpack_secs: float = _UNPACK_SECS,
        expects_buckets: bool = True,
    ) -> None:
        """
        `budget_bytes`: None for a share of the free disk. `environ`: of the fetcher, with AWS's variables.

        `expects_buckets`: whether it gets ready to ask S3 at once, or when it is first asked to.

        `refresh_secs`: how long it is believed what a store has; 0 for never asking again about what is on disk.
        """
        settings = Settings(dict(environ), connect_secs, read_secs, fetch_secs, unpack_secs, expects_buckets)
        self._disk = Disk(folder, budget_bytes)
        self._fetcher = Fetcher(settings, on_fetcher_restart)
        self._tasks = Tasks()
        self._catalogue = Catalogue(self._fetcher, self._tasks, believed_secs=refresh_secs)
        self._waiting: dict[_Name, list[asyncio.Future[Artifact]]] = {}

    def __repr__(self) -> str:
        return f"<Artifacts [{len(self._waiting)} on their way | {self._disk!r}]>"

    @property
    def objects(self) -> ObjectStore:
        """What is read and written for transform jobs, by the process that has the credentials."""
        return self._fetcher

    @property
    def payloads(self) -> PayloadStore:
        """What is read and written for asynchronous calls, likewise."""
        return self._fetcher

    @property
    def used_bytes(self) -> int:
        return self._disk.used_bytes

    @property
    def budget_bytes(self) -> int:
        """0 before the start, if it is to be found out."""
        return self._disk.budget_bytes

    def compiled(self, artifact: Artifact) -> CompiledFile:
        """Where an engine may keep what it compiles of an artifact that is held."""
        return self._disk.compiled(artifact)

    def on_disk(self) -> KeysView[_Name]:
        """Source and key of each archive; a live view, to be read and not kept."""
        return self._disk.names()

    def stored(self, source: str, key: str) -> StoredObject:
        """An object of a bucket that is no archive, for a thread of its own."""
        return StoredObject(self._fetcher, source, key)

    async def start(self) -> None:
        """Raises StartFailed."""
        await self._disk.open()
        self._fetcher.start()  # it imports boto3 meanwhile, so that the first fetch need not wait

    async def stop(self) -> None:
        """Deletes nothing that is whole."""
        await self._fetcher.stop()  # fails all that waits for it, and what would ask it yet
        await self._tasks.settled()
        await self._disk.close()

    async def get(self, source: str, key: str, *, asked_after: float = 0.0) -> Artifact:
        """
        The newest version, held. Raises ArtifactMissing, ArtifactUnusable, ValidationError, StoreFailed, DiskFull.

        What the store was asked before `asked_after` (by time.monotonic()) is not believed.

        Three cases: it is on disk and believed to be the newest; somebody waits for it already; neither.
        """
        entry = self._disk.find(source, key)
        is_newest = entry is not None and self._catalogue.is_newest(entry.artifact, asked_after)
        if entry is not None and is_newest and await self._disk.is_unchanged(entry):
            return self._disk.hold(entry)
        check_key(key)
        split_source(source)
        waiter: asyncio.Future[Artifact] = asyncio.get_running_loop().create_future()
        if (source, key) not in self._waiting:
            self._waiting[source, key] = []
            self._tasks.start(self._serve_waiting(source, key))
        self._waiting[source, key].append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())  # given at the moment when nobody wanted it any more
            raise

    def release(self, artifact: Artifact) -> None:
        """No longer in use: it may be deleted when the disk's budget needs it."""
        self._disk.release(artifact)

    def discard(self, artifact: Artifact) -> None:
        """Release it, and delete it as soon as nobody holds it."""
        self._disk.discard(artifact)

    def bytes_of(self, artifact: Artifact) -> int:
        """What releasing it gives the disk back; 0 while others hold it too."""
        return self._disk.bytes_of(artifact)

    async def list(self, source: str, after: str = "") -> dict[str, Listed]:
        """
        The archives below a multi-model source whose names come after `after`, by key; not to be changed.

        No more than MOST_LISTED, however many there are. Raises as `look_up` does.
        """
        return await self._catalogue.list(source, after)

    def last_listing(self, source: str) -> Listing | None:
        """What `list` last found; None before the first."""
        return self._catalogue.last_listing(source)

    async def look_up(self, source: str, key: str) -> Listed:
        """One archive as its store has it now. Raises ArtifactMissing, ValidationError, StoreFailed."""
        try:
            return await self._catalogue.look_up(source, key)
        except ArtifactForbidden:  # access may come back
            raise
        except ArtifactMissing:
            entry = self._disk.find(source, key)
            if entry is not None:
                self._disk.doom(entry)
            raise

    # One archive's way

    async def _serve_waiting(self, source: str, key: str) -> None:
        """All get their hold in one step, before others can take the archive's room: no SingleFlight does that."""
        try:
            entry, fetch_secs = await self._obtain(source, key)
        except Exception as error:  # noqa: BLE001 - those who wait are told
            failure = self._failure(source, key, error)
            for waiter in self._no_longer_waiting(source, key):
                waiter.set_exception(failure)
        else:
            for waiter in self._no_longer_waiting(source, key):
                artifact = self._disk.hold(entry)
                waiter.set_result(replace(artifact, fetch_secs=fetch_secs) if fetch_secs else artifact)

    def _no_longer_waiting(self, source: str, key: str) -> Sequence[asyncio.Future[Artifact]]:
        """The waiters that were not cancelled meanwhile. They wait no longer."""
        return [waiter for waiter in self._waiting.pop((source, key)) if not waiter.done()]

    def _failure(self, source: str, key: str, error: Exception) -> EndpointError:
        if isinstance(error, EndpointError):
            return error
        logger.error("%s%s: not fetched", source, key, exc_info=error)
        return EndpointError(f"{source}{key} was not fetched ({type(error).__name__}).")

    async def _obtain(self, source: str, key: str) -> tuple[Entry, float]:
        """On disk, and how long it took to get there; nothing is awaited between that and its return."""
        entry = self._disk.find(source, key)
        if entry is None:
            listed = self._catalogue.believed(source, key) or await self.look_up(source, key)
        else:
            listed = await self._checked(entry)
            is_newest = listed.version == entry.artifact.version and not entry.is_doomed
            if is_newest and await self._disk.is_unchanged(entry):
                return entry, 0.0
        for _ in range(_MAX_VERSIONS):
            try:
                return await self._fetch(source, key, listed)
            except ArtifactChanged:
                listed = await self.look_up(source, key)
        raise StoreFailed(f"{source}{key} is being changed all the time. Ask again later.")

    async def _checked(self, entry: Entry) -> Listed:
        """What the store has of it now; if the store does not answer, what is there is good enough."""
        source, key = entry.artifact.source, entry.artifact.key
        self._disk.hold(entry)  # a copy that others may delete meanwhile is none
        try:
            return await asyncio.wait_for(self.look_up(source, key), _CHECK_SECS)
        except (StoreFailed, asyncio.TimeoutError) as error:
            logger.warning("%s%s: served from disk, its store does not answer: %s", source, key, error)
            listed = Listed(entry.artifact.version, entry.artifact.archive_bytes)
            self._catalogue.believe(source, key, listed)  # the next caller need not wait as long
            return listed
        finally:
            self._disk.release(entry.artifact)

    async def _fetch(self, source: str, key: str, listed: Listed) -> tuple[Entry, float]:
        """
        A few times at most: where it takes more room than was thought, or the disk is full though the budget is not.
        """
        if listed.size_bytes > self.budget_bytes:
            raise too_large(f"{source}{key} has {listed.size_bytes} bytes", self.budget_bytes)
        # A folder's archive is read in place; of a bucket's, there is a copy until it is unpacked.
        copy_bytes = 0 if source.startswith("/") else listed.size_bytes
        need_bytes = copy_bytes + listed.size_bytes
        full: DiskFull | None = None
        for _ in range(_MAX_TRANSFERS):
            reserved_bytes = min(need_bytes, self.budget_bytes)
            await self._disk.reserve(reserved_bytes, f"{source}{key}")
            try:
                entry, fetched = await self._transfer(source, key, listed, reserved_bytes)
            except DiskFull as error:
                full = error
                await self._disk.clear(copy_bytes + (error.need_bytes or listed.size_bytes), error)
                continue
            if entry is not None:
                return entry, fetched.secs
            need_bytes = copy_bytes + fetched.disk_bytes
        if full is not None:  # others have taken the room each time: more must be given free
            missing_bytes = copy_bytes + (full.need_bytes or listed.size_bytes)
            raise DiskFull(full.message, missing_bytes=missing_bytes) from full
        raise DiskFull(f"{source}{key} takes {need_bytes} bytes of the disk cache, which is full. Ask again later.")

    async def _transfer(
        self, source: str, key: str, listed: Listed, reserved_bytes: int,
    ) -> tuple[Entry | None, Fetched]:  # fmt: skip
        place, to = self._disk.new_places(source, key)
        entry = None
        try:
            try:
                fetched = await self._fetcher.fetch(
                    source, key, listed, place=str(place), to=str(to), limit_bytes=self.budget_bytes,
                )  # fmt: skip
            finally:
                self._disk.give_back(reserved_bytes)
            entry = self._disk.admit(fetched, source, key, listed, to)
        finally:
            if entry is None:  # also where a fetcher was killed
                self._disk.remove_leftovers(place, to)
        return entry, fetched
