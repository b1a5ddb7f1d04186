"""Stand-ins for tests of ours and of others: an engine and a store of archives that only count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from polyhost_handlers.script_trial import Fault
from polyhost_handlers.signature import Signature

from polyhost.artifacts import Artifact, ArtifactForbidden, Listed
from polyhost.engine.errors import EngineError, ModelNotFound, OutOfMemory
from polyhost.engine.protocol import Answer, Item, Registration, WhenDone, report
from polyhost.service_errors import ArtifactMissing


class CountingEngine:
    """
    An engine of models that are names: as many fit as `capacity`, each takes its archive's `unpacked_bytes` otherwise.

    `answering`, `loading` and `unloading` are events that calls, loads and unloads wait for; set unless a test clears
    them.
    """

    def __init__(self, capacity: int) -> None:
        self.budget_bytes = 1_000_000
        self.has_ended = False
        self.on_end: Callable[[], None] = lambda: None
        self.capacity = capacity
        self.models: dict[str, Registration] = {}
        self.counts: Counter[str] = Counter()
        # What comes of scripts that are tried, one after the other.
        self.faults: Iterator[Fault | None] = iter(())
        self.loading = asyncio.Event()
        self.loading.set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.unloading = asyncio.Event()
        self.unloading.set()
        self._reserved = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        self.counts["prepare"] += 1

    async def try_script(self, registration: Registration) -> Fault | None:
        self.counts["try script"] += 1
        return next(self.faults, None)

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        self.counts["forget"] += 1

    async def load(self, registration: Registration) -> str:
        self.counts["load"] += 1
        await asyncio.sleep(0)
        if len(self.models) + self._reserved >= self.capacity:
            self.counts["out of memory"] += 1
            raise OutOfMemory(f"there is room for {self.capacity} models")
        self._reserved += 1
        try:
            await self.loading.wait()
            await asyncio.sleep(0)
        finally:
            self._reserved -= 1
        if "broken" in registration.url:
            raise EngineError("it is broken")
        self.models[registration.name] = registration
        return "Workers scaled"

    async def unload(self, name: str) -> None:
        self.counts["unload"] += 1
        await self.unloading.wait()
        await asyncio.sleep(0)
        if self.models.pop(name, None) is None:
            raise ModelNotFound(f"Model not found: {name}")

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        raise NotImplementedError

    def invoke(self, name: str, item: Item, done: WhenDone) -> None:
        task = asyncio.get_running_loop().create_task(report(self.answer(name, item), done))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def answer(self, name: str, item: Item) -> Answer:
        """Raises EngineError."""
        self.counts["invoke"] += 1
        if name not in self.models:
            raise ModelNotFound(f"Model not found: {name}")
        await self.answering.wait()
        await asyncio.sleep(0)
        if name not in self.models:
            raise EngineError(f"{name} was unloaded while it was in use")
        return Answer(200, {"content-type": "text/plain"}, self.models[name].url.encode())

    def used_bytes(self) -> int:
        return len(self.models)

    def names(self) -> list[str]:
        return sorted(self.models)

    def url_of(self, name: str) -> str:
        return self.models[name].url

    async def signature(self, name: str) -> Signature:
        raise NotImplementedError

    async def describe(self, name: str) -> dict[str, object]:
        raise NotImplementedError


class CountingArtifacts:
    """Archives that are names and versions. `path` is their source, key and version."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions
        self.counts: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.discarded: list[str] = []
        self.fetching = asyncio.Event()
        self.fetching.set()
        self.unpacked_bytes = 1
        # Since when what a store has must be known, by key, as it was last asked for.
        self.asked_after: dict[str, float] = {}
        # Keys that may not be read.
        self.forbidden: set[str] = set()

    async def get(self, source: str, key: str, *, asked_after: float = 0.0) -> Artifact:
        self.counts["get"] += 1
        self.asked_after[key] = asked_after
        await self.fetching.wait()
        if key not in self.versions:
            raise ArtifactMissing(f"Failed to download model data(bucket: {source}, key: {key}).")
        version = self.versions[key]
        path = Path(f"{source}{key}@{version}")
        self.held[str(path)] += 1
        return Artifact(
            source=source, key=key, version=version, path=path, archive_bytes=1,
            unpacked_bytes=self.unpacked_bytes, fetch_secs=0.001,
        )  # fmt: skip

    def compiled(self, artifact: Artifact) -> None:
        """Nothing is kept."""

    def release(self, artifact: Artifact) -> None:
        self.held[str(artifact.path)] -= 1

    def discard(self, artifact: Artifact) -> None:
        self.release(artifact)
        self.discarded.append(f"{artifact.key}@{artifact.version}")

    async def list(self, source: str, after: str = "") -> dict[str, Listed]:
        self.counts["list"] += 1
        return {key: Listed(version, 1) for key, version in self.versions.items() if key > after}

    async def look_up(self, source: str, key: str) -> Listed:
        self.counts["look_up"] += 1
        if key in self.forbidden:
            raise ArtifactForbidden(key)
        if key not in self.versions:
            raise ArtifactMissing(key)
        return Listed(self.versions[key], 1)
