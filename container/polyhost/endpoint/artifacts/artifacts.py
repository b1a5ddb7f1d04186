"""
Archives of models, unpacked on disk: found there, or fetched, once for all who wait.

Whoever gets an artifact holds it until `release` or `discard`; what nobody holds may be deleted for others. What a
store has is learned from listings and look-ups and believed for a while. All on one event loop, without blocking
it: stores are asked, archives fetched and unpacked by the fetcher, a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, KeysView, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyhost.endpoint.artifacts.disk import Artifact, Disk, Entry, too_large
from polyhost.endpoint.artifacts.fetching import Fetcher
from polyhost.endpoint.artifacts.stores import check_key, split_archive_url, split_source
from polyhost.endpoint.artifacts.transfers import ArtifactChanged, ArtifactForbidden, Fetched, Listed, Settings
from polyhost.endpoint.errors import ArtifactMissing, DiskFull, EndpointError, StoreFailed

__all__ = ["Artifact", "Artifacts", "Listed", "check_key", "split_archive_url"]

logger = logging.getLogger("polyhost.endpoint")

_CONNECT_SECS = 5.0
_READ_SECS = 20.0
# What SageMaker grants a model's download.
_FETCH_SECS = 360.0
# With a copy at hand nobody waits longer to learn whether it is the newest.
_CHECK_SECS = 5.0
_MAX_VERSIONS = 3
# What is deleted for an archive on a disk that is full though the budget is not: it and what it unpacks to.
_FULL_DISK_FACTOR = 4

_Name = tuple[str, str]


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
    ) -> None:
        """
        `budget_bytes`: None for a share of the free disk. `environ`: of the fetcher, with AWS's variables.

        `refresh_secs`: how long it is believed what a store has; 0 for never asking again about what is on disk.
        """
        settings = Settings(dict(environ), connect_secs, read_secs, fetch_secs)
        self._disk = Disk(folder, budget_bytes)
        self._fetcher = Fetcher(settings, on_fetcher_restart)
        self._refresh_secs = refresh_secs
        self._known = _Known()
        self._waiting: dict[_Name, list[asyncio.Future[Artifact]]] = {}
        self._listings: dict[str, asyncio.Task[dict[str, Listed]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<Artifacts [{len(self._waiting)} on their way | {self._disk!r}]>"

    @property
    def used_bytes(self) -> int:
        return self._disk.used_bytes

    @property
    def budget_bytes(self) -> int:
        """0 before the start, if it is to be found out."""
        return self._disk.budget_bytes

    @property
    def fetcher_pid(self) -> int | None:
        return self._fetcher.pid

    def on_disk(self) -> KeysView[_Name]:
        """Source and key of each archive; a live view, to be read and not kept."""
        return self._disk.names()

    async def start(self) -> None:
        """Raises StartFailed."""
        await self._disk.open()
        self._fetcher.start()  # it imports boto3 meanwhile, so that the first fetch need not wait

    async def stop(self) -> None:
        """Deletes nothing that is whole."""
        await self._fetcher.stop()  # fails all that waits for it, and what would ask it yet
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disk.close()

    async def get(self, source: str, key: str, *, asked_after: float = 0.0) -> Artifact:
        """
        The newest version, held. Raises ArtifactMissing, ArtifactUnusable, ValidationError, StoreFailed, DiskFull.

        What the store was asked before `asked_after` (by time.monotonic()) is not believed.

        Three cases: it is on disk and believed to be the newest; somebody waits for it already; neither.
        """
        entry = self._disk.find(source, key)
        if entry is not None and self._is_newest(entry, asked_after):
            return self._disk.hold(entry)
        check_key(key)
        split_source(source)
        waiter: asyncio.Future[Artifact] = asyncio.get_running_loop().create_future()
        if (source, key) not in self._waiting:
            self._waiting[source, key] = []
            self._keep(asyncio.create_task(self._serve_waiting(source, key)))
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

    async def list(self, source: str) -> dict[str, Listed]:
        """All archives below a multi-model source, by key; not to be changed. Raises as `look_up` does."""
        split_source(source)
        if source not in self._listings:
            task = asyncio.create_task(self._list(source))
            self._listings[source] = task
            task.add_done_callback(lambda _: self._listings.pop(source))
            self._keep(task)
        return await asyncio.shield(self._listings[source])  # one who waits no longer must not end it for the others

    async def _list(self, source: str) -> dict[str, Listed]:
        asked_at = time.monotonic()
        archives = await self._fetcher.list(source)
        self._known.listed(source, archives, asked_at)
        return archives

    def last_listing(self, source: str) -> tuple[Mapping[str, Listed], float] | None:
        """What `list` last found, and when it asked (by time.monotonic); None before the first."""
        return self._known.listing(source)

    async def look_up(self, source: str, key: str) -> Listed:
        """One archive as its store has it now. Raises ArtifactMissing, ValidationError, StoreFailed."""
        check_key(key)
        split_source(source)
        asked_at = time.monotonic()
        try:
            listed = await self._fetcher.look_up(source, key)
        except ArtifactForbidden:  # access may come back
            raise
        except ArtifactMissing:
            self._forget(source, key)
            raise
        self._known.looked_up(source, key, listed, asked_at)
        return listed

    def _forget(self, source: str, key: str) -> None:
        self._known.forget(source, key)
        entry = self._disk.find(source, key)
        if entry is not None:
            self._disk.doom(entry)

    # One archive's way

    def _is_newest(self, entry: Entry, asked_after: float) -> bool:
        """As far as is known, and known not too long ago."""
        known = self._known.get(entry.artifact.source, entry.artifact.key)
        if known is None:
            return not self._refresh_secs and not asked_after
        listed, asked_at = known
        if asked_at < asked_after:
            return False
        is_fresh = not self._refresh_secs or time.monotonic() - asked_at < self._refresh_secs
        return is_fresh and listed.version == entry.artifact.version

    async def _serve_waiting(self, source: str, key: str) -> None:
        failure: BaseException | None = None
        try:
            entry, fetch_secs = await self._obtain(source, key)
        except EndpointError as error:
            failure = error
        except Exception as error:
            logger.exception("%s%s: not fetched", source, key)
            failure = EndpointError(f"{source}{key} was not fetched ({type(error).__name__}).")
        finally:
            for waiter in self._waiting.pop((source, key)):
                if waiter.done():
                    continue
                if failure is not None:
                    waiter.set_exception(failure)
                else:
                    artifact = self._disk.hold(entry)
                    waiter.set_result(replace(artifact, fetch_secs=fetch_secs) if fetch_secs else artifact)

    async def _obtain(self, source: str, key: str) -> tuple[Entry, float]:
        """On disk, and how long it took to get there; nothing is awaited between that and its return."""
        entry = self._disk.find(source, key)
        if entry is None:
            known = self._known.get(source, key)
            listed = known[0] if known else await self.look_up(source, key)
        else:
            listed = await self._checked(entry)
            if listed.version == entry.artifact.version and not entry.is_doomed:
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
            self._known.looked_up(source, key, listed, time.monotonic())  # the next caller need not wait as long
            return listed
        finally:
            self._disk.release(entry.artifact)

    async def _fetch(self, source: str, key: str, listed: Listed) -> tuple[Entry, float]:
        """
        Twice at most: where it takes more room than was thought, or the disk is full though the budget is not.
        """
        if listed.size_bytes > self.budget_bytes:
            raise too_large(f"{source}{key} has {listed.size_bytes} bytes", self.budget_bytes)
        # A folder's archive is read in place; of a bucket's, there is a copy until it is unpacked.
        copy_bytes = 0 if source.startswith("/") else listed.size_bytes
        need_bytes = copy_bytes + listed.size_bytes
        for is_last in (False, True):
            reserved_bytes = min(need_bytes, self.budget_bytes)
            await self._disk.reserve(reserved_bytes, f"{source}{key}")
            try:
                entry, fetched = await self._transfer(source, key, listed, reserved_bytes)
            except DiskFull:
                if is_last:
                    raise
                await self._disk.evict(_FULL_DISK_FACTOR * listed.size_bytes)
                continue
            if entry is not None:
                return entry, fetched.secs
            need_bytes = copy_bytes + fetched.disk_bytes
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

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Tasks are held weakly by asyncio: without this one could vanish while it runs."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_at)


class _Known:
    """What stores have said of their archives, and when they were asked (by time.monotonic)."""

    def __init__(self) -> None:
        self._listings: dict[str, tuple[dict[str, Listed], float]] = {}
        self._look_ups: dict[_Name, tuple[Listed, float]] = {}

    def get(self, source: str, key: str) -> tuple[Listed, float] | None:
        """The newer of the listing and the look-up."""
        looked_up = self._look_ups.get((source, key))
        archives, listed_at = self._listings.get(source, ({}, 0.0))
        if key in archives and (looked_up is None or looked_up[1] < listed_at):
            return archives[key], listed_at
        return looked_up

    def listing(self, source: str) -> tuple[dict[str, Listed], float] | None:
        return self._listings.get(source)

    def listed(self, source: str, archives: dict[str, Listed], asked_at: float) -> None:
        self._listings[source] = (archives, asked_at)
        older = [name for name, (_, at) in self._look_ups.items() if name[0] == source and at < asked_at]
        for name in older:
            del self._look_ups[name]

    def forget(self, source: str, key: str) -> None:
        """A listing may name it yet: whoever trusts that is told by the store that it is gone."""
        self._look_ups.pop((source, key), None)

    def looked_up(self, source: str, key: str, listed: Listed, asked_at: float) -> None:
        self._look_ups[source, key] = (listed, asked_at)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Its failure went to whoever waits for it; nobody may."""
    if not task.cancelled():
        task.exception()
